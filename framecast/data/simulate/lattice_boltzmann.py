# SPDX-License-Identifier: Apache-2.0
"""Two-dimensional flow by the lattice-Boltzmann method (D2Q9), a batch of flows at a time, in numpy.

The collision is regularised with separate rates for shear and bulk, so that a site's six moments (density, momentum,
stress) are the whole state: populations exist only while they travel. Every operation is a single correctly rounded
sum, product or quotient of float32 (or float64) numbers, so a flow's bits depend neither on the flows computed beside
it nor on the width of the machine's vectors.

Methods: Latt and Chopard (2006), regularisation; Guo, Zheng and Shi (2002), body force. Units are the lattice's own:
sites and ticks, density 1, speed of sound 1/sqrt(3).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# (c_x, c_y) in the order rest, E, W, N, S, NE, SW, NW, SE; y grows with the row number
VELOCITIES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (-1, 1), (1, -1))
OPPOSITE = (0, 2, 1, 4, 3, 6, 5, 8, 7)
MIRROR = (0, 1, 2, 4, 3, 8, 7, 6, 5)  # c_y changes sign

Array = NDArray[np.floating]


class Lattice:
    """Flows on equal lattices, each with its own viscosities and obstacle, advanced together.

    Post-collision populations, less their weights, are w_i (rho + 3 c.j + 4.5 (c c - I/3) : S) with
    S = rho u u + (1 - omega_b) trace part + (1 - omega_s) traceless part of the stress out of equilibrium;
    nu = (1/omega_s - 1/2)/3 and bulk viscosity = (1/omega_b - 1/2)/3.

    Args:
        velocity: (flows, 2, height, width), x component first, at the start; its dtype is computed in. The density is
            1 unless given.
        density: (flows, height, width) at the start.
        shear_viscosity: nu, one for all flows or one each.
        bulk_viscosity: the same for the damping of sound.
        sides: "periodic" in x, or "open": the first column is held at equilibrium with velocity (inflow, 0) and
            density 1, the last column is a copy of its neighbour.
        floors: "periodic" in y, "slip": a mirror half a site beyond the first and the last row, or "wall": no
            slip there.
        solid: (flows, height, width), True inside obstacles, on whose faces populations bounce back half way.
        inflow: speed of the open side.
        force: body force per site, (x, y).

    Raises:
        ValueError: a viscosity that is not above 0, or arrays whose shapes disagree.

    Source: Latt and Chopard (2006), arXiv:physics/0506157; Guo, Zheng and Shi, Phys. Rev. E 65, 046308 (2002).

    Example:
        >>> still = np.zeros((1, 2, 4, 6), np.float32)
        >>> lattice = Lattice(still, shear_viscosity=0.1, bulk_viscosity=0.1, force=(1e-3, 0))
        >>> _ = lattice.run(10)
        >>> f"{lattice.velocity[0, 0].mean():.4f}"
        '0.0100'
    """

    def __init__(
        self,
        velocity: Array,
        *,
        shear_viscosity: ArrayLike,
        bulk_viscosity: ArrayLike,
        density: Array | None = None,
        sides: Literal["periodic", "open"] = "periodic",
        floors: Literal["periodic", "slip", "wall"] = "periodic",
        solid: NDArray[np.bool_] | None = None,
        inflow: float = 0.0,
        force: tuple[float, float] = (0.0, 0.0),
    ):
        flows, components, height, width = velocity.shape
        density = np.ones((flows, height, width), velocity.dtype) if density is None else density
        solid = np.zeros((flows, height, width), np.bool_) if solid is None else solid
        if components != 2 or density.shape != (flows, height, width) or solid.shape != density.shape:
            raise ValueError(
                f"velocity {velocity.shape}, density {density.shape} and solid {solid.shape} must be (flows, 2, height,"
                " width) and twice (flows, height, width)."
            )
        dtype = velocity.dtype.type
        self.solid, self.sides, self.inflow = solid, sides, dtype(inflow)
        self.half_force = None if force == (0.0, 0.0) else (dtype(force[0] / 2), dtype(force[1] / 2))
        self.shear, self.bulk = (_rate(nu, flows, dtype) for nu in (shear_viscosity, bulk_viscosity))

        # A rim of one row above and below, and of one column left and right where x is periodic, takes what walls
        # send back. Fields are flat, so that a shift in x and y is one offset; what wraps lands on rim or open columns.
        self.pad = 1 if sides == "periodic" else 0
        self.shape = (flows, height + 2, width + 2 * self.pad)
        sites, row = int(np.prod(self.shape)), self.shape[2]
        self.margin = row + 2
        self.populations = np.zeros((9, sites + 2 * self.margin), dtype)
        self.moments = np.zeros((6, flows, self.shape[1] * row), dtype)  # rho - 1, j_x, j_y, T, D, S_xy
        self.scratch = np.zeros((7, flows, self.shape[1] * row), dtype)
        inner = slice(self.margin, self.margin + sites)
        self.sent = [p[inner].reshape(flows, -1) for p in self.populations]
        self.arriving = [
            p[inner.start - c_x - c_y * row : inner.stop - c_x - c_y * row].reshape(flows, -1)
            for p, (c_x, c_y) in zip(self.populations, VELOCITIES)
        ]
        self.into, self.out_of = self._links(floors)
        self._start(density, velocity)

    def _interior(self, fields: Array) -> Array:
        """Moments or scratch without the rim: (fields, flows, height, width)."""
        whole = fields.reshape(-1, *self.shape)
        return whole[:, :, 1:-1, self.pad : self.shape[2] - self.pad]

    def _start(self, density: Array, velocity: Array) -> None:
        """Equilibrium at this density and velocity."""
        rho, j_x, j_y, trace, difference, mixed = self._interior(self.moments)
        rho[...] = density - 1
        j_x[...], j_y[...] = density * velocity[:, 0], density * velocity[:, 1]
        trace[...] = density * (velocity[:, 0] ** 2 + velocity[:, 1] ** 2)
        difference[...] = density * (velocity[:, 0] ** 2 - velocity[:, 1] ** 2)
        mixed[...] = density * velocity[:, 0] * velocity[:, 1]

    def _links(self, floors: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Populations to set before they travel, and those they are set to, as indices into all populations.

        What leaves a rim or obstacle site is what arrives from there in the fluid: a copy of the site that the rim
        stands for (periodic), of its mirrored population (slip), or the reversed one of the fluid site it arrives at
        (bounce-back). Obstacle sites that reach no fluid send zeros, so that nothing grows inside.
        """
        _, rows, row = self.shape
        n, y, x = np.indices(self.shape)
        rim_y, rim_x = (y == 0) | (y == rows - 1), (x < self.pad) | (x >= row - self.pad)
        home_y = (y - 1) % (rows - 2) + 1 if floors == "periodic" else y.clip(1, rows - 2)
        home_x = (x - self.pad) % (row - 2 * self.pad) + self.pad
        home = (n * rows + home_y) * row + home_x
        solid = self.solid[n, home_y - 1, home_x - self.pad] | (rim_y & (floors == "wall"))
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

    def run(self, ticks: int, *, probe: tuple[int, int] | None = None) -> Array:
        """Advance all flows by this many ticks.

        Args:
            ticks: how many.
            probe: a site (y, x) to watch.

        Returns:
            Momentum at the probe after every tick, (ticks, flows, 2), x component first; no rows without a probe.

        Raises:
            ValueError: a flow grew beyond all bounds.
        """
        watched = np.zeros((ticks if probe else 0, self.shape[0], 2), self.moments.dtype)
        momentum = self._interior(self.moments)[1:3, :, *(probe or (0, 0))].T
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for tick in range(ticks):
                step(self)
                if probe:
                    watched[tick] = momentum
            lost = ~np.isfinite(self._interior(self.moments)[0].sum((1, 2)))
        if lost.any():
            raise ValueError(
                f"flow {int(lost.argmax())} of {len(lost)} became unstable; lower its speed or its Reynolds number,"
                " or use a finer lattice."
            )
        return watched

    @property
    def density(self) -> Array:
        """Density now, (flows, height, width); 1 inside obstacles."""
        return np.where(self.solid, 1, self._interior(self.moments)[0] + 1)

    @property
    def velocity(self) -> Array:
        """Velocity now, (flows, 2, height, width), x component first; 0 inside obstacles."""
        rho, j_x, j_y = self._interior(self.moments)[:3]
        return np.where(self.solid[:, None], 0, np.stack([j_x, j_y], axis=1) / (rho + 1)[:, None])


