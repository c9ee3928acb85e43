# SPDX-License-Identifier: Apache-2.0
"""RVD's networks: two convolutional recurrent ones that read frames, and the denoiser that they condition.

Paper appendix B, figures A1 and A2; sizes, orders and the missing full-resolution skips are those of the official code.
The recurrence keeps no state: states come in and go out. A level reads all frames of a clip before the next level does,
so that everything but the hidden half of the ConvGRU is one batch over frames. Axes are B, T, C, H, W at the border and
(B T), C, H, W inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framecast.nn.blocks import pointwise
from framecast.systems.rvd.config import RVDConfig

Frame: TypeAlias = Float[Tensor, "b c h w"]
Frames: TypeAlias = Float[Tensor, "b t c h w"]
States: TypeAlias = Sequence[Tensor]  # one (B, C, H, W) per level

SLOPE = 0.2  # of LeakyReLU
HEADS, HEAD_WIDTH = 4, 16  # of the linear attention


class ContextNetwork(nn.Module):
    """What past frames tell the denoiser: one map per level, the hidden state after each frame.

    Args:
        config: the model's settings.
        channels: of the video.

    Example:
        >>> network = ContextNetwork(RVDConfig(width=8, multipliers=(1, 2)), channels=1)
        >>> [tuple(level.shape) for level in network(torch.zeros(2, 3, 1, 4, 8))]
        [(2, 3, 8, 4, 8), (2, 3, 16, 2, 4)]
    """

    checkpointing: bool = False  # recompute levels in the backward pass; set by the training stage

    def __init__(self, config: RVDConfig, *, channels: int):
        super().__init__()
        self.patch = config.patch
        self.levels = recurrent_levels(
            channels * config.patch**2, [config.width * m for m in config.multipliers], groups=config.groups
        )

    def forward(self, frames: Frames, states: States | None = None) -> list[Frames]:
        """Hidden states of every level after each frame, (B, T, C_l, H_l, W_l).

        Args:
            frames: consecutive ones.
            states: of every level after the frame before; None: there was none.
        """
        return _read(self.levels, frames, states, patch=self.patch, checkpointing=self.checkpointing)


class TransformNetwork(nn.Module):
    """What the next frame is expected to be, from the frames so far: a U-Net with ConvGRUs on the way down.

    Args:
        config: the model's settings.
        channels: of the video.

    Source: appendix B, figure A2.
    """

    checkpointing: bool = False

    def __init__(self, config: RVDConfig, *, channels: int):
        super().__init__()
        self.patch = config.patch
        widths = [config.width * m for m in config.transform_multipliers]
        self.levels = recurrent_levels(channels * config.patch**2, widths, groups=config.groups)
        # OFFICIAL: the bottleneck goes up alone, and level 0 hands nothing over; the figure draws both
        self.ups = nn.ModuleList(
            Up(
                ResBlock(
                    (1 if level + 1 == len(widths) else 2) * widths[level], widths[level - 1], groups=config.groups
                )
            )
            for level in range(len(widths) - 1, 0, -1)
        )
        self.head = nn.Conv2d(widths[0], channels * config.patch**2, 3, padding=1)

    def forward(self, frames: Frames, states: States | None = None, *, first: int = 0) -> tuple[Frames, list[Frames]]:
        """The frame expected after each frame, not clamped, and the hidden states after each frame.

        Args:
            frames: consecutive ones.
            states: of every level after the frame before; None: there was none.
            first: expected frames are those after this frame and later ones; the way up is not gone for others.
        """
        seen = _read(self.levels, frames, states, patch=self.patch, checkpointing=self.checkpointing)
        skips = [level[:, first:].flatten(0, 1) for level in seen]
        x = skips[-1]
        for place, up in enumerate(self.ups):
            x = _run(up, x if place == 0 else torch.cat([x, skips[-1 - place]], dim=1), again=self.checkpointing)
        mu = F.pixel_shuffle(self.head(x), self.patch).to(frames.dtype)
        return mu.unflatten(0, (len(frames), -1)), seen


class Denoiser(nn.Module):
    """The noise in a noisy residual (or another target), given the context maps and the noise level.

    Args:
        config: the model's settings.
        channels: of the video.

    Source: appendix B, figure A1.
    """

    checkpointing: bool = False

    def __init__(self, config: RVDConfig, *, channels: int):
        super().__init__()
        self.patch, self.width = config.patch, config.width
        inside = channels * config.patch**2
        widths = [config.width * m for m in config.multipliers]
        embedded = {"groups": config.groups, "embedding": config.width}
        self.time = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )
        self.downs = nn.ModuleList(
            DownLevel(
                ResBlock(before, after, **embedded),
                ResBlock(2 * after, after, **embedded),
                Attention(after),
                nn.Conv2d(after, after, 3, stride=2, padding=1) if level + 1 < len(widths) else None,
            )
            for level, (before, after) in enumerate(zip([inside, *widths], widths))
        )
        bottom = widths[-1]
        self.middle_1, self.middle_2 = (ResBlock(bottom, bottom, **embedded) for _ in range(2))
        self.middle_attention = Attention(bottom)
        # OFFICIAL: one level less up than down, so that level 0 hands nothing over; the figure draws as many
        self.ups = nn.ModuleList(
            UpLevel(
                ResBlock(2 * widths[level], widths[level - 1], **embedded),
                ResBlock(widths[level - 1], widths[level - 1], **embedded),
                Attention(widths[level - 1]),
                upsample(widths[level - 1]),
            )
            for level in range(len(widths) - 1, 0, -1)
        )
        self.last = ConvNorm(widths[0], widths[0], groups=config.groups)
        self.head = nn.Conv2d(widths[0], inside, 1)

    def prepare(self, context: States) -> list[Prepared]:
        """What the denoiser makes of the context maps, the same for all noise levels of a frame.

        Args:
            context: (B, C_l, H_l, W_l) per level.
        """
        return [down.second.prepare(maps) for down, maps in zip(self.downs, context, strict=True)]  # type: ignore[union-attr, operator]

    def forward(self, y: Frame, n: Float[Tensor, " b"], prepared: Sequence[Prepared]) -> Frame:
        """The target, as far as the noisy residual tells.

        Args:
            y: noisy residual.
            n: noise level on the full schedule, from 0 on, one per row.
            prepared: what `prepare` gave.
        """
        x = F.pixel_unshuffle(y, self.patch).contiguous(memory_format=torch.channels_last)
        step = F.leaky_relu(self.time(step_embedding(n, self.width)), SLOPE)
        again, skips = self.checkpointing, []
        for down, given in zip(self.downs, prepared, strict=True):
            skips.append(_run(down, x, step, given.conv, given.skip, again=again))
            x = skips[-1] if down.down is None else down.down(skips[-1])  # type: ignore[operator]
        x = self.middle_2(self.middle_attention(self.middle_1(x, step)), step)
        for up in self.ups:
            x = _run(up, torch.cat([x, skips.pop()], dim=1), step, again=again)
        # under autocast the convolution answers in bfloat16, too coarse for what noise schedules make of it
        return F.pixel_shuffle(pointwise(self.last(x), self.head), self.patch).to(y.dtype).contiguous()


def step_embedding(n: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sinusoids of a noise level: sin(n f_k), then cos(n f_k), with f_k = 10000^(-k / (half - 1)), half = width / 2.

    Not the embedding of `framecast.nn.blocks`, which puts cosines first and divides by half.
    """
    half = width // 2
    k = torch.arange(half, dtype=torch.float32, device=n.device)
    angles = n.float()[:, None] * torch.exp(-math.log(10_000) / (half - 1) * k)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# ---- recurrence


