# SPDX-License-Identifier: Apache-2.0
"""Attention and feed-forward layers of PVDM's autoencoder, all residual and normalised in front.

Tokens have their width last and the axis that attention runs along first or second; heads are views, never copies.
Queries and keys are turned by angles that grow with their position, so that their products see distances. Hidden here:
the official tables, one of which turns unevenly, and `in_parts`, which keeps what lies between two products in caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Complex64, Float
from torch import Tensor, nn

Turn: TypeAlias = Callable[[Tensor], Tensor]  # of queries and keys, (..., positions or 1, 2, heads, head width)

TOKENS_AT_ONCE = 2048  # on a CPU


class Attention(nn.Module):
    """x + out(attention(norm(x))) along one axis; nothing is causal.

    Args:
        width: of a token.
        heads: their number.
        head_width: of queries, keys and values.
        along: the axis, 0 or 1, of tokens with three axes.
    """

    def __init__(self, width: int, *, heads: int, head_width: int, along: int):
        super().__init__()
        self.heads, self.along = heads, along
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x: Float[Tensor, "m n d"], turn: Turn | None = None) -> Float[Tensor, "m n d"]:
        """The block's output.

        Args:
            x: tokens.
            turn: what happens to queries and keys, (m, n, 2, heads, head width), before they meet.
        """
        qkv = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        qk, v = qkv[..., :2, :, :], qkv[..., 2, :, :]
        if turn is not None:
            qk = turn(qk).to(v.dtype)
        return x + self._meet(qk[..., 0, :, :], qk[..., 1, :, :], v)

    def first(self, x: Float[Tensor, "m n d"]) -> Float[Tensor, "1 n d"]:
        """The output at the first place along axis 0, without the work for the others."""
        tokens = self.norm(x)
        inside = self.to_out.in_features
        of_queries, others = self.to_qkv.weight.split([inside, 2 * inside])
        q = F.linear(tokens[:1], of_queries).unflatten(-1, (self.heads, -1))
        k, v = F.linear(tokens, others).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return x[:1] + self._meet(q, k, v)

    def _meet(self, *qkv: Tensor) -> Tensor:
        # all other axes are batch; the kernel takes any strides
        q, k, v = (each.movedim(self.along, 2) for each in qkv)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).movedim(2, self.along).flatten(-2))


class FeedForward(nn.Module):
    """x + out(gelu(into(norm(x))))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return x + self.out(F.gelu(self.into(self.norm(x))))


class GatedFeedForward(nn.Module):
    """x + out(a * gelu(b)) with a and b the halves of into(norm(x)).

    Source: Shazeer 2020, "GLU variants improve transformer", GEGLU.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, 2 * inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        tokens = self.norm(x)
        # two products: gelu takes several times as long for half of every row as for whole ones
        a, b = (
            F.linear(tokens, weight, bias)
            for weight, bias in zip(self.into.weight.chunk(2), self.into.bias.chunk(2), strict=True)
        )
        return x + self.out(a * F.gelu(b))


def in_parts(step: Callable[[Tensor], Tensor], x: Float[Tensor, "m n d"], *, axis: int) -> Tensor:
    """step(x), for a step that treats every place of an axis alone.

    On a CPU it is done for about TOKENS_AT_ONCE tokens after another: a layer's inner tensors are many times larger
    than x, and memory that does not fit into caches, or is asked for anew each time, costs more than many products.
    """
    tokens = x.shape[0] * x.shape[1]
    size = max(1, x.shape[axis] * TOKENS_AT_ONCE // max(1, tokens))
    if x.device.type != "cpu" or size >= x.shape[axis]:
        return step(x)
    return torch.cat([step(part) for part in x.split(size, dim=axis)], dim=axis)


def turned(x: Float[Tensor, "*n w"], turn: Complex64[Tensor, "*n w/2"]) -> Float[Tensor, "*n w"]:
    """Each pair of channels turned by its angle, as a product of complex numbers.

    Args:
        x: any precision; pairs are neighbours.
        turn: e^(i angle) of every pair, with axes that broadcast.
    """
    return torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turn).flatten(-2)


def turned_unevenly(x: Float[Tensor, "*n w"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*n w"]:
    """Each pair of channels (a, b) as (a cos_0 - b sin_0, b cos_1 + a sin_1): a turn only where both angles are equal.

    Args:
        x: any precision; pairs are neighbours.
        cos: of the angle of every channel, with axes that broadcast.
        sin: likewise.
    """
    x = x.float()
    across = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * 1j).flatten(-2)  # (-b, a)
    return torch.addcmul(x * cos, across, sin)


def time_scales(head_width: int) -> Float[Tensor, " w/2"]:
    """10000^(-2 j / w), radians per frame."""
    return 10_000.0 ** -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)


def space_scales(head_width: int) -> Float[Tensor, " w/4"]:
    """From 1 to 5, evenly spaced in their logarithm: half turns from the middle of a frame to its border."""
    return torch.logspace(0, math.log2(5), head_width // 4, base=2)


def time_angles(frames: int, head_width: int) -> Float[Tensor, "t w"]:
    """The angle of every channel of a head at every frame: its number times `time_scales`, which occur twice.

    OFFICIAL: the second run follows the first as a whole, although pairs are neighbours, so that the two channels of a
    pair have different angles and are not quite turned. Published weights have learned with that.
    """
    return (torch.arange(frames, dtype=torch.float32)[:, None] * time_scales(head_width)).repeat(1, 2)


def space_angles(grid: tuple[int, int], head_width: int) -> Float[Tensor, "n w"]:
    """The angle of every channel of a head at every place, row by row: those of its height, then of its width.

    pi s y with the `space_scales` s, and y from -1 (first row or column) to 1 (last). Each occurs twice, for the two
    channels of a pair.

    Source: the official code; Su et al. 2021, "RoFormer".
    """
    height, width = grid
    rows, columns = (math.pi * torch.linspace(-1, 1, n)[:, None] * space_scales(head_width) for n in grid)
    both = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    return both.flatten(0, 1).repeat_interleave(2, dim=-1)
