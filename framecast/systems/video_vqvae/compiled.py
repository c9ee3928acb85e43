# SPDX-License-Identifier: Apache-2.0
"""The pass over the codes of a row compiled by numba: all layers, attention, the head and the drawing in one call.

With few videos at a time a code's pass is a chain of some sixty small products, and in torch most of its time goes by
between them. Here only weights are waited for: every product runs over its matrix once, in memory's order, eight inputs
at a time into all outputs, which the compiler turns into vector instructions. With more videos, or wide networks,
torch's products of matrices win, see `incremental.SMALL`. Sums are taken in another order than torch takes them and
are equal up to rounding. Compiling takes about six seconds of a core, once per installation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framecast.systems.video_vqvae.cache import Cache, Choice, horizontal_weights, past_taps
from framecast.systems.video_vqvae.pixelcnn import GatedLayer, GatedPixelCNN, Offset


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call, which takes seconds; that is kept on disk for later runs where something can be."""
    try:
        return numba.njit(function, error_model="numpy", nogil=True, cache=True)
    except RuntimeError:  # neither this folder nor the user's can be written to
        return numba.njit(function, error_model="numpy", nogil=True)


class CompiledRows:
    """`cache.Rows` in one compiled call per row, in float32 on a CPU.

    Args:
        network: the prior.
        cache: with nothing in it yet.
    """

    def __init__(self, network: GatedPixelCNN, cache: Cache):
        config, (width, rows), places = network.config, cache.shape, math.prod(network.grid)
        own, others = horizontal_weights(network), _vertical_weights(network)
        each, attentions = (config.heads, config.hidden // config.heads), len(network.attentions)
        self.cache, self.every = cache, config.attention_every or config.layers + 1
        self.own, self.others = (_arrays(*own[:-1], *own.head), _arrays(*others))
        self.residual = config.vertical_residual
        self.taps = tuple(np.array(taps, np.int64).reshape(-1, 3) for taps in _other_taps(network))
        # columns before rows of the batch: all rows go through a product together
        before = np.zeros((config.kernel // 2 + width, rows, config.hidden), np.float32)
        h = np.zeros((config.layers + 1, *before.shape), np.float32)
        # keys with places last, so that the scores of all places are computed side by side
        keys = np.zeros((attentions, rows, *each, places + 1), np.float32)
        values = np.zeros((attentions, rows, each[0], places + 1, each[1]), np.float32)
        nothing = own.nothing.detach().view(attentions, 2, 1, *each).numpy()
        keys[..., 0], values[..., 0, :] = nothing[:, 0], nothing[:, 1]
        self.state = (h, before, keys, values)
        self.planes = (cache.embedded.whole[0].numpy(), cache.v.whole.numpy())
        self.rims = (*cache.embedded.rim, *cache.v.rim)
        self.logits = torch.zeros(width, rows, network.codes)

    def draw(self, t: int, y: int, *, codes: Tensor, uniforms: Tensor, given: int, choice: Choice) -> None:
        """As `cache.Rows` says."""
        ahead = tuple(torch.stack(maps).detach().numpy() for maps in zip(*self.cache.ahead(t, y)))
        drawn, numbers = (array.numpy().T.copy() for array in (codes, uniforms.double()))
        first, maps = _vertical(ahead, (t, y), self.others, self.taps, self.planes, self.rims, self.residual)
        _horizontal(
            first,
            maps,
            (t * self.cache.network.grid[1] + y) * len(first),
            drawn,
            numbers,
            given,
            self.own,
            self.state,
            self.logits.numpy(),
            self.every,
            (float(choice.temperature), choice.top_k, float(choice.top_p)),
        )
        codes.copy_(torch.from_numpy(drawn.T))
        self.cache.keep(t, y, codes, torch.from_numpy(self.state[0])[:-1, -len(drawn) :])


class _Vertical(NamedTuple):
    """The weights that a row takes once; matrices are (in, out)."""

    first_vertical: Tensor  # (taps, hidden, hidden)
    first_horizontal: Tensor  # (taps in other rows, hidden, hidden)
    vertical: Tensor  # (layers, taps in the present step, hidden, R)
    across: Tensor  # (layers, R, R)
    out: Tensor  # (layers - 1, R / 2, hidden)


def _vertical_weights(network: GatedPixelCNN) -> _Vertical:
    layers = cast("list[GatedLayer]", list(network.layers))
    outs = [layer.vertical_out.weight.T for layer in layers if layer.vertical_out is not None]
    empty = layers[0].horizontal_out.weight.new_zeros(0, network.config.residual // 2, network.config.hidden)
    return _Vertical(
        first_vertical=network.first_vertical.weight,
        first_horizontal=network.first_horizontal.weight[: -(network.config.kernel // 2)],
        vertical=torch.stack([layer.vertical.weight[past_taps(layer.vertical) :] for layer in layers]),
        across=torch.stack([layer.across.weight.T for layer in layers]),
        out=torch.stack(outs) if outs else empty,
    )


def _other_taps(network: GatedPixelCNN) -> tuple[Sequence[Offset], Sequence[Offset], Sequence[Offset]]:
    """Where the first three of `_Vertical` are read."""
    vertical = cast("GatedLayer", network.layers[0]).vertical
    above = network.first_horizontal.taps[: -(network.config.kernel // 2)]
    return network.first_vertical.taps, above, vertical.taps[past_taps(vertical) :]


def _arrays(*tensors: Tensor) -> tuple[NDArray[np.float32], ...]:
    return tuple(np.ascontiguousarray(tensor.detach().numpy()) for tensor in tensors)


@numba.njit(error_model="numpy", fastmath={"contract"})
def _add_product(out, x, matrix):
    """out += x @ matrix, for some rows of x and out."""
    eights = x.shape[1] // 8 * 8
    for start in range(0, len(x), 8):  # as many rows of out as stay in a core's first cache
        end = min(start + 8, len(x))
        for k in range(0, eights, 8):
            w_0, w_1, w_2, w_3 = matrix[k], matrix[k + 1], matrix[k + 2], matrix[k + 3]
            w_4, w_5, w_6, w_7 = matrix[k + 4], matrix[k + 5], matrix[k + 6], matrix[k + 7]
            for m in range(start, end):
                to, x_0, x_1, x_2, x_3 = out[m], x[m, k], x[m, k + 1], x[m, k + 2], x[m, k + 3]
                x_4, x_5, x_6, x_7 = x[m, k + 4], x[m, k + 5], x[m, k + 6], x[m, k + 7]
                for j in range(len(to)):
                    to[j] += (
                        x_0 * w_0[j]
                        + x_1 * w_1[j]
                        + x_2 * w_2[j]
                        + x_3 * w_3[j]
                        + (x_4 * w_4[j] + x_5 * w_5[j] + x_6 * w_6[j] + x_7 * w_7[j])
                    )
        for k in range(eights, x.shape[1]):
            w_0 = matrix[k]
            for m in range(start, end):
                to, x_0 = out[m], x[m, k]
                for j in range(len(to)):
                    to[j] += x_0 * w_0[j]


@numba.njit(error_model="numpy")
def _set(out, values):
    for m in range(len(out)):
        for j in range(out.shape[1]):
            out[m, j] = values[m, j]


@numba.njit(error_model="numpy")
def _set_all(out, row):
    for m in range(len(out)):
        for j in range(out.shape[1]):
            out[m, j] = row[j]


@numba.njit(error_model="numpy")
def _set_positive(out, values):
    for m in range(len(out)):
        for j in range(out.shape[1]):
            out[m, j] = max(values[m, j], np.float32(0))


@numba.njit(error_model="numpy", fastmath={"contract"})
def _exponentiate(x, powers):
    """x = exp(x) for numbers from -87 to 88, but for rounding; `powers` are as many int32 to work with.

    exp(x) = 2^n exp(r) with the whole number n nearest to x / log 2, and exp(r) by its Taylor series up to r^7.
    """
    one = np.float32(1)
    for j in range(len(x)):
        n = np.floor(x[j] * np.float32(1.4426950408889634) + np.float32(0.5))
        # log 2 in two parts, of which n times the first is exact
        r = (x[j] - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
        p = np.float32(1 / 5040) * r + np.float32(1 / 720)
        p = p * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(0.5)
        x[j] = (p * r + one) * r + one
        powers[j] = (np.int32(n) + np.int32(127)) << np.int32(23)  # the bits of 2^n
    scale = powers.view(np.float32)
    for j in range(len(x)):
        x[j] *= scale[j]


@numba.njit(error_model="numpy", fastmath={"contract"})
def _gate(maps, gated, powers):
    """gated = tanh of the first half of the maps times the logistic function of the second; maps are spent."""
    half, bound, one = gated.shape[1], np.float32(20), np.float32(1)
    for m in range(len(maps)):
        a, g = maps[m], gated[m]
        for j in range(half):
            a[j] = np.float32(2) * min(max(a[j], -bound), bound)
        for j in range(half, 2 * half):
            a[j] = min(max(-a[j], np.float32(-40)), np.float32(40))
        _exponentiate(a, powers)
        for j in range(half):
            g[j] = (a[j] - one) / ((a[j] + one) * (one + a[half + j]))


@numba.njit(error_model="numpy", fastmath={"contract"})
def _attend(seen, found, keys, values, place, scores, powers):
    """Find what the query, the first third of `seen`, sees in places before; keep the key and the value."""
    heads, width = keys.shape[0], keys.shape[1]
    number = place + 1  # of places to look at, with the one that stands for nothing
    scale = np.float32(1 / math.sqrt(width))
    for head in range(heads):
        score, part = scores[:number], found[head * width : (head + 1) * width]
        for j in range(number):
            score[j] = 0
        for c in range(width):
            q, key = seen[head * width + c] * scale, keys[head, c]
            for j in range(number):
                score[j] += q * key[j]
        largest = score[0]
        for j in range(number):
            largest = max(largest, score[j])
        for j in range(number):
            score[j] = max(score[j] - largest, np.float32(-80))
        _exponentiate(score, powers[:number])
        total = np.float32(0)
        for c in range(width):
            part[c] = 0
        for j in range(number):
            share, value = score[j], values[head, j]
            total += share
            for c in range(width):
                part[c] += share * value[c]
        for c in range(width):
            part[c] /= total
            keys[head, c, number] = seen[(heads + head) * width + c]
            values[head, number, c] = seen[(2 * heads + head) * width + c]


@numba.njit(error_model="numpy")
def _keep(share, number, mass):
    """Set all to zero but the largest, as many as hold that mass, or are so many; returns what they hold."""
    least, kept, held = np.inf, 0, 0.0
    while kept < number and held < mass:  # from the largest value down
        below = -1.0
        for one in share:
            if one < least and one > below:
                below = one
        least = below
        for one in share:
            if one == least:
                kept += 1
                held += one
    for j in range(len(share)):
        if share[j] < least:
            share[j] = 0
    return held


@numba.njit(error_model="numpy")
def _choose(logits, uniform, choice):
    """As `cache.Choice` says."""
    temperature, top_k, top_p = choice
    largest, total, share = logits[0], 0.0, np.empty(len(logits), np.float64)
    for logit in logits:
        largest = max(largest, logit)
    for j in range(len(share)):
        share[j] = math.exp((logits[j] - np.float64(largest)) / temperature)
        total += share[j]
    if 0 < top_k < len(share):
        total = _keep(share, top_k, np.inf)
    if top_p < 1:
        total = _keep(share, len(share), top_p * total)
    passed = 0.0
    for j in range(len(share)):
        passed += share[j]
        if passed > uniform * total:
            return j
    return int(np.argmax(share))  # rounding: the sum, taken in another order, fell short of the total


@_kept
def _vertical(ahead, row, weights, taps, planes, rims, residual):
    """`Cache.vertical` of the row: V goes into the planes, and what H has from elsewhere is returned."""
    first_vertical, first_horizontal, vertical, across, out = weights
    embedded, v = planes
    layers, width, rows, maps = ahead[0].shape
    hidden, size = v.shape[5], width * rows
    early, up, left = row[0] + rims[3], row[1] + rims[4], rims[5]
    first, a_h = np.zeros((size, hidden), np.float32), np.empty((layers, size, maps), np.float32)
    a_v, gated = np.empty((size, maps), np.float32), np.empty((size, maps // 2), np.float32)
    powers, zeros = np.empty(maps, np.int32), np.zeros(hidden, np.float32)
    start = v[0, early, up, left : left + width].reshape(size, hidden)
    _set_all(start, zeros)
    for filled, some, matrices in ((start, taps[0], first_vertical), (first, taps[1], first_horizontal)):
        for i in range(len(some)):
            t, y, x = row[0] + rims[0] + some[i, 0], row[1] + rims[1] + some[i, 1], rims[2] + some[i, 2]
            _add_product(filled, embedded[t, y, x : x + width].reshape(size, hidden), matrices[i])
    for layer in range(layers):
        _set(a_v, ahead[0][layer].reshape(size, maps))
        _set(a_h[layer], ahead[1][layer].reshape(size, maps))
        for i in range(len(taps[2])):
            y, x = up + taps[2][i, 1], left + taps[2][i, 2]
            _add_product(a_v, v[layer, early, y, x : x + width].reshape(size, hidden), vertical[layer, i])
        _add_product(a_h[layer], a_v, across[layer])
        if layer + 1 < layers:
            _gate(a_v, gated, powers)
            after = v[layer + 1, early, up, left : left + width].reshape(size, hidden)
            _set_all(after, zeros)
            if residual:
                _set(after, v[layer, early, up, left : left + width].reshape(size, hidden))
            _add_product(after, gated, out[layer])
    return first.reshape(width, rows, hidden), a_h.reshape(layers, width, rows, maps)


@_kept
def _horizontal(first, maps, at, codes, uniforms, given, weights, state, all_logits, every, choice):
    embedding, first_taps, taps, out, seen_from, place_from, code_to, _, found_to, widen, bias, answer, last = weights
    h, before, keys, values = state
    layers, width, rows = maps.shape[0], maps.shape[1], maps.shape[2]
    hidden, half, places = out.shape[2], out.shape[1], keys.shape[4]
    reach = h.shape[1] - width
    gated, powers = np.empty((rows, half), np.float32), np.empty(max(2 * half, places), np.int32)
    found, wide = np.empty((rows, hidden), np.float32), np.empty((rows, hidden), np.float32)
    active = np.empty((rows, hidden), np.float32)
    seen, scores = np.empty((rows, 3 * hidden), np.float32), np.empty(places, np.float32)
    share, zeros = np.empty((rows, code_to.shape[1]), np.float32), np.zeros(code_to.shape[1], np.float32)
    for x in range(width):
        _set(h[0, reach + x], first[x])
        for i in range(reach):
            _add_product(h[0, reach + x], before[x + i], first_taps[i * hidden : (i + 1) * hidden])
        for layer in range(layers):
            made, after = maps[layer, x], h[layer + 1, reach + x]
            for i in range(reach + 1):
                _add_product(made, h[layer, x + i], taps[layer, i * hidden : (i + 1) * hidden])
            _gate(made, gated, powers[: 2 * half])
            _set(after, h[layer, reach + x])
            _add_product(after, gated, out[layer])
            if (layer + 1) % every == 0:
                i = (layer + 1) // every - 1
                _set_all(seen, place_from[i, at + x])
                _add_product(seen, after, seen_from[i])
                for b in range(rows):
                    _attend(seen[b], found[b], keys[i, b], values[i, b], at + x, scores, powers)
                _add_product(after, found, found_to[i])
        _set_positive(active, h[layers, reach + x])
        _set_all(wide, bias)
        _add_product(wide, active, widen)
        _set_positive(active, wide)
        _set_all(all_logits[x], last)
        _add_product(all_logits[x], active, answer)
        for b in range(rows):
            if x >= given:
                codes[x, b] = _choose(all_logits[x, b], uniforms[x, b], choice)
            for j in range(hidden):
                before[reach + x, b, j] = embedding[codes[x, b], j]
        _set_all(share, zeros)
        _add_product(share, before[reach + x], code_to)  # keys and values hold the code too
        for b in range(rows):
            for i in range(len(keys)):
                heads, each = keys.shape[2], keys.shape[3]
                for head in range(heads):
                    for c in range(each):
                        n = (2 * i * heads + head) * each + c
                        keys[i, b, head, c, at + x + 1] += share[b, n]
                        values[i, b, head, at + x + 1, c] += share[b, n + hidden]
