# SPDX-License-Identifier: Apache-2.0
"""Films of the vortex street behind a disc: when a wake has saturated, how often it sheds, what a frame of it shows.

Two kinds: flows with their own Reynolds number and place of the disc, clipped and scaled (`VortexSet`), and the long
runs of the RVD paper's Simulation set in raw vorticity (`RunSet`). The flow itself is in `lattice_boltzmann.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

import numpy as np

from framecast.data.simulate.lattice_boltzmann import Backend, Lattice, vorticity, wake
from framecast.data.simulate.workers import Stopped

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class VortexSet:
    """Vorticity of flows past a disc, scaled to -1 to 1."""

    size: int  # side of a frame in pixels
    average: int = 2  # lattice sites averaged into a pixel, along each axis
    diameter: float  # D of the disc, in sites
    inflow: float = 0.1  # U, in sites per tick
    reynolds: tuple[float, float] = (80.0, 200.0)  # U D / nu, least and greatest
    offset: float  # the disc lies up to so many sites off the middle
    bulk_viscosity: float = 0.02  # in lattice units; damps sound
    ticks_per_frame: int
    warm_up: int  # least ticks before the first frame, which comes when the wake has saturated
    patience: int = 4  # after so many times `warm_up` a wake that still varies is filmed as it is
    apart: float = 0.1  # least distance in Reynolds number of a held-out flow from every training flow
    clip: float = 0.4  # vorticity in units of U that stands for 1; beyond it is cut off
    counts: Mapping[Split, int] = field(default_factory=lambda: {"train": 64, "validation": 8, "test": 32})  # flows
    frames: int = 200  # per flow

    @property
    def lattice(self) -> int:
        """Side of the lattice in sites."""
        return self.size * self.average


@dataclass(frozen=True, kw_only=True)
class RunSet:
    """Raw vorticity of long runs, one at each Reynolds number; the last fifth of a run is for testing.

    Source: the data set of the RVD paper (one frame every 128 ticks, 8,000 frames for training, 2,000 for testing);
    what it does not tell is our choice.
    """

    size: int  # side of a frame in pixels and of the lattice in sites
    diameter: float  # D of the disc, in sites
    inflow: float  # U, in sites per tick
    reynolds: tuple[float, ...]  # U D / nu of each run
    bump: tuple[float, float] = (0.05, 0.15)  # height of what sets off the shedding, in units of U, least and greatest
    bulk_viscosity: float = 0.02  # in lattice units
    ticks_per_frame: int
    warm_up: int  # ticks before the first frame
    frames: int  # per run

    @property
    def lattice(self) -> int:
        """Side of the lattice in sites."""
        return self.size

    @property
    def counts(self) -> dict[Split, int]:
        """Clips of each split."""
        return {"train": len(self.reynolds), "test": len(self.reynolds)}


def film(
    kind: VortexSet,
    reynolds: Sequence[float],
    offset: Sequence[float],
    *,
    frames: int,
    backend: Backend,
    stop: Event,
) -> tuple[np.ndarray, list[float], list[int]]:
    """Frames (flows, frames, size, size) of flows advanced together, their periods in frames and ticks of warm-up.

    A flow's first frame comes when its own wake has saturated, so that its frames do not depend on its neighbours.
    """
    pause, count = kind.ticks_per_frame, len(reynolds)
    lattice = wake(
        kind.lattice,
        diameter=kind.diameter,
        inflow=kind.inflow,
        reynolds=reynolds,
        offset=offset,
        bulk_viscosity=kind.bulk_viscosity,
        backend=backend,
    )
    pictures = np.zeros((count, frames, kind.size, kind.size), np.float32)
    filmed, periods, warm_up = [0] * count, [math.nan] * count, [0] * count
    probe, tick = np.zeros((0, count), np.float32), 0
    while min(filmed) < frames:
        if stop.is_set():
            raise Stopped
        if min(filmed):
            lattice.run(pause)
        else:
            passed = lattice.run(pause, probe=_probe(kind))[:, :, 1]
            probe = np.concatenate([probe, passed])[-_memory(kind) :]
        tick += pause
        picture = None
        for flow in range(count):
            if not filmed[flow]:
                if tick < kind.warm_up:
                    continue
                period, steady = shedding(probe[:, flow])
                if not (steady or tick > kind.patience * kind.warm_up):
                    continue
                periods[flow], warm_up[flow] = period / pause, tick
            if filmed[flow] < frames:
                picture = _picture(kind, lattice) if picture is None else picture
                pictures[flow, filmed[flow]] = picture[flow]
                filmed[flow] += 1
    return pictures, periods, warm_up


def film_run(
    kind: RunSet, reynolds: float, bump: float, *, frames: int, backend: Backend, stop: Event
) -> tuple[np.ndarray, float]:
    """Raw vorticity (frames, size, size) of a run after its warm-up, and the period at its end in frames."""
    lattice = wake(
        kind.size,
        diameter=kind.diameter,
        inflow=kind.inflow,
        reynolds=reynolds,
        bulk_viscosity=kind.bulk_viscosity,
        bump=bump,
        backend=backend,
    )
    pictures = np.zeros((frames, kind.size, kind.size), np.float32)
    probe = np.zeros(0, np.float32)
    before = math.ceil(kind.warm_up / kind.ticks_per_frame)
    for number in range(before + frames):
        if stop.is_set():
            raise Stopped
        passed = lattice.run(kind.ticks_per_frame, probe=_probe(kind))[:, 0, 1]
        probe = np.concatenate([probe, passed])[-_memory(kind) :]
        if number >= before:
            pictures[number - before] = vorticity(lattice.velocity)[0]
    return pictures, shedding(probe)[0] / kind.ticks_per_frame


def _probe(kind: VortexSet | RunSet) -> tuple[int, int]:
    """Where the wake is watched, (y, x)."""
    return kind.lattice // 2 - 1, kind.lattice * 5 // 8


def _memory(kind: VortexSet | RunSet) -> int:
    """Ticks of five periods at the lowest Strouhal number."""
    return math.ceil(5 * kind.diameter / (0.16 * kind.inflow))


def shedding(probe: np.ndarray, *, tolerance: float = 0.02) -> tuple[float, bool]:
    """The mean period of an oscillation and whether its last three swings are equally high.

    Args:
        probe: samples at equal steps, at least four periods for an answer.
        tolerance: by how much the highest of the three swings may exceed the lowest.

    Returns:
        Period in samples (nan where too few are seen), and whether it is steady.

    Example:
        >>> period, steady = shedding(np.sin(np.arange(100) / 3))
        >>> round(period, 1), steady
        (18.9, True)
    """
    swing = probe.astype(np.float64) - np.mean(probe, dtype=np.float64)
    rising = np.nonzero((swing[:-1] < 0) & (swing[1:] >= 0))[0]
    if len(rising) < 4:
        return math.nan, False
    crossed = rising - swing[rising] / (swing[rising + 1] - swing[rising])
    heights = [np.ptp(swing[begin : end + 1]) for begin, end in zip(rising[-4:], rising[-3:])]
    return float(np.diff(crossed[-4:]).mean()), bool(max(heights) <= (1 + tolerance) * min(heights))


def _picture(kind: VortexSet, lattice: Lattice) -> np.ndarray:
    """Vorticity now, averaged, clipped and scaled to -1 to 1, (flows, size, size)."""
    fields, n = vorticity(lattice.velocity), kind.average
    # summed in a fixed order: a library's mean may order its sums by the number of flows
    total = np.zeros((len(fields), kind.size, kind.size), np.float32)
    for y, x in np.ndindex(n, n):
        total += fields[:, y::n, x::n]
    return np.clip(total / np.float32(n * n * kind.clip * kind.inflow), -1, 1).astype(np.float32)
