# SPDX-License-Identifier: Apache-2.0
"""The lattice-Boltzmann method in numpy: every flow of a batch at once, one whole field after another.

A site's six moments are its whole state, so populations exist only while they travel. Every operation is a single
correctly rounded sum, product or quotient of float32 (or float64) numbers, so a flow's bits depend neither on the flows
computed beside it nor on the width of the machine's vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from framecast.data.simulate.d2q9 import MIRROR, OPPOSITE, VELOCITIES, Array, Flows


class Vectorised:
    """Flows in motion; a `d2q9.Solver`."""

    def __init__(self, flows: Flows):
        count, height, width = flows.solid.shape
        dtype = flows.shear.dtype
        self.flows, self.shear, self.bulk, self.half_force = flows, flows.shear, flows.bulk, flows.half_force
        # A rim of one row above and below, and of one column left and right where x is periodic, takes what walls
        # send back. Fields are flat, so that a shift in x and y is one offset; what wraps lands on rim or open columns.
        self.pad = 1 if flows.sides == "periodic" else 0
        self.shape = (count, height + 2, width + 2 * self.pad)
        sites, row = int(np.prod(self.shape)), self.shape[2]
        self.margin = row + 2
        self.populations = np.zeros((9, sites + 2 * self.margin), dtype)
        self.moments = np.zeros((6, count, self.shape[1] * row), dtype)
        self.scratch = np.zeros((7, count, self.shape[1] * row), dtype)
        self.fields = self.moments.reshape(6, *self.shape)[:, :, 1:-1, self.pad : self.pad + width]
        inner = slice(self.margin, self.margin + sites)
        self.sent = [p[inner].reshape(count, -1) for p in self.populations]
        self.arriving = [
            p[inner.start - c_x - c_y * row : inner.stop - c_x - c_y * row].reshape(count, -1)
            for p, (c_x, c_y) in zip(self.populations, VELOCITIES)
        ]
        self.into, self.out_of = self._links()

    def advance(self, ticks: int, probe: tuple[int, int] | None) -> Array:
        """As `d2q9.Solver` says."""
        watched = np.zeros((ticks if probe else 0, self.shape[0], 2), self.moments.dtype)
        momentum = self.fields[1:3, :, *(probe or (0, 0))].T
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for tick in range(ticks):
                step(self)
                if probe:
                    watched[tick] = momentum
        return watched

    def _links(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Populations to set before they travel, and those they are set to, as indices into all populations.

        What leaves a rim or obstacle site is what arrives from there in the fluid: a copy of the site that the rim
        stands for (periodic), of its mirrored population (slip), or the reversed one of the fluid site it arrives at
        (bounce-back). Obstacle sites that reach no fluid send zeros, so that nothing grows inside.
        """
        floors = self.flows.floors
        _, rows, row = self.shape
        n, y, x = np.indices(self.shape)
        rim_y, rim_x = (y == 0) | (y == rows - 1), (x < self.pad) | (x >= row - self.pad)
        home_y = (y - 1) % (rows - 2) + 1 if floors == "periodic" else y.clip(1, rows - 2)
        home_x = (x - self.pad) % (row - 2 * self.pad) + self.pad
        home = (n * rows + home_y) * row + home_x
        solid = self.flows.solid[n, home_y - 1, home_x - self.pad] | (rim_y & (floors == "wall"))
        at = np.nonzero((rim_x | rim_y | solid).ravel())[0]
        stride = self.populations.shape[1]
        into, out_of = [], []
        for i, (c_x, c_y) in enumerate(VELOCITIES):
            ahead = np.roll(home, (-c_y, -c_x), axis=(1, 2))
            reaches_fluid = ~np.roll(solid, (-c_y, -c_x), axis=(1, 2))
            copied = np.where(rim_y & (floors == "slip"), MIRROR[i], i) * stride + self.margin + home
            bounced = np.where(reaches_fluid, OPPOSITE[i] * stride + self.margin + ahead, 0)  # 0 is margin, always zero
            into.append(i * stride + self.margin + at)
            out_of.append(np.where(solid, bounced, copied).ravel()[at])
        return np.concatenate(into), np.concatenate(out_of)


def step(flows: Vectorised) -> None:
    """One tick: collide, send back what meets walls, travel."""
    _collide(flows)
    everything = flows.populations.reshape(-1)
    everything[flows.into] = everything[flows.out_of]
    _travel(flows)
    if flows.flows.sides == "open":
        _open_sides(flows)