class RecurrentLevel(nn.Module):
    """A residual block, a ConvGRU and, but for the last level, the way down."""

    def __init__(self, block: ResBlock, gru: ConvGRU, down: nn.Module | None):
        super().__init__()
        self.block, self.gru, self.down = block, gru, down

    def forward(self, x: Tensor, state: Tensor | None, frames: int) -> Tensor:
        """Hidden states after each frame, ((B T), C, H, W); `x` is ((B T), C, H, W), `state` (B, C, H, W)."""
        return self.gru(self.block(x), state, frames)


def recurrent_levels(channels: int, widths: Sequence[int], *, groups: int) -> nn.ModuleList:
    """The way down of both recurrent networks."""
    return nn.ModuleList(
        RecurrentLevel(
            ResBlock(before, after, groups=groups),
            ConvGRU(after),
            nn.Conv2d(after, after, 3, stride=2, padding=1) if level + 1 < len(widths) else None,
        )
        for level, (before, after) in enumerate(zip([channels, *widths], widths))
    )


def _read(
    levels: nn.ModuleList, frames: Frames, states: States | None, *, patch: int, checkpointing: bool
) -> list[Frames]:
    """All frames through level 0, then all through level 1, and so on."""
    rows, count = frames.shape[:2]
    x = F.pixel_unshuffle(frames.flatten(0, 1), patch).contiguous(memory_format=torch.channels_last)
    seen = []
    for place, level in enumerate(levels):
        hidden = _run(level, x, None if states is None else states[place], count, again=checkpointing)
        seen.append(hidden.unflatten(0, (rows, count)))
        x = hidden if level.down is None else level.down(hidden)  # type: ignore[operator]
    return seen


