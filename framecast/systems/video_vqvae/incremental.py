# SPDX-License-Identifier: Apache-2.0
"""Drawing a prior's codes one after another, each at the cost of one place of the network (spec: exact caches).

Every feature is computed once and kept. What a row's codes need that does not depend on that row's own codes is
computed for the whole row, or for several: conditions, taps into past steps, the vertical stack V. What is left for
each code is the horizontal stack's taps within the row, attention and the head (`Rows`; here in torch, in `compiled.py`
by numba). `draw_plainly` is what all this must equal: a whole forward pass per code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from framecast.systems.video_vqvae.pixelcnn import CausalAttention, GatedLayer, GatedPixelCNN, Taps, gate

PLACES_AT_ONCE = 256  # for which what depends on no code of theirs is computed together: enough for fast products
FEW = 6  # videos at a time for which compiled rows are faster than torch's, measured at the size of the preset cpu64


class Drawn(NamedTuple):
    """Codes, (B, T, H, W), and where they were asked for their logits, (B, codes, T, H, W), at temperature 1."""

    codes: Tensor
    logits: Tensor | None


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
        share = F.softmax(logits / self.temperature, dim=-1)
        if 0 < self.top_k < logits.shape[-1]:
            share = share.where(share >= share.topk(self.top_k).values[:, -1:], 0)
        if self.top_p < 1:
            likeliest = share.sort(descending=True).values
            before = likeliest.cumsum(-1) - likeliest
            least = likeliest.where(before < self.top_p * share.sum(-1, keepdim=True), 2).amin(-1, keepdim=True)
            share = share.where(share >= least, 0)
        passed = share.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(passed, uniforms[:, None].double() * passed[:, -1:], right=True)[:, 0]


@torch.no_grad()
def draw(
    network: GatedPixelCNN,
    condition: Float[Tensor, "b c t h w"],
    uniforms: Float[Tensor, "b t h w"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    given: Int64[Tensor, "b t h w"] | None = None,
    start: int = 0,
    keep_logits: bool = False,
) -> Drawn:
    """Codes of the whole grid, drawn in raster order; dropout is off.

    Args:
        network: the prior.
        condition: features of every place.
        uniforms: numbers from 0 to below 1, one per code; equal ones give equal codes, whatever else is in the batch.
        temperature, top_k, top_p: how a code is drawn from its logits, see `Choice`.
        given: codes of which the first `start` in raster order are kept.
        start: how many codes are given.
        keep_logits: return them too.

    Raises:
        ValueError: tensors of another grid, or a choice that nothing can be drawn by.

    Example:
        >>> from framecast.systems.video_vqvae.config import PriorConfig
        >>> config = PriorConfig(hidden=8, residual=16, layers=2, attention_every=1, heads=2)
        >>> network = GatedPixelCNN(config, grid=(1, 2, 2), codes=10, condition=6, past=0, vertical="full")
        >>> draw(network, torch.zeros(1, 6, 1, 2, 2), torch.tensor([0.05, 0.95, 0.35, 0.55]).view(1, 1, 2, 2)).codes
        tensor([[[[0, 9],
                  [3, 5]]]])
    """
    choice = Choice(temperature, top_k, top_p)
    codes = _start(network, condition, uniforms, choice=choice, given=given, start=start)
    rows, grid = len(codes), network.grid
    row = fastest(network, Cache(network, condition))
    logits = condition.new_empty(rows, *grid, network.codes) if keep_logits else None
    for t, y in [(t, y) for t in range(grid[0]) for y in range(grid[1])]:
        kept = min(max(start - (t * grid[1] + y) * grid[2], 0), grid[2])
        row.draw(t, y, codes=codes[:, t, y], uniforms=uniforms[:, t, y], given=kept, choice=choice)
        if logits is not None:
            logits[:, t, y] = row.logits.transpose(0, 1)
    return Drawn(codes, None if logits is None else logits.movedim(-1, 1))


@torch.no_grad()
def draw_plainly(
    network: GatedPixelCNN,
    condition: Float[Tensor, "b c t h w"],
    uniforms: Float[Tensor, "b t h w"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    given: Int64[Tensor, "b t h w"] | None = None,
    start: int = 0,
    keep_logits: bool = False,
) -> Drawn:
    """What `draw` gives, by a forward pass over the whole grid for every code."""
    choice = Choice(temperature, top_k, top_p)
    codes = _start(network, condition, uniforms, choice=choice, given=given, start=start)
    training = network.training
    network.eval()
    for i in range(start, codes[0].numel()):
        t, y, x = (int(axis) for axis in torch.unravel_index(torch.tensor(i), network.grid))
        codes[:, t, y, x] = choice(network(codes, condition)[..., t, y, x], uniforms[:, t, y, x])
    logits = network(codes, condition) if keep_logits else None
    network.train(training)
    return Drawn(codes, logits)


def _start(
    network: GatedPixelCNN, condition: Tensor, uniforms: Tensor, *, choice: Choice, given: Tensor | None, start: int
) -> Tensor:
    """Codes to begin with: what is given, and zeros."""
    codes = torch.zeros(len(uniforms), *network.grid, dtype=torch.int64, device=condition.device)
    network.check(uniforms, condition)
    if choice.temperature <= 0:
        raise ValueError(f"the temperature is {choice.temperature:g}; it must be above 0 (near 0: the likeliest code).")
    if choice.top_k < 0 or not 0 < choice.top_p <= 1:
        raise ValueError(
            f"codes cannot be drawn with top_k {choice.top_k} and top_p {choice.top_p:g}; they must be"
            " at least 0, and above 0 and at most 1."
        )
    if start:
        places = codes[0].numel()
        if given is None or given.shape != codes.shape or not 0 < start <= places:
            seen = "nothing is given" if given is None else f"what is given has shape {tuple(given.shape)}"
            raise ValueError(
                f"{start} codes are to be kept, but {seen}; it must be {tuple(codes.shape)}, and at most {places} codes"
                " are kept."
            )
        codes.flatten(1)[:, :start] = given.flatten(1)[:, :start]
    return codes


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


def fastest(network: GatedPixelCNN, cache: Cache) -> Rows:
    """Compiled rows where they can be had and win: numba is there, few videos are drawn, in float32, on a CPU."""
    like = network.embedding.weight
    if cache.shape[1] > FEW or like.dtype != torch.float32 or like.device.type != "cpu" or not find_spec("numba"):
        return TorchRows(network, cache)
    from framecast.systems.video_vqvae.compiled import CompiledRows  # takes a while to load

    return CompiledRows(network, cache)


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


class TorchRows:
    """`Rows` in torch, four calls for a layer and a code.

    Args:
        network: the prior.
        cache: with nothing in it yet.
    """

    def __init__(self, network: GatedPixelCNN, cache: Cache):
        config, (width, rows) = network.config, cache.shape
        self.cache, self.weights, self.every = cache, horizontal_weights(network), config.attention_every
        like = network.embedding.weight
        self.reach, self.heads = config.kernel // 2, config.heads
        padded = like.new_zeros(config.layers + 1, rows, self.reach + width, config.hidden)
        self.h = padded[:-1, :, self.reach :].transpose(1, 2)
        self.logits = like.new_zeros(width, rows, network.codes)
        self.embedded = like.new_zeros(rows, self.reach + width, config.hidden)
        each = (config.heads, config.hidden // config.heads)
        # keys and values
        self.kept = like.new_zeros(len(network.attentions), 2, rows, each[0], math.prod(network.grid) + 1, each[1])
        self.kept[..., 0, :] = self.weights.nothing.view(len(self.kept), 2, 1, *each)
        self.made = like.new_zeros(rows, len(self.kept), 2 * config.hidden)  # the present place's
        # views, made once: what a layer reads for a column, and where the column itself is
        self.windows = [[layer[:, x : x + self.reach + 1].flatten(1) for layer in padded[:-1]] for x in range(width)]
        self.columns = [[layer[:, self.reach + x] for layer in padded] for x in range(width)]

    def draw(self, t: int, y: int, *, codes: Tensor, uniforms: Tensor, given: int, choice: Choice) -> None:
        weights, reach = self.weights, self.reach
        first, maps = self.cache.vertical(t, y)
        at = (t * self.cache.network.grid[1] + y) * len(first)
        matrix, bias, last, last_bias = weights.head
        for x, (windows, columns) in enumerate(zip(self.windows, self.columns, strict=True)):
            torch.addmm(first[x], self.embedded[:, x : x + reach].flatten(1), weights.first, out=columns[0])
            self._layers(windows, columns, [row[x] for row in maps], at + x)
            hidden = torch.addmm(bias, F.relu(columns[-1]), matrix).relu_()
            torch.addmm(last_bias, hidden, last, out=self.logits[x])
            if x >= given:
                codes[:, x] = choice(self.logits[x], uniforms[:, x])
            self.embedded[:, reach + x] = embedded = F.embedding(codes[:, x], weights.embedding)
            if len(self.kept):
                self.made += (embedded @ weights.code).view_as(self.made)
                self.kept[..., at + x + 1, :] = (
                    self.made.transpose(0, 1).unflatten(-1, (2, self.heads, -1)).transpose(1, 2)
                )
        self.cache.keep(t, y, codes, self.h)

    def _layers(self, windows: list[Tensor], columns: list[Tensor], maps: Sequence[Tensor], place: int) -> None:
        """The horizontal stack of a column through all layers; keys and values are kept but for the code's share."""
        weights, half = self.weights, maps[0].shape[1] // 2
        layers = zip(windows, maps, weights.taps, weights.out, columns[:-1], columns[1:], strict=True)
        for i, (window, elsewhere, taps, out, before, after) in enumerate(layers):
            a = elsewhere.addmm_(window, taps)
            a[:, :half].tanh_()
            torch.addmm(before, F.glu(a), out, out=after)  # glu: one half times the logistic function of the other
            if self.every and (i + 1) % self.every == 0:
                self._attend(after, (i + 1) // self.every - 1, place)

    def _attend(self, h: Tensor, i: int, place: int) -> None:
        """Add to H what attention finds in earlier places."""
        weights, kept = self.weights, self.kept[i]
        seen = torch.addmm(weights.place[i, place], h, weights.seen[i])
        query, self.made[:, i] = seen[:, None, : h.shape[1]], seen[:, h.shape[1] :]
        query = query.unflatten(2, (self.heads, -1)).transpose(1, 2)
        found = F.scaled_dot_product_attention(query, kept[0, :, :, : place + 1], kept[1, :, :, : place + 1])
        h.addmm_(found.flatten(1), weights.found[i])