def _collide(flows: Vectorised) -> None:
    """From the moments to the populations after collision."""
    add, sub, mul = np.add, np.subtract, np.multiply
    rho, j_x, j_y, trace, difference, mixed = flows.moments
    t, d, s, u_x, u_y, a, b = flows.scratch
    rest, east, west, north, south, north_east, south_west, north_west, south_east = flows.sent
    one = rho.dtype.type

    # Equilibrium stress rho u u: trace in t, difference in d, xy in s.
    add(rho, one(1), out=a)
    np.reciprocal(a, out=a)
    mul(j_x, a, out=u_x)
    mul(j_y, a, out=u_y)
    mul(j_x, u_y, out=s)
    mul(j_x, u_x, out=a)
    mul(j_y, u_y, out=b)
    add(a, b, out=t)
    sub(a, b, out=d)
    # S, each part times the factor its population carries: 1/12, 1/4, 1/4.
    for part, old, omega, factor in (
        (t, trace, flows.bulk, one(1 / 12)),
        (d, difference, flows.shear, one(1 / 4)),
        (s, mixed, flows.shear, one(1 / 4)),
    ):
        mul(part, omega * factor, out=part)
        mul(old, (1 - omega) * factor, out=a)
        add(part, a, out=part)
    if flows.half_force is not None:
        _push(flows)

    # w_i (rho + 3 c.j + 4.5 (c c - I/3) : S), written out
    mul(j_x, one(1 / 3), out=u_x)
    mul(j_y, one(1 / 3), out=u_y)
    mul(rho, one(1 / 9), out=rest)
    add(rest, t, out=b)
    add(b, d, out=a)
    sub(b, d, out=b)
    add(a, u_x, out=east)
    sub(a, u_x, out=west)
    add(b, u_y, out=north)
    sub(b, u_y, out=south)
    mul(rest, one(1 / 4), out=a)
    add(a, t, out=a)
    sub(rest, t, out=rest)
    sub(rest, t, out=rest)
    mul(rest, one(4), out=rest)
    mul(u_x, one(1 / 4), out=u_x)
    mul(u_y, one(1 / 4), out=u_y)
    add(u_x, u_y, out=d)
    sub(u_x, u_y, out=u_x)
    add(a, s, out=b)
    sub(a, s, out=a)
    add(b, d, out=north_east)
    sub(b, d, out=south_west)
    add(a, u_x, out=south_east)
    sub(a, u_x, out=north_west)


def _push(flows: Vectorised) -> None:
    """Body force: (1 - omega/2)(u F + F u) into the stress, half of F into the momentum before and after the tick."""
    f_x, f_y = flows.half_force  # type: ignore[misc]
    t, d, s, u_x, u_y = flows.scratch[:5]
    t += (1 - flows.bulk / 2) / 3 * (u_x * f_x + u_y * f_y)
    d += (1 - flows.shear / 2) * (u_x * f_x - u_y * f_y)
    s += (1 - flows.shear / 2) / 2 * (u_x * f_y + u_y * f_x)
    flows.moments[1] += f_x
    flows.moments[2] += f_y


def _travel(flows: Vectorised) -> None:
    """From the populations that arrive to the moments; sites of the rim take numbers nobody reads."""
    add, sub, mul = np.add, np.subtract, np.multiply
    rho, j_x, j_y, trace, difference, mixed = flows.moments
    q, a, b, diagonal = flows.scratch[:4]
    rest, east, west, north, south, north_east, south_west, north_west, south_east = flows.arriving
    sub(east, west, out=j_x)
    sub(north, south, out=j_y)
    sub(north_east, south_west, out=a)
    sub(south_east, north_west, out=b)
    add(j_x, a, out=j_x)
    add(j_x, b, out=j_x)
    add(j_y, a, out=j_y)
    sub(j_y, b, out=j_y)
    add(east, west, out=a)
    add(north, south, out=b)
    sub(a, b, out=difference)
    add(a, b, out=a)
    add(north_east, south_west, out=b)
    add(north_west, south_east, out=q)
    sub(b, q, out=mixed)
    add(b, q, out=diagonal)
    # rho = rest + straight + diagonal; T = c c traced - 2/3 rho = straight + 2 diagonal - 2/3 rho
    add(a, diagonal, out=a)
    add(rest, a, out=rho)
    mul(rho, rho.dtype.type(-2 / 3), out=trace)
    add(trace, a, out=trace)
    add(trace, diagonal, out=trace)
    if flows.half_force is not None:
        flows.moments[1] += flows.half_force[0]
        flows.moments[2] += flows.half_force[1]


def _open_sides(flows: Vectorised) -> None:
    """First column: equilibrium at density 1 and velocity (inflow, 0); last column: a copy of the one before it."""
    # DEVIATES: with the neighbour's density in place of 1 the inflow reflects sound, and a standing wave across the
    # stream grows without end (at Re 150, n = 128: 2 U after 20,000 ticks). Density 1 also gives the published periods.
    fields = flows.moments.reshape(-1, *flows.shape)
    first, speed = fields[..., 0], flows.flows.inflow
    first[0], first[1], first[2] = 0, speed, 0
    first[3], first[4], first[5] = speed * speed, speed * speed, 0
    fields[..., -1] = fields[..., -2]
