# SPDX-License-Identifier: Apache-2.0
"""RaMViD's 3D U-Net: improved-diffusion's image U-Net with 3x3x3 convolutions and joint space-time attention.

Paper B, appendix A and figure 1; parameter names and shapes are those of the official code, so that its weights load.
The network is not told which frames are known: no mask channel, one time value per clip. Inside, axes are B, C, T, H, W
with channels last in memory; at the border a Video comes in and a Video with the output channels goes out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framecast.nn.attention import SelfAttention
from framecast.nn.blocks import ResBlock, norm_silu, step_embedding, zeroed
from framecast.systems.ramvid.config import RaMViDConfig


class UNet3D(nn.Module):
    """What the network predicts from a clip whose frames are partly clean, partly noised at one level.

    Args:
        config: the model's settings.
        channels: of the video.

    Raises:
        ValueError: settings no such network can be built with.

    Example:
        >>> config = RaMViDConfig(width=8, multipliers=(1, 1), attention=(2,), groups=4, res_blocks=1)
        >>> network = UNet3D(config, channels=1)
        >>> network(torch.zeros(2, 3, 1, 8, 8), torch.tensor([0.0, 999.0])).shape
        torch.Size([2, 3, 1, 8, 8])
    """

    checkpointing: bool = False  # recompute blocks in the backward pass; set by the training stage

    def __init__(self, config: RaMViDConfig, *, channels: int):
        super().__init__()
        validate(config)
        self.config = config
        self.channels = channels
        self.patch = config.patch
        width, embedding = config.width, 4 * config.width
        inside = channels * config.patch**2
        lengths = time_lengths(config.time_frames, levels=len(config.multipliers))

        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if config.classes:
            self.label_emb = nn.Embedding(config.classes, embedding)

        def block(before: int, after: int) -> ResBlock:
            return ResBlock(
                before,
                after,
                embedding=embedding,
                groups=config.groups,
                scale_shift=config.scale_shift,
                dropout=config.dropout,
            )

        def attention(level: int, heads: int) -> list[nn.Module]:
            here = 2**level in config.attention
            return [SelfAttention(config.multipliers[level] * width, heads=heads, groups=config.groups)] if here else []

        now = width
        self.input_blocks = nn.ModuleList([Steps(nn.Conv3d(inside, now, 3, padding=1))])
        stack = [now]
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.res_blocks):
                self.input_blocks.append(Steps(block(now, multiplier * width), *attention(level, config.heads)))
                now = multiplier * width
                stack.append(now)
            if level + 1 < len(config.multipliers):
                stride = 2 if lengths and lengths[level + 1] != lengths[level] else 1
                self.input_blocks.append(Steps(Downsample(now, time_stride=stride)))
                stack.append(now)

        self.middle_block = Steps(
            block(now, now), SelfAttention(now, heads=config.heads, groups=config.groups), block(now, now)
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for i in range(config.res_blocks + 1):
                after = multiplier * width
                steps = [block(now + stack.pop(), after), *attention(level, config.heads_up or config.heads)]
                if level and i == config.res_blocks:
                    steps.append(Upsample(after, frames=lengths[level - 1] if lengths else None))
                self.output_blocks.append(Steps(*steps))
                now = after

        outside = inside * (2 if config.learned_variance else 1)
        self.out = nn.Sequential(
            nn.GroupNorm(config.groups, now), nn.SiLU(), zeroed(nn.Conv3d(now, outside, 3, padding=1))
        )

    def forward(self, video: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the target of `config.target` for every element of the clip.

        Args:
            video: (B, T, C, H, W), known frames clean, the others noised.
            t: (B,), model time: noise level times 1000 / noise_levels.
            labels: (B,) class numbers, for networks with classes; None adds no class embedding.

        Returns:
            (B, T, C, H, W); with learned variance (B, T, 2 C, H, W), the variance's values last.

        Raises:
            ValueError: a clip this network cannot process.
        """
        self._check(video)
        x = blocks_to_channels(video, self.patch).contiguous(memory_format=torch.channels_last_3d)
        active = F.silu(self.embed(t, labels))
        stack = []
        for steps in self.input_blocks:
            x = self._run(steps, x, active)
            stack.append(x)
        x = self._run(self.middle_block, x, active)
        for steps in self.output_blocks:
            x = self._run(steps, torch.cat([x, stack.pop()], dim=1), active)
        norm, _, conv = self.out
        # under autocast the convolution answers in bfloat16, too coarse for what noise schedules make of it
        return channels_to_blocks(conv(norm_silu(x, norm)), self.patch).to(video.dtype).contiguous()

    def embed(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The step embedding after its two layers, plus the class embedding."""
        embedding = self.time_embed(step_embedding(t, self.config.width))
        if labels is not None:
            if not self.config.classes:
                raise ValueError("class labels were given to a network without classes; leave them out.")
            embedding = embedding + self.label_emb(labels)
        return embedding

    def _run(self, steps: nn.Module, x: Tensor, active: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(steps, x, active, use_reentrant=False)
        return steps(x, active)

    def _check(self, video: Tensor) -> None:
        _, frames, channels, height, width = video.shape
        if channels != self.channels:
            raise ValueError(f"the clip has {channels} channels, this network was made for {self.channels}.")
        check_size(self.config, (height, width))
        if self.config.time_frames and frames != self.config.time_frames:
            raise ValueError(
                f"the clip has {frames} frames, but this network resamples time and takes exactly "
                f"{self.config.time_frames} (time_frames)."
            )


class Steps(nn.Sequential):
    """Layers in a row; residual blocks also get the step embedding."""

    def forward(self, x: Tensor, active: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, active) if isinstance(layer, ResBlock) else layer(x)
        return x


class Downsample(nn.Module):
    """A strided convolution that halves height and width, and time where `time_stride` is 2."""

    def __init__(self, channels: int, *, time_stride: int):
        super().__init__()
        self.op = nn.Conv3d(channels, channels, 3, stride=(time_stride, 2, 2), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbours to twice the height and width and to `frames` frames (None: as many as there are), then a
    convolution."""

    def __init__(self, channels: int, *, frames: int | None):
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        frames, height, width = x.shape[2:]
        size = (self.frames or frames, 2 * height, 2 * width)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def blocks_to_channels(video: Tensor, patch: int) -> Tensor:
    """(B, T, C, H, W) as (B, C patch^2, T, H / patch, W / patch): each block of pixels becomes one pixel's channels."""
    return rearrange(video, "b t c (h p) (w q) -> b (c p q) t h w", p=patch, q=patch)


def channels_to_blocks(x: Tensor, patch: int) -> Tensor:
    """The inverse of `blocks_to_channels`."""
    return rearrange(x, "b (c p q) t h w -> b t c (h p) (w q)", p=patch, q=patch)


def time_lengths(time_frames: int, *, levels: int) -> list[int]:
    """Frames at each level of a network that resamples time; empty for one that does not.

    A level has half as many frames as the one above it, rounded up by the strided convolution, until one is left.
    The way up resizes to `time_frames` halved and rounded down (the official `scale_time_dim`), so the two must agree
    on every level but the deepest.

    Raises:
        ValueError: they do not agree.

    Example:
        >>> time_lengths(20, levels=4)
        [20, 10, 5, 3]
    """
    if not time_frames:
        return []
    lengths, wanted = [time_frames], time_frames
    for level in range(1, levels):
        wanted //= 2
        lengths.append(-(-lengths[-1] // 2) if wanted else lengths[-1])
        if wanted and level < levels - 1 and lengths[-1] != wanted:
            multiple = 2 ** (levels - 2)
            raise ValueError(
                f"time_frames is {time_frames}, which {levels} levels cannot halve evenly: "
                f"use a multiple of {multiple}, or 0 to leave time as it is."
            )
    return lengths


def check_size(config: RaMViDConfig, size: tuple[int, int]) -> None:
    """Raise ValueError where frames of this height and width cannot be halved as often as the network has levels."""
    unit = config.patch * 2 ** (len(config.multipliers) - 1)
    if size[0] % unit or size[1] % unit or 0 in size:
        raise ValueError(
            f"frames of {size[0]}x{size[1]} pixels do not fit the network: {len(config.multipliers)} levels and patch "
            f"{config.patch} need height and width that are multiples of {unit}."
        )


def validate(config: RaMViDConfig) -> None:
    """Raise ValueError where no network can be built from these settings."""
    for name in ("width", "res_blocks", "heads", "groups", "patch", "noise_levels"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    for name in ("heads_up", "classes", "time_frames"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be 0 or more.")
    if not config.multipliers or min(config.multipliers) < 1:
        raise ValueError(f"multipliers are {config.multipliers}; give one factor of at least 1 per level.")
    if config.width % config.groups:
        raise ValueError(f"width {config.width} is not a multiple of the {config.groups} groups of GroupNorm.")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"dropout is {config.dropout}; it must be at least 0 and below 1.")
    factors = [2**level for level in range(len(config.multipliers))]
    for factor in config.attention:
        if factor not in factors:
            raise ValueError(
                f"attention names the down-sampling factor {factor}, but {len(factors)} levels have the factors "
                f"{', '.join(map(str, factors))}."
            )
    attending = {factors.index(factor) for factor in config.attention} | {len(factors) - 1}
    for level in sorted(attending):
        channels = config.multipliers[level] * config.width
        for heads in {config.heads, config.heads_up or config.heads}:
            if channels % heads:
                raise ValueError(f"{heads} attention heads do not divide the {channels} channels of level {level}.")
