# SPDX-License-Identifier: Apache-2.0
"""The priors' network: a gated PixelCNN in time and space with attention. Paper section 3.2 and table 4.

What a place may see is written as lists of taps (`Offsets`). A convolution has a weight for each tap on its list and
none for any other place, so there is no mask that could be lost. Inside, axes are B, T, H, W, C, and a convolution is
one matrix product over the taps laid side by side. Raster order: t outermost, then y, then x. V, the vertical stack,
sees past steps and the rows above; H, the horizontal one, the codes to the left as well; attention, added to H alone,
every earlier code. `incremental.py` draws codes with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framecast.systems.video_vqvae.config import PriorConfig

Offset: TypeAlias = tuple[int, int, int]  # dt, dy, dx
Grid: TypeAlias = tuple[int, int, int]  # steps, rows, columns
Plane: TypeAlias = Float[Tensor, "b t h w c"]


class Offsets(NamedTuple):
    """Taps of the four kinds of convolution; past steps first, then rows above, then the row itself from the left."""

    first_vertical: list[Offset]
    first_horizontal: list[Offset]
    vertical: list[Offset]
    horizontal: list[Offset]


def offsets(kernel: int, *, past: int, vertical: Literal["plane", "full"]) -> Offsets:
    """The places that each kind of convolution reads, relative to the one it writes.

    Args:
        kernel: side, an odd number.
        past: earlier steps that are read, with all of the kernel's rows and columns: they are known as a whole.
        vertical: "plane": the vertical stack reads its own column only, "full": all columns of the kernel.

    Example:
        >>> [len(taps) for taps in offsets(3, past=1, vertical="plane")]
        [12, 13, 5, 5]
    """
    side = range(-(kernel // 2), kernel // 2 + 1)
    steps, before = range(-past, 0), range(-(kernel // 2), 0)
    wide = side if vertical == "full" else (0,)
    above = [*product(steps, side, side), *product((0,), before, side)]
    return Offsets(
        first_vertical=above,
        first_horizontal=[*above, *product((0,), (0,), before)],
        vertical=[*product(steps, side, wide), *product((0,), (*before, 0), wide)],
        horizontal=[*product(steps, (0,), side), *product((0,), (0,), (*before, 0))],
    )


class Taps(nn.Module):
    """A convolution, without bias, that reads the listed places; beyond the border there are zeros.

    Args:
        taps: the places, relative to the one that is written.
        before: channels in.
        after: channels out.
    """

    def __init__(self, taps: Sequence[Offset], before: int, after: int):
        super().__init__()
        self.taps = tuple(taps)
        self.weight = nn.Parameter(torch.empty(len(self.taps), before, after))
        nn.init.normal_(self.weight, std=(len(self.taps) * before) ** -0.5)  # the fan-in of taps that there are
        # (before, after) for each of t, y, x
        self.rim = [(max(0, -min(axis)), max(0, max(axis))) for axis in zip(*self.taps, strict=True)]

    def forward(self, x: Plane, add: Plane | None = None) -> Plane:
        """The sum over taps, to which `add` is added."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # once, where each tap's copy would be
        _, steps, height, width, _ = x.shape
        (early, late), (up, down), (left, right) = self.rim
        x = F.pad(x, (0, 0, left, right, up, down, early, late))
        side_by_side = torch.cat(
            [
                x[:, early + dt : early + dt + steps, up + dy : up + dy + height, left + dx : left + dx + width]
                for dt, dy, dx in self.taps
            ],
            dim=-1,
        )
        weight = self.weight.flatten(0, 1)
        if add is None:
            return side_by_side @ weight
        return torch.addmm(add.flatten(0, 3), side_by_side.flatten(0, 3), weight).unflatten(
            0, x.shape[:1] + add.shape[1:4]
        )


