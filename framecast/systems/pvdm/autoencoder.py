# SPDX-License-Identifier: Apache-2.0
"""PVDM's autoencoder: a clip to three latent planes and back.

Paper section 3.2 and figure 2; sizes, the rotary tables and what is read out of the projections are those of the
official code. Hidden here: tokens are held as (T, B H W, width), frames first, so that attention over frames, over the
places of a frame and along any line works on views, and batches need no other form than single clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framecast.systems.pvdm.config import AutoencoderConfig
from framecast.systems.pvdm.transformer import (
    Attention,
    FeedForward,
    GatedFeedForward,
    in_parts,
    space_angles,
    time_angles,
    turned,
    turned_unevenly,
)
from framecast.video import Video

Plane: TypeAlias = Literal["xy", "yt", "xt"]
PLANES: tuple[Plane, ...] = get_args(Plane)  # in the order of the flat latent


@dataclass(frozen=True)
class Planes:
    """The latent of a clip: one plane without time, two without height and width, all in -1 to 1.

    Example:
        >>> planes = Planes(torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 5, 3), torch.zeros(1, 4, 5, 2))
        >>> tuple(planes.flat().shape)
        (1, 4, 31)
    """

    xy: Float[Tensor, "b e h w"]  # z^s of the paper
    yt: Float[Tensor, "b e t w"]  # z^h: height is collapsed
    xt: Float[Tensor, "b e t h"]  # z^w: width is collapsed

    def flat(self) -> Float[Tensor, "b e l"]:
        """All planes one after another, each row by row: l = h w + t w + t h."""
        return torch.cat([plane.flatten(2) for plane in (self.xy, self.yt, self.xt)], dim=2)


def split_flat(flat: Float[Tensor, "b e l"], *, frames: int, grid: tuple[int, int]) -> Planes:
    """The planes of a flat latent, as views of it.

    Args:
        flat: as `Planes.flat` gives it.
        frames: of the clip.
        grid: height and width of the xy plane.

    Raises:
        ValueError: a latent of another length.

    Example:
        >>> split_flat(torch.zeros(1, 4, 31), frames=5, grid=(2, 3)).xt.shape
        torch.Size([1, 4, 5, 2])
    """
    height, width = grid
    shapes = ((height, width), (frames, width), (frames, height))
    lengths = [math.prod(shape) for shape in shapes]
    if flat.shape[-1] != sum(lengths):
        raise ValueError(
            f"the latent has {flat.shape[-1]} places, but planes of {frames} frames and {height}x{width} places have "
            f"{sum(lengths)}."
        )
    parts = flat.split(lengths, dim=-1)
    return Planes(*(part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)))


class Autoencoder(nn.Module):
    """Clips to planes and planes to clips, for one size and number of frames.

    Args:
        config: sizes of its layers.
        channels: of the clips.
        size: height and width of the frames in pixels, multiples of `config.patch`.
        frames: of a clip.

    Raises:
        ValueError: settings or a size that no such network can be built for.

    Source: section 3.2; parameters as in the official code.

    Example:
        >>> config = AutoencoderConfig(width=8, patch=4, depth=1, heads=1, head_width=8, plane_depth=1)
        >>> network = Autoencoder(config, channels=1, size=(8, 12), frames=5)
        >>> planes = network.encode(torch.zeros(2, 5, 1, 8, 12))
        >>> [tuple(plane.shape) for plane in (planes.xy, planes.yt, planes.xt)]
        [(2, 4, 2, 3), (2, 4, 5, 3), (2, 4, 5, 2)]
        >>> tuple(network.decode(planes).shape)
        (2, 5, 1, 8, 12)
    """

    def __init__(self, config: AutoencoderConfig, *, channels: int, size: tuple[int, int], frames: int):
        super().__init__()
        validate(config)
        check_size(config, size, frames=frames)
        self.config, self.channels, self.size, self.frames = config, channels, size, frames
        self.grid = (size[0] // config.patch, size[1] // config.patch)
        height, width = self.grid
        self.embed = nn.Linear(channels * config.patch**2, config.width)
        self.encoder = Trunk(config, frames=frames, grid=self.grid)
        self.project = nn.ModuleDict(
            {plane: Projection(config, length=n) for plane, n in zip(PLANES, (frames, height, width), strict=True)}
        )
        self.spread = nn.ModuleDict({plane: nn.Linear(config.latent_channels, config.width) for plane in PLANES})
        self.decoder = Trunk(config, frames=frames, grid=self.grid)
        # holds the parameters, one bias per colour; applied as a matrix product
        self.to_pixels = nn.ConvTranspose2d(config.width, channels, config.patch, stride=config.patch)

    @property
    def places(self) -> int:
        """Length of the flat latent."""
        height, width = self.grid
        return height * width + self.frames * (height + width)

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed a second time in the backward pass in place of being kept."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, again: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = again
        for projection in self.project.values():
            projection.checkpointing = again  # type: ignore[assignment]

    def encode(self, video: Video) -> Planes:
        """The latent of clips.

        Args:
            video: in -1 to 1.
        """
        self._check(video)
        (height, width), patch = self.grid, self.config.patch
        # row, column, colour within a patch
        patches = rearrange(video, "b t c (h p) (w q) -> t (b h w) (p q c)", p=patch, q=patch)
        tokens = self.encoder(self.embed(patches))
        tokens = tokens.unflatten(1, (len(video), height, width))  # t b h w
        # collapsed axis first; OFFICIAL: tanh before the planes are used by anything, the decoder too
        xy = self.project["xy"](tokens).movedim(-1, 1)
        yt = self.project["yt"](tokens.movedim(2, 0)).permute(1, 3, 0, 2)
        xt = self.project["xt"](tokens.movedim(3, 0)).permute(1, 3, 0, 2)
        return Planes(xy.contiguous(), yt.contiguous(), xt.contiguous())

    def decode(self, planes: Planes) -> Video:
        """The clips of latents, in -1 to 1."""
        rows = len(planes.xy)
        xy, yt, xt = (
            self.spread[name](getattr(planes, name).movedim(1, -1)) for name in PLANES
        )  # b h w d, b t w d, b t h d
        # OFFICIAL: a sum of three linear maps, which are one map of the concatenated planes of the paper
        tokens = xy + yt.transpose(0, 1)[:, :, None] + xt.transpose(0, 1)[:, :, :, None]
        tokens = self.decoder(tokens.flatten(1, 3))
        patch = self.config.patch
        assert self.to_pixels.bias is not None
        pixels = F.linear(
            tokens, self.to_pixels.weight.flatten(1).T, self.to_pixels.bias.repeat_interleave(patch * patch)
        )
        pixels = 2 * pixels.float().sigmoid() - 1
        height, width = self.grid
        order = "t (b h w) (c p q) -> b t c (h p) (w q)"
        return rearrange(pixels, order, b=rows, h=height, w=width, p=patch, q=patch)

    def split(self, flat: Float[Tensor, "b e l"]) -> Planes:
        """The planes of a flat latent of this network."""
        return split_flat(flat, frames=self.frames, grid=self.grid)

    def _check(self, video: Tensor) -> None:
        wanted = (self.frames, self.channels, *self.size)
        if tuple(video.shape[1:]) != wanted:
            found, made = ("{} frames of {} channels and {}x{} pixels".format(*s) for s in (video.shape[1:], wanted))
            raise ValueError(f"the clip has {found}, this autoencoder was made for {made}.")


class Trunk(nn.Module):
    """Layers of divided space-time attention: over frames at each place, over the places of each frame, feed-forward.

    Tokens are (T, B N, width) with N places; no positions are added, queries and keys are turned by theirs.
    """

    checkpointing: bool = False
    time_cos: Tensor
    time_sin: Tensor
    space_turn: Tensor

    def __init__(self, config: AutoencoderConfig, *, frames: int, grid: tuple[int, int]):
        super().__init__()
        self.layers = nn.ModuleList(TrunkLayer(config) for _ in range(config.depth))
        # axes: frame or place, query or key, head, channel
        time = time_angles(frames, config.head_width)[:, None, None, None]
        space = space_angles(grid, config.head_width)[:, None, None, ::2]
        self.register_buffer("time_cos", time.cos(), persistent=False)
        self.register_buffer("time_sin", time.sin(), persistent=False)
        # two numbers for a complex one, of which casts of a module would keep the real part only
        self.register_buffer("space_turn", torch.stack([space.cos(), space.sin()], dim=-1), persistent=False)

    def forward(self, tokens: Float[Tensor, "t m d"]) -> Float[Tensor, "t m d"]:
        cos, sin, turn = self.time_cos, self.time_sin, torch.view_as_complex(self.space_turn.float())
        frames, places = len(tokens), len(turn)

        def over_time(layer: TrunkLayer, part: Tensor) -> Tensor:
            return layer.time(part, lambda qk: turned_unevenly(qk, cos, sin))

        def over_space(layer: TrunkLayer, part: Tensor) -> Tensor:
            return layer.feed(layer.space(part, lambda qk: turned(qk, turn)))

        def run(layer: TrunkLayer, tokens: Tensor) -> Tensor:
            tokens = in_parts(partial(over_time, layer), tokens, axis=1)
            by_frame = tokens.reshape(-1, places, tokens.shape[2])
            return in_parts(partial(over_space, layer), by_frame, axis=0).view(frames, -1, tokens.shape[2])

        for layer in self.layers:
            tokens = _run(partial(run, layer), tokens, again=self.checkpointing)  # type: ignore[arg-type]
        return tokens


class TrunkLayer(nn.Module):
    """The residual parts of a layer."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        sizes = {"heads": config.heads, "head_width": config.head_width}
        self.time = Attention(config.width, along=0, **sizes)
        self.space = Attention(config.width, along=1, **sizes)
        self.feed = GatedFeedForward(config.width, config.expansion * config.width)


