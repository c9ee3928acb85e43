# SPDX-License-Identifier: Apache-2.0
"""What is kept while a prior's codes are drawn, and what a row of codes has from it before its own are known.

Every feature is computed once (exact caches). What a row's codes need that does not depend on that row's own codes is
computed for the whole row, or for several: conditions, taps into past steps, the vertical stack V. What is left for
each code, the horizontal stack's taps within the row, attention and the head, is the business of `Rows`: in torch in
`incremental.py`, by numba in `compiled.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from framecast.systems.video_vqvae.pixelcnn import CausalAttention, GatedLayer, GatedPixelCNN, Taps, gate

PLACES_AT_ONCE = 256  # for which what depends on no code of theirs is computed together: enough for fast products


class Choice(NamedTuple):
    """How a code is drawn from its logits.

    Args:
        temperature: that logits are divided by, above 0.
        top_k: only so many likeliest codes are drawn from; 0: all.
        top_p: only the likeliest codes that hold this share of probability.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, logits: Float[Tensor, "b k"], uniforms: Float[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """The code at which the summed probabilities, in the order of codes, pass the uniform number."""
        share = F.softmax(logits.double() / self.temperature, dim=-1)
        if 0 < self.top_k < logits.shape[-1]:
            share = share.where(share >= share.topk(self.top_k).values[:, -1:], 0)
        if self.top_p < 1:
            likeliest = share.sort(descending=True).values
            before = likeliest.cumsum(-1) - likeliest
            least = likeliest.where(before < self.top_p * share.sum(-1, keepdim=True), 2).amin(-1, keepdim=True)
            share = share.where(share >= least, 0)
        passed = share.cumsum(-1)
        return torch.searchsorted(passed, uniforms[:, None].double() * passed[:, -1:], right=True)[:, 0]


class Rows(Protocol):
    """What draws row after row in raster order; `logits` are those of the last one, (columns, B, codes)."""

    logits: Tensor

    def draw(self, t: int, y: int, *, codes: Tensor, uniforms: Tensor, given: int, choice: Choice) -> None:
        """Fill in the codes of a row.

        Args:
            t: its step.
            y: its number in the step.
            codes: the row's, (B, columns); those before column `given` are kept, the others drawn.
            uniforms: (B, columns).
            given: how many of the codes are.
            choice: how a code is drawn from its logits.
        """


class Padded:
    """Features of all places so far with zeros around them: what convolutions read.

    Columns come before rows of the batch, so that a row of places, from any column on, is one matrix as it lies there.

    Args:
        like: gives type and device.
        shape: layers, steps, rows, columns, rows of the batch, channels.
        readers: the convolutions that will read.
    """

    def __init__(self, like: Tensor, shape: Sequence[int], readers: Sequence[Taps]):
        self.rim = [max(max(sides) for sides in axis) for axis in zip(*(reader.rim for reader in readers), strict=True)]
        (early, up, left), (layers, steps, height, width, rows, channels) = self.rim, shape
        self.whole = like.new_zeros(layers, steps + early, height + 2 * up, width + 2 * left, rows, channels)
        self.inside = self.whole[:, early:, up : up + height, left : left + width]

    def convolve(
        self, taps: Taps, some: slice, t: int, y: int, *, add: Tensor | None = None, layer: int = 0, rows: int = 1
    ) -> Float[Tensor, "rows w b c"]:
        """Some of a convolution's taps at all places of rows from y on; what they are added to is spent."""
        early, up, left = self.rim
        width = self.inside.shape[3]
        if add is None:
            add = self.whole.new_zeros(rows, width, self.whole.shape[4], taps.weight.shape[2])
        for (dt, dy, dx), matrix in zip(taps.taps[some], taps.weight[some]):
            if t + dt >= 0 and y + rows - 1 + dy >= 0:  # else all are zeros
                read = self.whole[
                    layer, early + t + dt, up + y + dy : up + y + dy + rows, left + dx : left + dx + width
                ]
                add.view(-1, add.shape[-1]).addmm_(read.flatten(0, 2), matrix)
        return add


class Cache:
    """Everything that is known of earlier rows, and what a row has from it before its own codes are known."""

    def __init__(self, network: GatedPixelCNN, condition: Tensor):
        self.network = network
        self.layers = cast("list[GatedLayer]", list(network.layers))
        self.condition = condition.permute(2, 3, 4, 0, 1).contiguous()
        self.shape = self.condition.shape[2:4]  # columns, rows of the batch
        places = (*self.condition.shape[:4], network.config.hidden)
        like = network.embedding.weight
        self.embedded = Padded(like, (1, *places), [network.first_vertical, network.first_horizontal])
        self.v = Padded(like, (len(self.layers), *places), [self.layers[0].vertical])
        self.h = Padded(like, (len(self.layers), *places), [self.layers[0].horizontal]) if network.past else None
        self.rows_ahead = -(-PLACES_AT_ONCE // math.prod(self.shape))
        self.maps: list[tuple[Tensor, Tensor]] = []

    def ahead(self, t: int, y: int) -> list[tuple[Tensor, Tensor]]:
        """For each layer what a row's maps of V and of H have from conditions and past steps, (columns, B, R)."""
        if y % self.rows_ahead == 0:
            self.maps = [self._ahead(i, t, slice(y, y + self.rows_ahead)) for i in range(len(self.layers))]
        return [(c_v[y % self.rows_ahead], c_h[y % self.rows_ahead]) for c_v, c_h in self.maps]

    def _ahead(self, i: int, t: int, some: slice) -> tuple[Tensor, Tensor]:
        layer = self.layers[i]
        matrices, biases = layer.condition.weight.chunk(2), layer.condition.bias.chunk(2)
        c_v, c_h = (F.linear(self.condition[t, some], *both) for both in zip(matrices, biases, strict=True))
        if t and self.h is not None:
            for taps, c, stack in ((layer.vertical, c_v, self.v), (layer.horizontal, c_h, self.h)):
                stack.convolve(taps, slice(0, past_taps(taps)), t, some.start, add=c, layer=i, rows=len(c))
        return c_v, c_h

    def vertical(self, t: int, y: int) -> tuple[Tensor, list[Tensor]]:
        """Compute V of a row.

        Returns:
            what the first convolution into H has from other rows, (columns, B, hidden);
            for each layer what the maps of H have from elsewhere, (columns, B, R).
        """
        network = self.network
        v = self.embedded.convolve(network.first_vertical, slice(None), t, y)
        others = slice(0, -(network.config.kernel // 2))  # all but those in the row itself
        first = self.embedded.convolve(network.first_horizontal, others, t, y)
        maps = []
        for i, (layer, (c_v, c_h)) in enumerate(zip(self.layers, self.ahead(t, y), strict=True)):
            self.v.inside[i, t, y] = v[0]
            a_v = self.v.convolve(layer.vertical, slice(past_taps(layer.vertical), None), t, y, add=c_v[None], layer=i)
            maps.append(c_h.view(-1, c_h.shape[-1]).addmm_(a_v.flatten(0, 2), layer.across.weight.T).view_as(c_h))
            if layer.vertical_out is not None:
                branch = layer.vertical_out(gate(a_v))
                v = v + branch if layer.vertical_residual else branch
        return first[0], maps

    def keep(self, t: int, y: int, codes: Int64[Tensor, "b w"], h: Float[Tensor, "layers w b hidden"]) -> None:
        """Remember a finished row: its codes, and H before every layer."""
        self.embedded.inside[0, t, y] = self.network.embedding(codes.T)
        if self.h is not None:
            self.h.inside[:, t, y] = h


def past_taps(taps: Taps) -> int:
    """How many of a convolution's taps, the first ones, read past steps."""
    return sum(dt < 0 for dt, _, _ in taps.taps)


class Horizontal(NamedTuple):
    """The weights of a code's own pass, those of all layers together; matrices are (in, out)."""

    embedding: Tensor  # (codes, hidden)
    first: Tensor  # (reach x hidden, hidden), from the left; reach is the number of places to the left that are read
    taps: Tensor  # (layers, (reach + 1) x hidden, residual)
    out: Tensor  # (layers, residual / 2, hidden)
    seen: Tensor  # (attentions, hidden, 3 hidden): what query, key and value make of H
    place: Tensor  # (attentions, places, 3 hidden): … of where it is, with their biases
    code: Tensor  # (hidden, attentions x 2 hidden): what keys and values make of the code
    nothing: Tensor  # (attentions, 2 hidden)
    found: Tensor  # (attentions, hidden, hidden)
    head: tuple[Tensor, Tensor, Tensor, Tensor]  # matrix, bias, matrix, bias


def horizontal_weights(network: GatedPixelCNN) -> Horizontal:
    """A network's weights in the order in which a code's own pass reads them."""
    reach, hidden = network.config.kernel // 2, network.config.hidden
    layers = cast("list[GatedLayer]", list(network.layers))
    attentions = cast("list[CausalAttention]", list(network.attentions))
    widen, answer = cast("list[nn.Linear]", [network.head[1], network.head[3]])
    like, axes = network.embedding.weight, network.coordinates.flatten(0, 2)

    def stacked(tensors: list[Tensor], *empty: int) -> Tensor:
        return torch.stack(tensors).contiguous() if tensors else like.new_zeros(0, *empty)

    def place(attention: CausalAttention) -> Tensor:
        both = [(attention.query.weight[:, hidden:], attention.query.bias)]
        key_value = attention.key_value.weight[:, hidden : hidden + axes.shape[1]]
        both.append((key_value, attention.key_value.bias))
        return torch.cat([F.linear(axes.to(like.dtype), weight, bias) for weight, bias in both], dim=-1)

    return Horizontal(
        embedding=like,
        first=network.first_horizontal.weight[-reach:].flatten(0, 1),
        taps=stacked([layer.horizontal.weight[-reach - 1 :].flatten(0, 1) for layer in layers]),
        out=stacked([layer.horizontal_out.weight.T for layer in layers]),
        seen=stacked(
            [torch.cat([a.query.weight[:, :hidden], a.key_value.weight[:, :hidden]]).T for a in attentions],
            hidden,
            3 * hidden,
        ),
        place=stacked([place(attention) for attention in attentions], len(axes), 3 * hidden),
        code=torch.cat([like.new_zeros(hidden, 0), *(a.key_value.weight[:, -hidden:].T for a in attentions)], dim=1),
        nothing=stacked([attention.nothing for attention in attentions], 2 * hidden),
        found=stacked([attention.out.weight.T for attention in attentions], hidden, hidden),
        head=(widen.weight.T.contiguous(), widen.bias, answer.weight.T.contiguous(), answer.bias),
    )