class GatedLayer(nn.Module):
    """One layer of both stacks.

    a_V = W_v V + C_v h + b_v, a_H = W_h H + L a_V + C_h h + b_h, then V + O_v gate(a_V) and H + O_h gate(a_H).

    Args:
        config: the network's settings.
        places: what the convolutions read.
        condition: channels of h.
        last: nothing reads V after the last layer, so it has no O_v.
    """

    def __init__(self, config: PriorConfig, places: Offsets, *, condition: int, last: bool):
        super().__init__()
        hidden, maps = config.hidden, config.residual
        self.vertical = Taps(places.vertical, hidden, maps)
        self.horizontal = Taps(places.horizontal, hidden, maps)
        self.across = matrix(maps, maps, bias=False)  # L
        self.condition = matrix(condition, 2 * maps)  # C_v and C_h, with both biases
        scale = config.layers**-0.5  # so that the sum over all layers is of the size of one
        self.horizontal_out = matrix(maps // 2, hidden, bias=False, scale=scale)
        scale = scale if config.vertical_residual else 1
        self.vertical_out = None if last else matrix(maps // 2, hidden, bias=False, scale=scale)
        self.dropout, self.vertical_residual = config.dropout, config.vertical_residual

    def forward(self, v: Plane, h: Plane, condition: Plane) -> tuple[Plane, Plane]:
        """V and H after the layer."""
        c_v, c_h = self.condition(condition).chunk(2, dim=-1)
        a_v = self.vertical(v, c_v)
        a_h = self.horizontal(h, c_h) + self.across(a_v)
        if self.vertical_out is not None:
            branch = self.vertical_out(gate(a_v))
            v = v + branch if self.vertical_residual else branch
        return v, h + F.dropout(self.horizontal_out(gate(a_h)), self.dropout, self.training)


def gate(a: Tensor) -> Tensor:
    """Van den Oord et al. (2016), equation 2: tanh of one half of the maps times the logistic function of the other."""
    value, share = a.chunk(2, dim=-1)
    return torch.tanh(value) * torch.sigmoid(share)


class CausalAttention(nn.Module):
    """Every place attends to all earlier ones: what H says there, where that is, and the code itself.

    Keys and values hold the code of their own place, so a query may only use those strictly before it. All are moved
    one place on, behind a learned one that stands for nothing: the usual inclusive mask then is the strict one, and no
    query is left without a key.

    Args:
        config: the network's settings.
        axes: coordinates of a place.
    """

    def __init__(self, config: PriorConfig, *, axes: int):
        super().__init__()
        hidden = config.hidden
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query = matrix(hidden + axes, hidden)
        self.key_value = matrix(2 * hidden + axes, 2 * hidden)
        self.nothing = nn.Parameter(torch.randn(2 * hidden) * 0.1)
        self.out = matrix(hidden, hidden, bias=False, scale=config.layers**-0.5)

    def forward(self, h: Plane, coordinates: Float[Tensor, "t h w axes"], embedded: Plane) -> Plane:
        """H with what was attended to added."""
        seen = torch.cat([h, coordinates.to(h.dtype).expand(len(h), -1, -1, -1, -1), embedded.to(h.dtype)], dim=-1)
        seen = seen.flatten(1, 3)
        query = self.query(seen[..., : self.query.in_features])
        key_value = self.key_value(seen)
        nothing = self.nothing.to(key_value.dtype).expand(len(h), 1, -1)
        key, value = torch.cat([nothing, key_value[:, :-1]], dim=1).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return h + self.out(found.transpose(1, 2).flatten(2)).reshape(h.shape)


class GatedPixelCNN(nn.Module):
    """Logits of every code given those before it in raster order and a condition.

    Args:
        config: the network's settings.
        grid: steps, rows and columns of the codes.
        codes: how many different ones there are.
        condition: channels of what is given.
        past: earlier steps that a convolution reads.
        vertical: "plane": the vertical stack's kernels lie in time and y, as published for the top; "full": they
            extend in x too.

    Raises:
        ValueError: settings that no such network can be built with.

    Source: paper section 3.2 and table 4; van den Oord et al. (2016), "Conditional Image Generation with PixelCNN
    Decoders"; attention after Chen et al. (2018), "PixelSNAIL".

    Example:
        >>> config = PriorConfig(hidden=8, residual=16, layers=2, attention_every=1, heads=2)
        >>> network = GatedPixelCNN(config, grid=(3, 4, 4), codes=10, condition=6, past=1, vertical="plane")
        >>> network(torch.zeros(2, 3, 4, 4, dtype=torch.int64), torch.zeros(2, 6, 3, 4, 4)).shape
        torch.Size([2, 10, 3, 4, 4])
    """

    checkpointing: bool = False  # recompute layers in the backward pass; set by the training stage
    coordinates: Tensor

    def __init__(
        self,
        config: PriorConfig,
        *,
        grid: Grid,
        codes: int,
        condition: int,
        past: int,
        vertical: Literal["plane", "full"],
    ):
        super().__init__()
        validate(config)
        self.config, self.grid, self.codes, self.past = config, grid, codes, past
        places = offsets(config.kernel, past=past, vertical=vertical)
        hidden, count = config.hidden, config.layers
        self.embedding = nn.Embedding(codes, hidden)
        self.first_vertical = Taps(places.first_vertical, hidden, hidden)
        self.first_horizontal = Taps(places.first_horizontal, hidden, hidden)
        self.layers = nn.ModuleList(
            GatedLayer(config, places, condition=condition, last=i + 1 == count) for i in range(count)
        )
        self.register_buffer("coordinates", coordinates(grid), persistent=False)
        attentions = count // config.attention_every if config.attention_every else 0
        self.attentions = nn.ModuleList(
            CausalAttention(config, axes=self.coordinates.shape[-1]) for _ in range(attentions)
        )
        self.head = nn.Sequential(nn.ReLU(), matrix(hidden, hidden), nn.ReLU(), matrix(hidden, codes, scale=0))

    def attention_after(self, layer: int) -> CausalAttention | None:
        """What follows the layer of that number, which is counted from 0."""
        every = self.config.attention_every
        if not every or (layer + 1) % every:
            return None
        return self.attentions[(layer + 1) // every - 1]  # type: ignore[return-value]

    def forward(self, codes: Int64[Tensor, "b t h w"], condition: Float[Tensor, "b c t h w"]) -> Tensor:
        """Logits (B, codes, T, H, W), at least float32; those of a place depend on no code there or later.

        Args:
            codes: of the whole grid.
            condition: features of every place.

        Raises:
            ValueError: codes or a condition of another size.
        """
        self.check(codes, condition)
        given = condition.permute(0, 2, 3, 4, 1).contiguous()
        embedded = self.embedding(codes)
        v, h = self.first_vertical(embedded), self.first_horizontal(embedded)
        for i, layer in enumerate(self.layers):
            v, h = self._run(layer, v, h, given)
            attention = self.attention_after(i)
            if attention is not None:
                h = self._run(attention, h, self.coordinates, embedded)
        # under autocast they would be rounded to bfloat16, which is coarser than what tells likely codes apart
        with torch.autocast(h.device.type, enabled=False):
            logits = self.head(h.to(embedded.dtype)).movedim(-1, 1)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _run(self, part: nn.Module, *tensors: Tensor) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *tensors, use_reentrant=False)
        return part(*tensors)

    def check(self, codes: Tensor, condition: Tensor) -> None:
        """Raise where codes or condition are not those of this network's grid."""
        width = self.layers[0].condition.in_features  # type: ignore[union-attr]
        if tuple(codes.shape[1:]) != self.grid:
            raise ValueError(
                f"this prior draws {' x '.join(map(str, self.grid))} codes (steps, rows, columns), but was given "
                f"{' x '.join(map(str, codes.shape[1:]))}."
            )
        if tuple(condition.shape) != (len(codes), width, *self.grid):
            raise ValueError(
                f"this prior reads a condition of shape {(len(codes), width, *self.grid)}, but was given "
                f"{tuple(condition.shape)}."
            )


def matrix(before: int, after: int, *, bias: bool = True, scale: float = 1) -> nn.Linear:
    """A 1x1x1 convolution on channels that come last; its bias starts at 0, its weights so that variance is kept."""
    linear = nn.Linear(before, after, bias=bias)
    nn.init.normal_(linear.weight, std=scale * before**-0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def coordinates(grid: Grid) -> Float[Tensor, "t h w axes"]:
    """Where a place is, from -1 to 1 along each axis that has more than one place."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in grid), indexing="ij")
    used = [axis for axis, size in zip(axes, grid, strict=True) if size > 1]
    return torch.stack(used, dim=-1) if used else torch.zeros(*grid, 0)


def validate(config: PriorConfig) -> None:
    """Raise where no network can be built with these settings."""
    if min(config.hidden, config.heads) < 1 or config.attention_every < 0:
        raise ValueError(
            f"a prior has hidden {config.hidden}, heads {config.heads}, attention_every {config.attention_every}; the "
            "first two must be at least 1, the last at least 0 (no attention)."
        )
    if config.hidden % config.heads:
        raise ValueError(
            f"{config.hidden} hidden channels of a prior cannot be shared by {config.heads} heads: they must divide."
        )
    if config.residual % 2 or config.residual < 2:
        raise ValueError(f"a prior's residual is {config.residual}; its gate halves it, so it must be an even number.")
    if config.kernel % 2 == 0 or config.kernel < 3:
        raise ValueError(f"a prior's kernel is {config.kernel}; it must be an odd number, at least 3.")
    if config.layers < 1:
        raise ValueError(f"a prior's layers are {config.layers}; there must be at least 1.")