def _rate(viscosity: ArrayLike, flows: int, dtype: type) -> Array:
    """The relaxation rate omega of a viscosity, (flows, 1)."""
    nu = np.broadcast_to(np.asarray(viscosity, np.float64), (flows,))
    if not (nu > 0).all():
        raise ValueError(f"a viscosity is {nu.min():g}; every one must be above 0.")
    return (1 / (3 * nu + 0.5)).astype(dtype)[:, None]


def step(lattice: Lattice) -> None:
    """One tick: collide, send back what meets walls, travel."""
    _collide(lattice)
    everything = lattice.populations.reshape(-1)
    everything[lattice.into] = everything[lattice.out_of]
    _travel(lattice)
    if lattice.sides == "open":
        _open_sides(lattice)


def _collide(lattice: Lattice) -> None:
    """From the moments to the populations after collision."""
    add, sub, mul = np.add, np.subtract, np.multiply
    rho, j_x, j_y, trace, difference, mixed = lattice.moments
    t, d, s, u_x, u_y, a, b = lattice.scratch
    rest, east, west, north, south, north_east, south_west, north_west, south_east = lattice.sent
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
        (t, trace, lattice.bulk, one(1 / 12)),
        (d, difference, lattice.shear, one(1 / 4)),
        (s, mixed, lattice.shear, one(1 / 4)),
    ):
        mul(part, omega * factor, out=part)
        mul(old, (1 - omega) * factor, out=a)
        add(part, a, out=part)
    if lattice.half_force is not None:
        _push(lattice)

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