class Projection(nn.Module):
    """A plane of the latent: what a transformer reads out of the lines of tokens along the axis that is collapsed.

    Args:
        config: sizes of its layers.
        length: of a line.

    Source: section 3.2, the projections of its fifth display.
    """

    checkpointing: bool = False

    def __init__(self, config: AutoencoderConfig, *, length: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, config.width))
        self.positions = nn.Parameter(torch.randn(length + 1, 1, config.width))
        self.layers = nn.ModuleList(ProjectionLayer(config) for _ in range(config.plane_depth))
        self.to_latent = nn.Linear(config.width, config.latent_channels)

    def forward(self, lines: Float[Tensor, "n *places d"]) -> Float[Tensor, "*places e"]:
        """The plane, in -1 to 1.

        Args:
            lines: tokens, the collapsed axis first.
        """
        values = _run(partial(in_parts, self._read, axis=1), lines.flatten(1, -2), again=self.checkpointing)
        return values.view(*lines.shape[1:-1], -1)

    def _read(self, lines: Tensor) -> Tensor:
        x = torch.cat([lines, self.token.expand(-1, lines.shape[1], -1)]) + self.positions
        *others, last = self.layers
        for layer in others:
            x = layer.feed(layer.attention(x))  # type: ignore[operator]
        # OFFICIAL: the line's first token is read out, not the learned one, which the others only see
        x = last.feed(last.attention.first(x))  # type: ignore[operator, union-attr]
        return self.to_latent(x).tanh()