class ConvGRU(nn.Module):
    """A gated recurrent unit whose products are 3x3 convolutions; input and state have the same channels.

    r, z = sigmoid(gates [x, h]); h' = (1 - z) h + z tanh(candidate [x, r h]). The input's half of both convolutions
    does not wait for the state, so it is one batch over frames.

    Source: Ballas et al. 2016; the order of gates and inputs is the official code's.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.candidate = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, state: Tensor | None, frames: int) -> Tensor:
        """States after each frame, ((B T), C, H, W), from inputs of that shape and the state before (None: zero)."""
        channels = x.shape[1]
        gates_x, gates_h, new_x, new_h = (
            half.contiguous(memory_format=torch.channels_last)
            for conv in (self.gates, self.candidate)
            for half in _as_computed(conv.weight).split(channels, dim=1)
        )
        bias = torch.cat([_bias(self.gates), _bias(self.candidate)])
        given = F.conv2d(x, torch.cat([gates_x, new_x]), bias, padding=1).unflatten(0, (-1, frames))
        given = given.float()  # under autocast too: a state in bfloat16 would lose a little at every frame
        h, states = state, []
        for now in given.unbind(dim=1):
            gates, new = now.split((2 * channels, channels), dim=1)
            if h is not None:
                gates = gates + F.conv2d(h, gates_h, padding=1)
            r, z = gates.sigmoid().chunk(2, dim=1)
            if h is None:
                h = z * new.tanh()
            else:
                h = torch.lerp(h, (new + F.conv2d(r * h, new_h, padding=1)).tanh(), z)
            states.append(h)
        return torch.stack(states, dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


# ---- blocks


class ConvNorm(nn.Module):
    """A 3x3 convolution, GroupNorm and LeakyReLU."""

    def __init__(self, channels: int, out_channels: int, *, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def act(self, x: Tensor) -> Tensor:
        """What follows the convolution."""
        return F.leaky_relu(self.norm(x), SLOPE, inplace=True)


@dataclass(frozen=True)
class Prepared:
    """What a residual block makes of a second input: the shares of its first convolution and of its skip."""

    conv: Tensor
    skip: Tensor


class ResBlock(nn.Module):
    """Two `ConvNorm` and a skip; the step embedding is added after the first one's activation.

    Its input may come in two halves, [x, given], of which the second was `prepare`d: convolutions are sums over
    channels.

    Args:
        channels: of the input, both halves.
        out_channels: of the output; where they differ the input passes a 1x1 convolution.
        groups: of GroupNorm.
        embedding: width of the step embedding; 0: there is none.
    """

    def __init__(self, channels: int, out_channels: int, *, groups: int, embedding: int = 0):
        super().__init__()
        self.block_1 = ConvNorm(channels, out_channels, groups=groups)
        self.block_2 = ConvNorm(out_channels, out_channels, groups=groups)
        self.step = nn.Linear(embedding, out_channels) if embedding else None
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, step: Tensor | None = None) -> Tensor:
        """The block's output.

        Args:
            x: (B, C, H, W).
            step: LeakyReLU of the step embedding, which all blocks share.
        """
        skip = x if self.skip is None else pointwise(x, self.skip)
        return self._rest(self.block_1.conv(x), skip, step)

    def prepare(self, given: Tensor) -> Prepared:
        """The share that the last channels of the input have in this block."""
        assert self.skip is not None
        first, skip = (conv.weight[:, -given.shape[1] :] for conv in (self.block_1.conv, self.skip))
        return Prepared(
            F.conv2d(given, first, _bias(self.block_1.conv), padding=1), _matrix(given, skip, _bias(self.skip))
        )

    def complete(self, x: Tensor, step: Tensor, conv: Tensor, skip: Tensor) -> Tensor:
        """The output for the input [x, given], of which the second half is prepared."""
        assert self.skip is not None
        mine, past = (layer.weight[:, : x.shape[1]] for layer in (self.block_1.conv, self.skip))
        return self._rest(F.conv2d(x, mine, padding=1) + conv, _matrix(x, past, None) + skip, step)

    def _rest(self, h: Tensor, skip: Tensor, step: Tensor | None) -> Tensor:
        h = self.block_1.act(h)
        if self.step is not None:
            h = h + self.step(step)[:, :, None, None].to(h.dtype)
        return self.block_2(h) + skip


class Attention(nn.Module):
    """x + linear attention over positions of the layer-normalised x, at a cost that grows with the positions only.

    out = q (softmax(k)^T v): the softmax runs over positions; q is scaled and nothing else.

    Source: Shen et al. 2021, "Efficient attention"; OFFICIAL: without its softmax of q.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(HEADS * HEAD_WIDTH, channels)
        blocks = torch.block_diag(*[torch.ones(HEAD_WIDTH, HEAD_WIDTH)] * HEADS)
        self.register_buffer("same_head", blocks * HEAD_WIDTH**-0.5, persistent=False)  # with the scale of q

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        tokens = self.norm(x.permute(0, 2, 3, 1).flatten(1, 2))
        q, k, v = self.to_qkv(tokens).chunk(3, dim=2)
        # one product for all pairs of heads, of which the equal ones stay, is faster than four with reordered tensors;
        # and so is applying to_out to it, before it meets the positions
        kept = (k.float().softmax(dim=1).to(v.dtype).transpose(1, 2) @ v) * self.same_head
        out = torch.baddbmm(_bias(self.to_out), q, kept @ self.to_out.weight.T)
        return x + out.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class Up(nn.Module):
    """A residual block and the way up."""

    def __init__(self, block: ResBlock):
        super().__init__()
        self.block = block
        self.up = upsample(block.block_2.conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.block(x))


