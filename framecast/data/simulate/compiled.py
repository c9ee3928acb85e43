# SPDX-License-Identifier: Apache-2.0
"""The lattice-Boltzmann method compiled by numba: one pass over the moments per tick, collision and travel fused.

A row's populations live while the rows beside it travel, in a ring of three rows that stays in a core's first cache;
flows are advanced one after the other, so that a flow's moments stay in its second. Sums and products are those of
`vectorised.py` in the same order, nothing is fused or reordered: both give the same bits, alone or in a batch.
The fields of a row lie a constant of the compiled code apart: only so the compiler sees that none overlap, and uses
vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from framecast.data.simulate.d2q9 import OPPOSITE, VELOCITIES, Array, Flows, with_rim

_ONE_AT_A_TIME = threading.Lock()  # else two threads would compile the same kernel


class Compiled:
    """Flows in motion; a `d2q9.Solver`."""

    def __init__(self, flows: Flows):
        count, height, width = flows.solid.shape
        dtype = flows.shear.dtype
        self.flows, self.stride = flows, _stride(width)
        self.moments = np.zeros((count, height + 2, 6, self.stride), dtype)
        self.fields = self.moments[:, 1:-1, :, 1 : width + 1].transpose(2, 0, 1, 3)
        self.ring = np.zeros(27 * self.stride, dtype)
        # each with the factor its population carries, as in vectorised.py
        twelfth, fourth = dtype.type(1 / 12), dtype.type(1 / 4)
        bulk, shear = flows.bulk, flows.shear
        self.rates = np.hstack(
            [
                *(bulk * twelfth, (1 - bulk) * twelfth, shear * fourth, (1 - shear) * fourth),
                *((1 - bulk / 2) / 3, 1 - shear / 2, (1 - shear / 2) / 2),  # of the force
            ]
        )
        self.links, self.link_rows = _links(flows, self.stride)
        inside = np.argwhere(flows.solid)
        self.solid, self.solid_rows = inside[:, 2] + 1, _rows(inside, flows.solid.shape)

    def advance(self, ticks: int, probe: tuple[int, int] | None) -> Array:
        """As `d2q9.Solver` says."""
        flows, dtype = self.flows, self.moments.dtype
        count, height, width = flows.solid.shape
        with _ONE_AT_A_TIME:
            run = _kernel(self.stride, flows.half_force is not None)
        watched = np.zeros((ticks if probe else 0, count, 2), dtype)
        y, x = probe or (0, 0)
        self._fill_rim()
        run(
            self.moments.reshape(count, -1),
            self.ring,
            (height, width),
            (flows.sides == "open", flows.floors == "slip", flows.floors == "periodic"),
            self.rates,
            flows.inflow,
            flows.half_force or (flows.inflow, flows.inflow),
            (self.links, self.link_rows),
            (self.solid, self.solid_rows),
            ticks,
            watched,
            y % height * 6 * self.stride + x % width,
        )
        return watched

    def _fill_rim(self) -> None:
        """Columns beyond periodic sides; the kernel keeps them up, and rows beyond floors are its own business."""
        self.fields[:, self.flows.solid] = 0
        if self.flows.sides == "periodic":
            width = self.fields.shape[3]
            self.moments[..., 0], self.moments[..., width + 1] = self.moments[..., width], self.moments[..., 1]


def _stride(width: int) -> int:
    """Numbers from one field of a row to the next; few values, since each has a kernel of its own.

    A power of two and a bit, so that the fields of a row do not share lines of the cache.
    """
    power = 64
    while power + 16 < width + 2:
        power *= 2
    return power + 16


def _links(flows: Flows, stride: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Half-way bounce-back: what to write into the ring before a row travels, and where each row's part begins.

    For a fluid site and a direction that arrives there from a solid one: the ring's row of the solid site, counted from
    the fluid one, modulo 3; the place there; the place in the fluid site's own row of the reversed population.
    """
    count, height, width = flows.solid.shape
    solid = with_rim(flows)
    met = np.zeros((count, height, width, 9), np.bool_)
    for direction, (right, up) in enumerate(VELOCITIES):
        met[..., direction] = solid[:, 1 - up : height + 1 - up, 1 - right : width + 1 - right]
    met &= ~flows.solid[..., None]
    if flows.sides == "open":
        met[:, :, [0, -1]] = False  # these columns are set
    at = np.argwhere(met)
    x, i = at[:, 2] + 1, at[:, 3]
    c_x, c_y = np.array(VELOCITIES)[i].T
    links = np.stack([-c_y % 3, i * stride + x - c_x, np.array(OPPOSITE)[i] * stride + x], axis=1)
    return links, _rows(at, flows.solid.shape)


