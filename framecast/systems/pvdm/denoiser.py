# SPDX-License-Identifier: Apache-2.0
"""PVDM's latent denoiser: one 2D U-Net that all three planes share, with attention across planes after every block.

Paper section 3.2; sizes and orders are those of the official code. Hidden here: how planes are computed. Between blocks
the state is one sequence of tokens of all planes, (B, L, C); a block folds it into images, those of equal size stacked
as rows of one batch (for square videos two passes of convolutions in place of three), which changes no result since
normalisation runs over a row. Inside, axes are B, C, H, W with channels last in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framecast.diffusion.sampling import Denoise, Estimate, estimate
from framecast.diffusion.schedule import Schedule
from framecast.nn.attention import SelfAttention
from framecast.nn.blocks import ResBlock, norm_silu, step_embedding, zeroed
from framecast.systems.pvdm.config import DenoiserConfig

Latent: TypeAlias = Float[Tensor, "b e l"]
Tokens: TypeAlias = Float[Tensor, "b l c"]
Planes: TypeAlias = tuple[int, int, int]  # h, w, S: rows and columns of the latent, frames of a clip


class Stack(NamedTuple):
    """Planes of one size that follow each other in the latent."""

    planes: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.planes * self.height * self.width


class Denoiser(nn.Module):
    """The noise in a noisy latent, given its noise level and, for a conditional one, the latent of the clip before.

    A latent holds the planes xy (h x w), yt (S x w) and xt (S x h), each row by row, one behind the other. No position
    is encoded and no plane is told from another: they differ by shape and content only.

    Args:
        config: the network's settings.
        channels: of the latent.
        planes: h, w and S.

    Raises:
        ValueError: settings no such network can be built with, or planes that it cannot halve as often as it must.

    Source: paper section 3.2; official code `models/ddpm/unet.py`.

    Example:
        >>> config = DenoiserConfig(width=8, multipliers=(1, 2), attention=(1,), heads=2, groups=4, res_blocks=1)
        >>> network = Denoiser(config, channels=4, planes=(4, 6, 2))
        >>> network(torch.zeros(3, 4, 44), torch.tensor([0, 10, 999])).shape
        torch.Size([3, 4, 44])
    """

    checkpointing: bool = False  # recompute blocks in the backward pass; set by the training stage

    def __init__(self, config: DenoiserConfig, *, channels: int, planes: Planes):
        super().__init__()
        validate(config)
        check_planes(config, planes)
        self.config, self.channels, self.planes = config, channels, planes
        width, embedding = config.width, 4 * config.width
        stacks = [stacked(planes, halvings=level) for level in range(len(config.multipliers))]
        widths = [m * width for m in config.multipliers]

        def block(before: int, after: int, resample: nn.Module | None = None) -> ResBlock:
            return ResBlock(
                before,
                after,
                embedding=embedding,
                groups=config.groups,
                scale_shift=config.scale_shift,
                dropout=config.dropout,
                dims=2,
                resample=resample,
            )

        def attention(channels: int) -> SelfAttention:
            return SelfAttention(channels, heads=heads_of(config, channels), groups=config.groups)

        def within(level: int) -> list[nn.Module]:
            return [attention(widths[level])] if 2**level in config.attention else []

        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        now = width
        self.stem = nn.Conv2d(channels * (1 + config.conditional), now, 3, padding=1)
        skips = [now]
        self.downs = nn.ModuleList()
        for level, after in enumerate(widths):
            for _ in range(config.res_blocks):
                layers = [block(now, after), *within(level)]
                self.downs.append(Stage(layers, attention(after), stacks[level]))
                now = after
                skips.append(now)
            if level + 1 < len(widths):
                halve = block(now, now, nn.AvgPool2d(2)) if config.resample == "residual" else Downsample(now)
                self.downs.append(Stage([halve], attention(now), stacks[level]))
                skips.append(now)

        self.middle = Stage([block(now, now), attention(now), block(now, now)], attention(now), stacks[-1])

        self.ups = nn.ModuleList()
        for level, after in reversed(list(enumerate(widths))):
            for i in range(config.res_blocks + 1):
                layers = [block(now + skips.pop(), after), *within(level)]
                if level and i == config.res_blocks:
                    residual = config.resample == "residual"
                    layers.append(block(after, after, nn.Upsample(scale_factor=2)) if residual else Upsample(after))
                self.ups.append(Stage(layers, attention(after), stacks[level]))
                now = after

        self.head = nn.Sequential(
            nn.GroupNorm(config.groups, now), nn.SiLU(), zeroed(nn.Conv2d(now, channels, 3, padding=1))
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # kernels reorder weights less so

    def forward(self, z: Latent, t: Num[Tensor, " b"], condition: Latent | None = None) -> Latent:
        """The noise in z.

        Args:
            z: noisy latent.
            t: noise level on the full schedule, from 0 on, one per row.
            condition: latent of the clip before; None: there is none, which is what zeros say too.

        Raises:
            ValueError: latents of another size, or a condition for a network that reads none.
        """
        self._check(z, condition)
        x = z
        if self.config.conditional:
            x = torch.cat([z, torch.zeros_like(z) if condition is None else condition], dim=1)
        active = F.silu(self.time(step_embedding(t.float(), self.config.width).to(z.dtype)))
        stacks = stacked(self.planes)
        x = unfold([self.stem(image) for image in fold([x.transpose(1, 2)], stacks)], stacks)
        skips = [x]
        for stage in self.downs:
            x = self._run(stage, active, x)
            skips.append(x)
        x = self._run(self.middle, active, x)
        for stage in self.ups:
            x = self._run(stage, active, x, skips.pop())
        norm, _, conv = self.head
        x = unfold([conv(norm_silu(image, norm)) for image in fold([x], stacks)], stacks)
        # under autocast the convolution answers in bfloat16, too coarse for what noise schedules make of it
        return x.transpose(1, 2).to(z.dtype).contiguous()

    def _run(self, stage: nn.Module, active: Tensor, *tokens: Tokens) -> Tokens:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, active, *tokens, use_reentrant=False)
        return stage(active, *tokens)

    def _check(self, z: Tensor, condition: Tensor | None) -> None:
        h, w, s = self.planes
        wanted = (self.channels, sum(stack.tokens for stack in stacked(self.planes)))
        if tuple(z.shape[1:]) != wanted:
            raise ValueError(
                f"the latent has {z.shape[1]} channels and length {z.shape[2]}, but this network was made for "
                f"{wanted[0]} channels and length {wanted[1]}, the planes of {h}x{w} positions and {s} frames."
            )
        if condition is not None and not self.config.conditional:
            raise ValueError("this denoiser was made without a condition (conditional false); give it none.")
        if condition is not None and condition.shape != z.shape:
            raise ValueError(
                f"the condition has shape {tuple(condition.shape)}, the noisy latent {tuple(z.shape)}; both are "
                "latents of one clip per row."
            )


class Stage(nn.Module):
    """Layers that each plane passes alone, then attention over the tokens of all planes.

    Args:
        layers: residual blocks, attention, resampling; all planes share them.
        across: attention whose positions are all tokens.
        stacks: the planes that come in.
    """

    def __init__(self, layers: Sequence[nn.Module], across: SelfAttention, stacks: Sequence[Stack]):
        super().__init__()
        self.layers, self.across = nn.ModuleList(layers), across
        self.stacks = tuple(stacks)

    def forward(self, active: Float[Tensor, "b e"], *tokens: Tokens) -> Tokens:
        """The tokens that follow.

        Args:
            active: SiLU of the step embedding, which all blocks share.
            tokens: the state, and on the way up the one that was kept on the way down.
        """
        images = []
        for stack, x in zip(self.stacks, fold(tokens, self.stacks), strict=True):
            steps = active.repeat_interleave(stack.planes, dim=0)
            for layer in self.layers:
                x = layer(x, steps) if isinstance(layer, ResBlock) else layer(x)
            images.append(x)
        x = unfold(images, self.stacks)
        # one row of pixels, since normalisation knows channels-last memory of images only
        return self.across(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


class Downsample(nn.Module):
    """A strided convolution that halves height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbours to twice the height and width, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