class ProjectionLayer(nn.Module):
    """The residual parts of a layer."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.attention = Attention(config.width, heads=config.plane_heads, head_width=config.plane_head_width, along=0)
        self.feed = FeedForward(config.width, config.plane_hidden)


def _run(step: Callable[[Tensor], Tensor], x: Tensor, *, again: bool) -> Tensor:
    """The step's output; `again`: computed a second time in the backward pass in place of being kept."""
    if again and torch.is_grad_enabled():
        return checkpoint(step, x, use_reentrant=False)
    return step(x)


# ---- what can be built


def validate(config: AutoencoderConfig) -> None:
    """Raise ValueError for settings that no autoencoder can be built with."""
    for field in fields(config):
        if getattr(config, field.name) < 1:
            raise ValueError(f"{field.name} is {getattr(config, field.name)}; it must be at least 1.")
    if config.head_width % 4:
        raise ValueError(
            f"head_width is {config.head_width}; it must be a multiple of 4: height and width turn pairs of channels."
        )


def check_size(config: AutoencoderConfig, size: tuple[int, int], *, frames: int) -> None:
    """Raise ValueError unless frames of this height and width are made of whole patches, and there are some."""
    height, width = size
    patch = config.patch
    if frames < 1:
        raise ValueError(f"a clip of {frames} frames cannot be encoded; it needs at least 1.")
    if min(size) < 1 or height % patch or width % patch:
        fitting = "x".join(str(max(1, round(side / patch)) * patch) for side in (width, height))
        raise ValueError(
            f"frames are {width}x{height} pixels, but the autoencoder's patches need sides that are multiples of "
            f"{patch}; try {fitting}."
        )