def _push(lattice: Lattice) -> None:
    """Body force: (1 - omega/2)(u F + F u) into the stress, half of F into the momentum before and after the tick."""
    f_x, f_y = lattice.half_force  # type: ignore[misc]
    t, d, s, u_x, u_y = lattice.scratch[:5]
    t += (1 - lattice.bulk / 2) / 3 * (u_x * f_x + u_y * f_y)
    d += (1 - lattice.shear / 2) * (u_x * f_x - u_y * f_y)
    s += (1 - lattice.shear / 2) / 2 * (u_x * f_y + u_y * f_x)
    lattice.moments[1] += f_x
    lattice.moments[2] += f_y


def _travel(lattice: Lattice) -> None:
    """From the populations that arrive to the moments; sites of the rim take numbers nobody reads."""
    add, sub, mul = np.add, np.subtract, np.multiply
    rho, j_x, j_y, trace, difference, mixed = lattice.moments
    q, a, b, diagonal = lattice.scratch[:4]
    rest, east, west, north, south, north_east, south_west, north_west, south_east = lattice.arriving
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
    if lattice.half_force is not None:
        lattice.moments[1] += lattice.half_force[0]
        lattice.moments[2] += lattice.half_force[1]


def _open_sides(lattice: Lattice) -> None:
    """First column: equilibrium at density 1 and velocity (inflow, 0); last column: a copy of the one before it."""
    # DEVIATES: with the neighbour's density in place of 1 the inflow reflects sound, and a standing wave across the
    # stream grows without end (at Re 150, n = 128: 2 U after 20,000 ticks). Density 1 also gives the published periods.
    fields = lattice.moments.reshape(-1, *lattice.shape)
    first, speed = fields[..., 0], lattice.inflow
    first[0], first[1], first[2] = 0, speed, 0
    first[3], first[4], first[5] = speed * speed, speed * speed, 0
    fields[..., -1] = fields[..., -2]


def disc(size: int, *, diameter: float, centre: tuple[float, float]) -> NDArray[np.bool_]:
    """Sites (y, x) of a square lattice within half a diameter of the centre, given as (x, y)."""
    y, x = np.indices((size, size))
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= diameter**2 / 4


def wake(
    size: int,
    *,
    diameter: float,
    inflow: float,
    reynolds: ArrayLike,
    offset: ArrayLike = 0.0,
    bulk_viscosity: float = 0.02,
    bump: float = 0.1,
) -> Lattice:
    """Flows past a disc, in float32: open sides, slip floors, a transverse bump that sets off the shedding.

    Args:
        size: side of the lattice in sites.
        diameter: of the disc, in sites; its centre is (size / 4, size / 2 - 1/2 + offset).
        inflow: U, in sites per tick.
        reynolds: U D / nu, one per flow.
        offset: of each disc across the stream, in sites.
        bulk_viscosity: damps the sound of the start.
        bump: height of the Gaussian bump of transverse velocity at (0.4, 0.6) size, 0.08 size wide, in units of U.

    Source: the set the RVD paper trains on is such a street; the numbers of the lattice are ours.
    """
    reynolds, offset = np.broadcast_arrays(np.atleast_1d(reynolds), np.atleast_1d(offset))
    solid = np.stack([disc(size, diameter=diameter, centre=(size / 4, size / 2 - 0.5 + float(o))) for o in offset])
    y, x = np.indices((size, size))
    gauss = np.exp(-((x - 0.4 * size) ** 2 + (y - 0.6 * size) ** 2) / (2 * (0.08 * size) ** 2))
    velocity = np.stack([np.full((size, size), inflow), bump * inflow * gauss]).astype(np.float32)
    return Lattice(
        np.where(solid[:, None], np.float32(0), velocity),
        shear_viscosity=inflow * diameter / reynolds,
        bulk_viscosity=bulk_viscosity,
        sides="open",
        floors="slip",
        solid=solid,
        inflow=inflow,
    )


def vorticity(velocity: Array) -> Array:
    """d u_y / dx - d u_x / dy by central differences (one-sided on edges), (flows, height, width)."""
    return np.gradient(velocity[:, 1], axis=-1) - np.gradient(velocity[:, 0], axis=-2)