# ---- planes


def plane_sizes(planes: Planes) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the planes xy, yt and xt.

    Example:
        >>> plane_sizes((32, 24, 16))
        ((32, 24), (16, 24), (16, 32))
    """
    h, w, s = planes
    return (h, w), (s, w), (s, h)


def stacked(planes: Planes, *, halvings: int = 0) -> list[Stack]:
    """The planes in order, those of equal size as one stack; equal ones are always neighbours.

    Example:
        >>> stacked((32, 32, 16), halvings=1)
        [Stack(planes=1, height=16, width=16), Stack(planes=2, height=8, width=16)]
    """
    sizes = [(rows >> halvings, columns >> halvings) for rows, columns in plane_sizes(planes)]
    return [Stack(len(list(same)), *size) for size, same in groupby(sizes)]


def fold(tokens: Sequence[Tokens], stacks: Sequence[Stack]) -> list[Tensor]:
    """Images (B planes, C, H, W) of each stack, channels last in memory.

    Args:
        tokens: one sequence, or several whose channels are put behind each other.
        stacks: the planes in them.
    """
    lengths = [stack.tokens for stack in stacks]
    images = []
    for stack, parts in zip(stacks, zip(*(each.split(lengths, dim=1) for each in tokens)), strict=True):
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        x = x.unflatten(1, stack).flatten(0, 1).permute(0, 3, 1, 2)
        images.append(x.contiguous(memory_format=torch.channels_last))
    return images


def unfold(images: Sequence[Tensor], stacks: Sequence[Stack]) -> Tokens:
    """The inverse of `fold`; images may have another size than the stacks say."""
    return torch.cat(
        [
            image.permute(0, 2, 3, 1).unflatten(0, (-1, stack.planes)).flatten(1, 3)
            for image, stack in zip(images, stacks, strict=True)
        ],
        dim=1,
    )


# ---- what samplers ask


def denoise(
    network: Denoiser,
    schedule: Schedule,
    condition: Latent | None = None,
    *,
    guidance: float = 0.0,
    bound: float | None = 1.0,
) -> Denoise:
    """The network as samplers see it: a noisy latent and its level to an estimate of the clean one.

    With a guidance weight w the noise is (1 + w) e(z, condition) - w e(z, 0), both from one call of twice the rows.

    Args:
        network: the denoiser.
        schedule: the full schedule.
        condition: latent of the clip before; None: there is none, and nothing is guided.
        guidance: w; OFFICIAL: the code calls the network twice for w = 0 too, to the same end.
        bound: clamp of the clean latent, whose values are those of a tanh; None: no clamp. The noise stays the
            network's.

    Source: official code `losses/ddpm.py`; guidance: Ho and Salimans 2021, Eq. 6.
    """

    def found(z: Tensor, t: int) -> Estimate:
        level = torch.full((len(z),), t, device=z.device)
        if condition is None or not guidance:
            eps = network(z, level, condition)
        else:
            both = torch.cat([condition, torch.zeros_like(condition)])
            told, untold = network(torch.cat([z, z]), torch.cat([level, level]), both).chunk(2)
            eps = (1 + guidance) * told - guidance * untold
        return estimate(schedule, z, t, eps, bound=bound, keeps="eps")

    return found


# ---- settings


def heads_of(config: DenoiserConfig, channels: int) -> int:
    """Attention heads over so many channels."""
    return channels // config.head_width if config.head_width else config.heads


def check_planes(config: DenoiserConfig, planes: Planes) -> None:
    """Raise ValueError where planes cannot be halved as often as the network has levels."""
    unit = 2 ** (len(config.multipliers) - 1)
    if any(size < 1 or size % unit for size in planes):
        h, w, s = planes
        raise ValueError(
            f"a latent of {h}x{w} positions and {s} frames does not fit the denoiser: {len(config.multipliers)} levels "
            f"need positions and frames that are multiples of {unit}."
        )


def validate(config: DenoiserConfig) -> None:
    """Raise ValueError where no network can be built from these settings."""
    for name in ("width", "res_blocks", "heads", "groups", "noise_levels"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    if config.head_width < 0:
        raise ValueError(f"head_width is {config.head_width}; it must be 0 or more.")
    if not config.multipliers or min(config.multipliers) < 1:
        raise ValueError(f"multipliers are {config.multipliers}; give one factor of at least 1 per level.")
    if config.width % config.groups:
        raise ValueError(f"width {config.width} is not a multiple of the {config.groups} groups of GroupNorm.")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"dropout is {config.dropout}; it must be at least 0 and below 1.")
    if config.resample not in ("residual", "convolution"):
        raise ValueError(f"resample is {config.resample!r}; it must be 'residual' or 'convolution'.")
    factors = [2**level for level in range(len(config.multipliers))]
    for factor in config.attention:
        if factor not in factors:
            raise ValueError(
                f"attention names the down-sampling factor {factor}, but {len(factors)} levels have the factors "
                f"{', '.join(map(str, factors))}."
            )
    for channels in sorted({config.width * m for m in config.multipliers}):
        if config.head_width and channels % config.head_width:
            raise ValueError(f"head_width {config.head_width} does not divide the {channels} channels of a level.")
        if not config.head_width and channels % config.heads:
            raise ValueError(f"{config.heads} attention heads do not divide the {channels} channels of a level.")
