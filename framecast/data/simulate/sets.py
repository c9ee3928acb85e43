# SPDX-License-Identifier: Apache-2.0
"""The named open sets: flow past a disc (`vortex…`) and bouncing digits (`bouncing…`), made from a seed.

Every clip is a function of (set, seed, split, number) alone: bit for bit the same whichever clips are made beside it,
and a shorter one is the beginning of a longer one. A folder of a set can be left unfinished and taken up again.
The flow itself is in `lattice_boltzmann.py`, the digits in `bouncing.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from framecast.data import array_file
from framecast.data.files import new_file
from framecast.data.simulate import bouncing
from framecast.data.simulate.bouncing import Bouncing
from framecast.data.simulate.lattice_boltzmann import Lattice, vorticity, wake
from framecast.draws import mix
from framecast.experiment import nearest
from framecast.video import Clip

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


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
class BouncingSet:
    """Clips of bouncing digits; the training set is as long as one likes."""

    scene: Bouncing
    counts: Mapping[Split, int] = field(default_factory=lambda: {"train": 1024, "validation": 256, "test": 512})
    frames: int = 16  # per clip

    @property
    def size(self) -> int:
        """Side of a frame in pixels."""
        return self.scene.size


SETS: dict[str, VortexSet | BouncingSet] = {
    # Lattice 48: on 32 sites (D = 4) the wake has two modes and fails near Re 200.
    "vortex16": VortexSet(size=16, average=3, diameter=6, offset=4.5, ticks_per_frame=28, warm_up=2_250, patience=2),
    "vortex32": VortexSet(size=32, diameter=8, offset=6, ticks_per_frame=38, warm_up=6_000),
    "vortex64": VortexSet(size=64, diameter=16, offset=12, ticks_per_frame=76, warm_up=12_000),
    "vortex128": VortexSet(size=128, diameter=32, offset=24, ticks_per_frame=152, warm_up=24_000),
    "bouncing32": BouncingSet(scene=Bouncing()),
    "bouncing64": BouncingSet(scene=Bouncing(size=64, glyph=24, speed=(3.0, 6.0))),
}


@dataclass(frozen=True)
class Made:
    """What `simulate` did."""

    folder: Path
    written: int  # files
    kept: int  # files that were there already
    seconds: float


def named(name: str) -> VortexSet | BouncingSet:
    """The set of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in SETS:
        raise ValueError(f"there is no simulated set {name!r}.{nearest(name, SETS)} Sets: {', '.join(SETS)}.")
    return SETS[name]


def flows(name: str, split: Split, count: int | None = None, frames: int | None = None, seed: int = 0) -> list[Clip]:
    """The first clips of a split, in memory.

    Args:
        name: of the set, a key of `SETS`.
        split: "train", "validation" or "test".
        count: how many clips; None: the set's own number.
        frames: of each; None: the set's own number.
        seed: of the whole set.

    Example:
        >>> clips = flows("bouncing32", "test", 2, 8)
        >>> len(clips), tuple(clips[0].frames.shape)
        (2, (8, 1, 32, 32))
    """
    kind = named(name)
    count = kind.counts[split] if count is None else count
    return [clip for _, clip, _ in make(name, split, range(count), frames=frames or kind.frames, seed=seed)]


