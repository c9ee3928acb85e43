# SPDX-License-Identifier: Apache-2.0
"""Drawing a prior's codes one after another, each at the cost of one place of the network.

`cache.py` keeps what is known of earlier rows; here a row is drawn in torch, in `compiled.py` by numba. `draw_plainly`
is what all this must equal: a whole forward pass for every code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from framecast.systems.video_vqvae.cache import Cache, Choice, Rows, horizontal_weights
from framecast.systems.video_vqvae.pixelcnn import GatedPixelCNN

# Weights of a layer times videos at a time, up to which compiled rows are faster than torch's: what torch loses between
# calls then weighs more than its faster products. Measured: 4 videos at the size of cpu64, 16 at that of tiny64, and
# none at the published one.
SMALL = 2_500_000


class Drawn(NamedTuple):
    """Codes, (B, T, H, W), and where they were asked for their logits, (B, codes, T, H, W), at temperature 1."""

    codes: Tensor
    logits: Tensor | None


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


def fastest(network: GatedPixelCNN, cache: Cache) -> Rows:
    """Compiled rows where they can be had and win: with numba, in float32, on a CPU, for little work at a time."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    small = weights / network.config.layers * cache.shape[1] <= SMALL
    like = network.embedding.weight
    if not small or like.dtype != torch.float32 or like.device.type != "cpu" or not find_spec("numba"):
        return TorchRows(network, cache)
    from framecast.systems.video_vqvae.compiled import CompiledRows  # takes a while to load

    return CompiledRows(network, cache)


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
