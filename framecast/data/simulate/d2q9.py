# SPDX-License-Identifier: Apache-2.0
"""What both solvers of the lattice-Boltzmann method agree on: the nine velocities, and what a batch of flows is.

D2Q9 in the naming of Qian, d'Humières and Lallemand (1992).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

# (c_x, c_y) in the order rest, E, W, N, S, NE, SW, NW, SE; y grows with the row number
VELOCITIES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (-1, 1), (1, -1))
OPPOSITE = (0, 2, 1, 4, 3, 6, 5, 8, 7)
MIRROR = (0, 1, 2, 4, 3, 8, 7, 6, 5)  # c_y changes sign

Array = NDArray[np.floating]
Sides = Literal["periodic", "open"]
Floors = Literal["periodic", "slip", "wall"]


@dataclass(frozen=True, kw_only=True)
class Flows:
    """A batch of flows as a solver takes it; numbers are in the type it computes in."""

    solid: NDArray[np.bool_]  # (flows, height, width)
    sides: Sides
    floors: Floors
    inflow: Any  # speed of the open side, a numpy scalar
    half_force: tuple[Any, Any] | None  # half the body force, (x, y); None: there is none
    shear: Array  # (flows, 1), relaxation rate of the traceless stress
    bulk: Array  # the same for the trace


class Solver(Protocol):
    """Flows in motion."""

    fields: Array  # (6, flows, height, width), a view: rho - 1, j_x, j_y, T, D, S_xy

    def advance(self, ticks: int, probe: tuple[int, int] | None) -> Array:
        """Go on by so many ticks; momentum at the probe (y, x) after each, (ticks, flows, 2), no rows without one."""
        ...


def with_rim(flows: Flows) -> NDArray[np.bool_]:
    """What is solid, with a rim of one site around it, (flows, height + 2, width + 2).

    The rim stands for the site that one meets there: of the other side where that is periodic, else the nearest.
    """
    solid = np.pad(flows.solid, ((0, 0), (0, 0), (1, 1)), mode="wrap")
    if flows.floors == "wall":
        return np.pad(solid, ((0, 0), (1, 1), (0, 0)), constant_values=True)
    return np.pad(solid, ((0, 0), (1, 1), (0, 0)), mode="wrap" if flows.floors == "periodic" else "edge")