def make(
    name: str, split: Split, numbers: Sequence[int], *, frames: int, seed: int = 0
) -> Iterator[tuple[int, Clip, dict[str, Any]]]:
    """Clips of a split by number, each with what it is: as `about`, and for a flow what was measured.

    Yields:
        Number, clip, and plain values; for flows among them `period`, of the shedding in frames, and `warm_up`, in
        ticks.
    """
    kind = named(name)
    if isinstance(kind, BouncingSet):
        for number in numbers:
            told = about(name, split, number, seed)
            yield number, Clip(bouncing.clip(kind.scene, frames=frames, seed=told["clip_seed"])), told
        return
    batch = max(1, 16_384 // kind.lattice**2)  # sites whose fields stay in a core's cache
    for first in range(0, len(numbers), batch):
        some = numbers[first : first + batch]
        told_all = [about(name, split, number, seed) for number in some]
        reynolds, offset = ([told[key] for told in told_all] for key in ("reynolds", "offset"))
        film, periods, warm_up = _film(kind, reynolds, offset, frames=frames)
        for row, number in enumerate(some):
            clip = Clip(torch.from_numpy(film[row][:, None].copy()), None, (-1.0, 1.0))
            yield number, clip, told_all[row] | {"period": periods[row], "warm_up": warm_up[row]}


def about(name: str, split: Split, number: int, seed: int = 0) -> dict[str, Any]:
    """What clip `number` of a split is: its Reynolds number and offset, or its seed; plain values."""
    kind = named(name)
    told = {"set": name, "split": split, "number": number, "seed": seed}
    if isinstance(kind, BouncingSet):
        return told | {"clip_seed": mix(name, seed, split, number)}
    reynolds, offset = _flow(name, kind, split, number, seed)
    return told | {"reynolds": reynolds, "offset": offset}


def futures(name: str, split: Split, number: int, *, known: int, frames: int, count: int, seed: int = 0) -> list[Clip]:
    """True futures of clip `number` of a bouncing set, drawn again from its state at frame `known` - 1.

    Raises:
        ValueError: the set is no bouncing set: a flow has one future.
    """
    kind = named(name)
    if not isinstance(kind, BouncingSet):
        raise ValueError(f"{name} has one future per past; only bouncing sets have many.")
    clip_seed = mix(name, seed, split, number)
    drawn = bouncing.futures(kind.scene, known=known, frames=frames, count=count, seed=clip_seed)
    return [Clip(future) for future in drawn]


def window_starts(period: float, count: int) -> list[int]:
    """First frames of `count` windows of one flow, a quarter of its shedding period (in frames) apart.

    Example:
        >>> window_starts(10.2, 4)
        [0, 3, 5, 8]
    """
    return [round(number * period / 4) for number in range(count)]


def simulate(
    name: str,
    out_dir: Path | str,
    *,
    splits: Sequence[Split] | None = None,
    flows: int | None = None,
    frames: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Write a set as `<out>/<split>/flow_0000.npz` (bouncing sets: `clip_0000.npz`) and `<out>/set.json`.

    Files hold `frames` (T, C, H, W), `value_range` and `generated_by`, a JSON of what the clip is. Each is written
    whole or not at all; files of the same set that are there already are kept, so an interrupted run goes on.

    Args:
        name: of the set, a key of `SETS`.
        out_dir: a new or empty folder, or one that holds this set already.
        splits: which; None: all.
        flows: clips per split; None: the set's own numbers.
        frames: per clip; None: the set's own number.
        seed: of the whole set.
        progress: called with (clips done, clips in all) after each clip.

    Raises:
        ValueError: no such set or split, or a folder that holds something else; nothing is overwritten.
    """
    kind, folder, begun = named(name), Path(out_dir), time.perf_counter()
    chosen = SPLITS if splits is None else tuple(splits)
    if unknown := [split for split in chosen if split not in SPLITS]:
        raise ValueError(f"there is no split {unknown[0]!r}; choose from {', '.join(SPLITS)}.")
    for what, number in (("flows", flows), ("frames", frames)):
        if number is not None and number < 1:
            raise ValueError(f"{what} is {number}; it must be 1 or more.")
    length = frames or kind.frames
    _claim(folder, _description(name, kind, length, seed))
    counts = {split: flows or kind.counts[split] for split in chosen}
    done, total, kept = 0, sum(counts.values()), 0
    for split, count in counts.items():
        paths = {number: folder / split / f"{_prefix(kind)}_{number:04d}.npz" for number in range(count)}
        missing = [number for number, path in paths.items() if not _is_made(path, about(name, split, number, seed))]
        kept += count - len(missing)
        done += count - len(missing)
        if progress is not None and done:
            progress(done, total)
        for number, clip, told in make(name, split, missing, frames=length, seed=seed):
            array_file.write_array(
                paths[number], clip.frames, fps=clip.fps, value_range=clip.value_range, generated_by=told
            )
            done += 1
            if progress is not None:
                progress(done, total)
    return Made(folder, total - kept, kept, time.perf_counter() - begun)


def speed(name: str, *, backend: Literal["auto", "numpy", "numba"] = "auto", ticks: int = 200) -> float:
    """Site updates per second of one core's time that the flows of a set are computed at, disc and all.

    Args:
        name: of a set of flows.
        backend: what computes.
        ticks: to time, after a few untimed ones.
    """
    kind = named(name)
    if isinstance(kind, BouncingSet):
        raise ValueError(f"{name} has no lattice; give a set of flows.")
    if backend == "numba":
        raise ValueError("there is no compiled simulator yet; give backend='numpy'.")
    count = max(1, 16_384 // kind.lattice**2)
    lattice = wake(kind.lattice, diameter=kind.diameter, inflow=kind.inflow, reynolds=[100.0] * count)
    lattice.run(5)
    begun = time.thread_time()
    lattice.run(ticks)
    return count * kind.lattice**2 * ticks / (time.thread_time() - begun)


def _flow(name: str, kind: VortexSet, split: Split, number: int, seed: int) -> tuple[float, float]:
    """Reynolds number and disc offset of a flow.

    Training flows are drawn uniformly. Held-out ones are stratified, in a random order so that the first few span the
    range too, and keep their distance from every training flow.
    """
    rng = np.random.Generator(np.random.PCG64(mix(name, seed, split, number)))
    low, high = kind.reynolds
    if split == "train":
        return low + (high - low) * rng.random(), kind.offset * (2 * rng.random() - 1)
    strata = kind.counts[split]
    order = np.random.Generator(np.random.PCG64(mix(name, seed, split, "strata")))
    stratum = [order.permutation(strata)[number % strata] for _ in ("reynolds", "offset")]
    trained = [_flow(name, kind, "train", other, seed)[0] for other in range(kind.counts["train"])]
    while True:
        reynolds = low + (high - low) * (stratum[0] + rng.random()) / strata
        if min(abs(reynolds - other) for other in trained) > kind.apart:
            break
    return float(reynolds), float(kind.offset * (2 * (stratum[1] + rng.random()) / strata - 1))


def _prefix(kind: VortexSet | BouncingSet) -> str:
    return "clip" if isinstance(kind, BouncingSet) else "flow"


def _description(name: str, kind: VortexSet | BouncingSet, frames: int, seed: int) -> dict[str, Any]:
    """What a folder of this set must say; equal descriptions mean equal files."""
    return {"format_version": 1, "set": name, "seed": seed, "frames": frames, "settings": asdict(kind)}


def _claim(folder: Path, description: Mapping[str, Any]) -> None:
    """Write `set.json` into a new folder, or see that the one there describes the same set."""
    note = folder / "set.json"
    text = json.dumps(description, indent=2) + "\n"
    if note.is_file():
        if note.read_text(encoding="utf-8") != text:
            said = _said(note)
            raise ValueError(
                f"{folder} holds another set ({said}); {description['set']} with seed {description['seed']} and"
                f" {description['frames']} frames needs a folder of its own."
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds other files and no set.json; give a new or empty folder.")
    with new_file(note) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _said(note: Path) -> str:
    """What a set.json says it is, in a few words."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return f"{found['set']}, seed {found['seed']}, {found['frames']} frames, or other settings"
    except (ValueError, KeyError, TypeError):
        return "its set.json is not one of ours"


def _is_made(path: Path, expected: Mapping[str, Any]) -> bool:
    """Whether this clip is in its place already.

    Raises:
        ValueError: something else is in its place.
    """
    if not path.exists():
        return False
    try:
        with np.load(path, allow_pickle=False) as entries:
            told = json.loads(str(entries["generated_by"]))
            same = "frames" in entries.files and all(told[key] == value for key, value in expected.items())
    except Exception:  # a zip or a JSON can be broken in many ways, and all mean the same here
        same = False
    if not same:
        raise ValueError(f"{path} is not the clip that belongs there; move it away or give another folder.")
    return True


def _film(
    kind: VortexSet, reynolds: Sequence[float], offset: Sequence[float], *, frames: int
) -> tuple[np.ndarray, list[float], list[int]]:
    """Frames (flows, frames, size, size) of flows advanced together, their periods in frames and ticks of warm-up.

    A flow's first frame comes when its own wake has saturated, so that its frames do not depend on its neighbours.
    """
    side, pause, count = kind.lattice, kind.ticks_per_frame, len(reynolds)
    lattice = wake(
        side,
        diameter=kind.diameter,
        inflow=kind.inflow,
        reynolds=reynolds,
        offset=offset,
        bulk_viscosity=kind.bulk_viscosity,
    )
    film = np.zeros((count, frames, kind.size, kind.size), np.float32)
    filmed, periods, warm_up = [0] * count, [math.nan] * count, [0] * count
    memory = math.ceil(5 * kind.diameter / (0.16 * kind.inflow))  # ticks of five periods at the lowest Strouhal number
    probe, tick = np.zeros((0, count), np.float32), 0
    while min(filmed) < frames:
        passed = lattice.run(pause, probe=(side // 2 - 1, side * 5 // 8))[:, :, 1]
        probe, tick = np.concatenate([probe, passed])[-memory:], tick + pause
        picture = None
        for flow in range(count):
            if not filmed[flow]:
                period, steady = shedding(probe[:, flow])
                if tick < kind.warm_up or not (steady or tick > kind.patience * kind.warm_up):
                    continue
                periods[flow], warm_up[flow] = period / pause, tick
            if filmed[flow] < frames:
                picture = _picture(kind, lattice) if picture is None else picture
                film[flow, filmed[flow]] = picture[flow]
                filmed[flow] += 1
    return film, periods, warm_up


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