class DownLevel(nn.Module):
    """A level of the denoiser on the way down: the context comes in with the second block."""

    def __init__(self, first: ResBlock, second: ResBlock, attention: Attention, down: nn.Module | None):
        super().__init__()
        self.first, self.second, self.attention, self.down = first, second, attention, down

    def forward(self, x: Tensor, step: Tensor, conv: Tensor, skip: Tensor) -> Tensor:
        return self.attention(self.second.complete(self.first(x, step), step, conv, skip))


class UpLevel(nn.Module):
    """A level of the denoiser on the way up."""

    def __init__(self, first: ResBlock, second: ResBlock, attention: Attention, up: nn.Module):
        super().__init__()
        self.first, self.second, self.attention, self.up = first, second, attention, up

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.up(self.attention(self.second(self.first(x, step), step)))


def upsample(channels: int) -> nn.Module:
    """A transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)


def _run(module: nn.Module, *inputs: Tensor | int | None, again: bool) -> Tensor:
    """The module's output; `again`: computed a second time in the backward pass in place of being kept."""
    if again and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


def _bias(layer: nn.Module) -> Tensor:
    assert isinstance(layer.bias, Tensor)
    return layer.bias


def _as_computed(weight: Tensor) -> Tensor:
    """A weight in the precision of autocast, rounded here once and not again for every product it takes part in."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def _matrix(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution as a matrix product over channels."""
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


# ---- what can be built


def validate(config: RVDConfig) -> None:
    """Raise ValueError for settings that no such model can be built with."""
    for name in ("multipliers", "transform_multipliers"):
        found = getattr(config, name)
        if not found or min(found) < 1 or found[0] != 1:
            raise ValueError(f"{name} is {list(found)}; it must hold whole numbers from 1 on and begin with 1.")
        if len(found) < 2:
            raise ValueError(f"{name} is {list(found)}; it needs at least 2 levels.")
    if config.width < 4 or config.width % 2:
        raise ValueError(f"width is {config.width}; it must be an even number of 4 or more.")
    if config.groups < 1 or config.width % config.groups:
        raise ValueError(f"width is {config.width}, which is no multiple of groups, {config.groups}.")
    if config.patch < 1:
        raise ValueError(f"patch is {config.patch}; it must be at least 1.")
    if not 0 < config.sigma < math.inf:
        raise ValueError(f"sigma is {config.sigma:g}; it must be above 0.")
    if config.prediction == "none" and config.sigma != 1:
        raise ValueError(f"sigma is {config.sigma:g}, but without a prediction the residual is the frame: set it to 1.")
    if config.residual == "none" and config.prediction != "network":
        raise ValueError(
            f"residual is none and prediction {config.prediction}, so that nothing is left to learn: set one of them."
        )


def check_size(config: RVDConfig, size: tuple[int, int]) -> None:
    """Raise ValueError unless every level of the networks there are can halve such frames."""
    levels = max(
        len(config.multipliers) if config.residual == "diffusion" else 1,
        len(config.transform_multipliers) if config.prediction == "network" else 1,
    )
    factor = config.patch * 2 ** (levels - 1)
    height, width = size
    if min(size) < 1 or height % factor or width % factor:
        raise ValueError(
            f"frames are {width}×{height}, but sides must be multiples of {factor} for {levels} levels"
            + (f" and patches of {config.patch}" if config.patch > 1 else "")
            + f"; try {max(factor, round(width / factor) * factor)}×{max(factor, round(height / factor) * factor)}."
        )
