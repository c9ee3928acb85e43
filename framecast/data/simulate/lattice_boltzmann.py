# SPDX-License-Identifier: Apache-2.0
"""Two-dimensional flow by the lattice-Boltzmann method (D2Q9), a batch of flows at a time.

The collision is regularised with separate rates for shear and bulk. Who computes is a choice, and no matter of the
result: `vectorised.py` (numpy) and `compiled.py` (numba) give the same bits, which is tested.

Methods: Latt and Chopard (2006), regularisation; Guo, Zheng and Shi (2002), body force. Units are the lattice's own:
sites and ticks, density 1, speed of sound 1/sqrt(3).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from framecast.data.simulate.d2q9 import Array, Floors, Flows, Sides, Solver
from framecast.data.simulate.vectorised import Vectorised

Backend = Literal["auto", "numpy", "numba"]


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
        backend: "numpy"; "numba", which is several times faster once it has been compiled; "auto": numba where it is
            installed. All give the same bits.

    Raises:
        ValueError: a viscosity that is not above 0, arrays whose shapes disagree, or "numba" where there is none.

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
        sides: Sides = "periodic",
        floors: Floors = "periodic",
        solid: NDArray[np.bool_] | None = None,
        inflow: float = 0.0,
        force: tuple[float, float] = (0.0, 0.0),
        backend: Backend = "numpy",
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
        self.solid = solid
        described = Flows(
            solid=solid,
            sides=sides,
            floors=floors,
            inflow=dtype(inflow),
            half_force=None if force == (0.0, 0.0) else (dtype(force[0] / 2), dtype(force[1] / 2)),
            shear=_rate(shear_viscosity, flows, dtype),
            bulk=_rate(bulk_viscosity, flows, dtype),
        )
        self.solver = _solver(described, backend)
        self._start(density, velocity)

    def _start(self, density: Array, velocity: Array) -> None:
        """Equilibrium at this density and velocity."""
        rho, j_x, j_y, trace, difference, mixed = self.solver.fields
        rho[...] = density - 1
        j_x[...], j_y[...] = density * velocity[:, 0], density * velocity[:, 1]
        trace[...] = density * (velocity[:, 0] ** 2 + velocity[:, 1] ** 2)
        difference[...] = density * (velocity[:, 0] ** 2 - velocity[:, 1] ** 2)
        mixed[...] = density * velocity[:, 0] * velocity[:, 1]

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
        watched = self.solver.advance(ticks, probe)
        with np.errstate(over="ignore", invalid="ignore"):
            lost = ~np.isfinite(self.solver.fields[0].sum((1, 2)))
        if lost.any():
            raise ValueError(
                f"flow {int(lost.argmax())} of {len(lost)} became unstable; lower its speed or its Reynolds number,"
                " or use a finer lattice."
            )
        return watched

    @property
    def density(self) -> Array:
        """Density now, (flows, height, width); 1 inside obstacles."""
        return np.where(self.solid, 1, self.solver.fields[0] + 1)

    @property
    def velocity(self) -> Array:
        """Velocity now, (flows, 2, height, width), x component first; 0 inside obstacles."""
        rho, j_x, j_y = self.solver.fields[:3]
        return np.where(self.solid[:, None], 0, np.stack([j_x, j_y], axis=1) / (rho + 1)[:, None])


def chosen(backend: Backend) -> Literal["numpy", "numba"]:
    """What "auto" stands for here.

    Raises:
        ValueError: "numba" where it is not installed, or no backend at all.
    """
    if backend not in ("auto", "numpy", "numba"):
        raise ValueError(f"there is no simulator backend {backend!r}; choose auto, numpy or numba.")
    if backend == "numba" and find_spec("numba") is None:
        raise ValueError(
            "the compiled simulator needs numba, which is not installed: pip install 'framecast[fast]', or choose the"
            " backend numpy, which gives the same flows."
        )
    return "numpy" if backend == "numpy" or find_spec("numba") is None else "numba"


def _solver(flows: Flows, backend: Backend) -> Solver:
    if chosen(backend) == "numpy":
        return Vectorised(flows)
    from framecast.data.simulate.compiled import Compiled  # takes a while to load

    return Compiled(flows)


def _rate(viscosity: ArrayLike, flows: int, dtype: type) -> Array:
    """The relaxation rate omega of a viscosity, (flows, 1)."""
    nu = np.broadcast_to(np.asarray(viscosity, np.float64), (flows,))
    if not (nu > 0).all():
        raise ValueError(f"a viscosity is {nu.min():g}; every one must be above 0.")
    return (1 / (3 * nu + 0.5)).astype(dtype)[:, None]


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
    bump: ArrayLike = 0.1,
    backend: Backend = "numpy",
) -> Lattice:
    """Flows past a disc, in float32: open sides, slip floors, a transverse bump that sets off the shedding.

    Args:
        size: side of the lattice in sites.
        diameter: of the disc, in sites; its centre is (size / 4, size / 2 - 1/2 + offset).
        inflow: U, in sites per tick.
        reynolds: U D / nu, one per flow.
        offset: of each disc across the stream, in sites.
        bulk_viscosity: damps the sound of the start.
        bump: height of the Gaussian bump of transverse velocity at (0.4, 0.6) size, 0.08 size wide, in units of U, one
            for all flows or one each.
        backend: as for `Lattice`.

    Source: the set the RVD paper trains on is such a street; the numbers of the lattice are ours.
    """
    reynolds, offset, bump = np.broadcast_arrays(np.atleast_1d(reynolds), offset, bump)
    solid = np.stack([disc(size, diameter=diameter, centre=(size / 4, size / 2 - 0.5 + float(o))) for o in offset])
    y, x = np.indices((size, size))
    gauss = np.exp(-((x - 0.4 * size) ** 2 + (y - 0.6 * size) ** 2) / (2 * (0.08 * size) ** 2))
    across = (bump * inflow)[:, None, None] * gauss
    velocity = np.stack([np.full_like(across, inflow), across], axis=1).astype(np.float32)
    return Lattice(
        np.where(solid[:, None], np.float32(0), velocity),
        shear_viscosity=inflow * diameter / reynolds,
        bulk_viscosity=bulk_viscosity,
        sides="open",
        floors="slip",
        solid=solid,
        inflow=inflow,
        backend=backend,
    )


def vorticity(velocity: Array) -> Array:
    """d u_y / dx - d u_x / dy by central differences (one-sided on edges), (flows, height, width)."""
    return np.gradient(velocity[:, 1], axis=-1) - np.gradient(velocity[:, 0], axis=-2)