def _rows(at: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Where in a sorted list of (flow, y, …) each row of each flow begins, and the end."""
    row = at[:, 0] * shape[1] + at[:, 1]
    return np.searchsorted(row, np.arange(shape[0] * shape[1] + 1))


@numba.njit(error_model="numpy", inline="always")
def _collide(moments, ring, stride, columns, rates, force, pushed):
    """A row's populations after collision, (9, stride), from its moments, (6, stride); both flat."""
    number = moments.dtype.type
    third, ninth, fourth, one, four = number(1 / 3), number(1 / 9), number(1 / 4), number(1), number(4)
    bulk, old_bulk, shear, old_shear = rates[0], rates[1], rates[2], rates[3]
    for x in range(min(columns, stride)):
        rho, j_x, j_y = moments[x], moments[stride + x], moments[2 * stride + x]
        a = one / (rho + one)
        u_x, u_y = j_x * a, j_y * a
        s = j_x * u_y
        a, b = j_x * u_x, j_y * u_y
        t, d = a + b, a - b
        t = t * bulk + moments[3 * stride + x] * old_bulk
        d = d * shear + moments[4 * stride + x] * old_shear
        s = s * shear + moments[5 * stride + x] * old_shear
        if pushed:
            t = t + rates[4] * (u_x * force[0] + u_y * force[1])
            d = d + rates[5] * (u_x * force[0] - u_y * force[1])
            s = s + rates[6] * (u_x * force[1] + u_y * force[0])
            j_x, j_y = j_x + force[0], j_y + force[1]
        u_x, u_y = j_x * third, j_y * third
        rest = rho * ninth
        b = rest + t
        a, b = b + d, b - d
        ring[stride + x], ring[2 * stride + x] = a + u_x, a - u_x
        ring[3 * stride + x], ring[4 * stride + x] = b + u_y, b - u_y
        a = rest * fourth + t
        ring[x] = (rest - t - t) * four
        u_x, u_y = u_x * fourth, u_y * fourth
        d, u_x = u_x + u_y, u_x - u_y
        b, a = a + s, a - s
        ring[5 * stride + x], ring[6 * stride + x] = b + d, b - d
        ring[8 * stride + x], ring[7 * stride + x] = a + u_x, a - u_x


@numba.njit(error_model="numpy", inline="always")
def _travel(below, here, above, moments, stride, columns, force, pushed):
    """A row's moments from the populations that arrive from it and the rows beside it; the rim's columns stay."""
    minus_two_thirds = moments.dtype.type(-2 / 3)
    for x in range(min(columns, stride) - 2):
        rest, east, west = here[x + 1], here[stride + x], here[2 * stride + x + 2]
        north, north_east, north_west = below[3 * stride + x + 1], below[5 * stride + x], below[7 * stride + x + 2]
        south, south_west, south_east = above[4 * stride + x + 1], above[6 * stride + x + 2], above[8 * stride + x]
        a, b = north_east - south_west, south_east - north_west
        j_x, j_y = east - west + a + b, north - south + a - b
        if pushed:
            j_x, j_y = j_x + force[0], j_y + force[1]
        moments[stride + x + 1], moments[2 * stride + x + 1] = j_x, j_y
        a, b = east + west, north + south
        moments[4 * stride + x + 1] = a - b
        a = a + b
        b, q = north_east + south_west, north_west + south_east
        moments[5 * stride + x + 1] = b - q
        diagonal = b + q
        a = a + diagonal
        rho = rest + a
        moments[x + 1] = rho
        moments[3 * stride + x + 1] = rho * minus_two_thirds + a + diagonal


@numba.njit(error_model="numpy", inline="always")
def _mirror(ring, stride, columns):
    """Exchange a row's populations with those of opposite c_y."""
    for i, j in ((3, 4), (5, 8), (7, 6)):
        for x in range(columns):
            ring[i * stride + x], ring[j * stride + x] = ring[j * stride + x], ring[i * stride + x]


@numba.njit(error_model="numpy", inline="always")
def _edges(moments, stride, width, opened, inflow):
    """The ends of a row that has travelled: see `vectorised._open_sides`, or copies beyond periodic sides."""
    if opened:
        stress = inflow * inflow
        moments[1], moments[stride + 1], moments[2 * stride + 1] = 0, inflow, 0
        moments[3 * stride + 1], moments[4 * stride + 1], moments[5 * stride + 1] = stress, stress, 0
    for i in range(6):
        first = i * stride
        if opened:
            moments[first + width] = moments[first + width - 1]
        else:
            moments[first], moments[first + width + 1] = moments[first + width], moments[first + 1]


@lru_cache
def _kernel(stride: int, pushed: bool) -> Callable[..., None]:
    """The solver for rows whose fields lie `stride` numbers apart, with a body force or without the sums for one."""
    row, slot = 6 * stride, 9 * stride  # numbers in a row of moments and of populations

    def run(fields, ring, size, kind, rates, inflow, force, links, solid, ticks, watched, probe):
        height, width = size
        opened, slip, around = kind
        for flow in range(len(fields)):
            moments, rate = fields[flow], rates[flow]
            for tick in range(ticks):
                # rows beyond the floors stand for those that one meets there
                for x in range(row):
                    moments[x] = moments[(height if around else 1) * row + x]
                    moments[(height + 1) * row + x] = moments[(1 if around else height) * row + x]
                for y in range(height + 2):
                    new = ring[y % 3 * slot : (y % 3 + 1) * slot]
                    _collide(moments[y * row : (y + 1) * row], new, stride, width + 2, rate, force, pushed)
                    if slip and (y == 0 or y == height + 1):
                        _mirror(new, stride, width + 2)
                    if y < 2:
                        continue
                    here, now = (y - 1) % 3 * slot, flow * height + y - 2
                    for k in range(links[1][now], links[1][now + 1]):
                        ring[(y - 1 + links[0][k, 0]) % 3 * slot + links[0][k, 1]] = ring[here + links[0][k, 2]]
                    below, middle = (y - 2) % 3 * slot, ring[here : here + slot]
                    moved = moments[(y - 1) * row : y * row]
                    _travel(ring[below : below + slot], middle, new, moved, stride, width + 2, force, pushed)
                    for k in range(solid[1][now], solid[1][now + 1]):
                        for i in range(6):  # so that nothing grows inside
                            moved[i * stride + solid[0][k]] = 0
                    _edges(moved, stride, width, opened, inflow)
                if len(watched):
                    watched[tick, flow, 0] = moments[row + probe + stride + 1]
                    watched[tick, flow, 1] = moments[row + probe + 2 * stride + 1]

    try:
        return numba.njit(run, error_model="numpy", nogil=True, cache=True)
    except RuntimeError:  # neither this folder nor the user's can be written to
        return numba.njit(run, error_model="numpy", nogil=True)
