# SPDX-License-Identifier: Apache-2.0
"""The named open sets: flow past a disc (`vortex…`) and bouncing digits (`bouncing…`), made from a seed.

Every clip is a function of (set, seed, split, number) alone: bit for bit the same whichever clips are made beside it,
and a shorter one is the beginning of a longer one. A folder of a set can be left unfinished and taken up again.
The flow itself is in `lattice_boltzmann.py`, the digits in `bouncing.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from framecast.data import array_file
from framecast.data.simulate import bouncing
from framecast.data.simulate.bouncing import Bouncing
from framecast.data.simulate.lattice_boltzmann import Backend, chosen, wake
from framecast.data.simulate.runs import about_run, write_runs
from framecast.data.simulate.set_folder import Made, claim, is_made
from framecast.data.simulate.street import RunSet, Split, VortexSet, film
from framecast.data.simulate.workers import cores, in_order
from framecast.draws import mix
from framecast.experiment import nearest
from framecast.video import Clip

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


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


SETS: dict[str, VortexSet | RunSet | BouncingSet] = {
    # Lattice 48: on 32 sites (D = 4) the wake has two modes and fails near Re 200.
    "vortex16": VortexSet(size=16, average=3, diameter=6, offset=4.5, ticks_per_frame=28, warm_up=2_250, patience=2),
    "vortex32": VortexSet(size=32, diameter=8, offset=6, ticks_per_frame=38, warm_up=6_000),
    "vortex64": VortexSet(size=64, diameter=16, offset=12, ticks_per_frame=76, warm_up=12_000),
    "vortex128": VortexSet(size=128, diameter=32, offset=24, ticks_per_frame=152, warm_up=24_000),
    "simulation128": RunSet(
        size=128,
        diameter=16,
        inflow=0.05,
        reynolds=(100.0, 125.0, 150.0, 175.0, 200.0, 225.0, 260.0, 300.0),
        ticks_per_frame=128,
        warm_up=25_600,
        frames=1250,
    ),
    "bouncing32": BouncingSet(scene=Bouncing()),
    "bouncing64": BouncingSet(scene=Bouncing(size=64, glyph=24, speed=(3.0, 6.0))),
}


def named(name: str) -> VortexSet | RunSet | BouncingSet:
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

    Raises:
        ValueError: no such set or split.

    Example:
        >>> clips = flows("bouncing32", "test", 2, 8)
        >>> len(clips), tuple(clips[0].frames.shape)
        (2, (8, 1, 32, 32))
    """
    kind = named(name)
    if split not in kind.counts:
        raise ValueError(f"{name} has no split {split!r}; choose from {', '.join(kind.counts)}.")
    count = kind.counts[split] if count is None else count
    return [clip for _, clip, _ in make(name, split, range(count), frames=frames or kind.frames, seed=seed)]


def make(
    name: str,
    split: Split,
    numbers: Sequence[int],
    *,
    frames: int,
    seed: int = 0,
    backend: Backend = "auto",
    workers: int = 1,
) -> Generator[tuple[int, Clip, dict[str, Any]], None, None]:
    """Clips of a split by number, each with what it is: as `about`, and for a flow what was measured.

    Args:
        name: of the set, a key of `SETS`; not one of long runs, whose clips share a range that only all of them tell.
        split: "train", "validation" or "test".
        numbers: of the clips.
        frames: of each.
        seed: of the whole set.
        backend: what computes flows, as for `Lattice`; no matter for the result.
        workers: how many flows are computed at once.

    Yields:
        Number, clip, and plain values; for flows among them `period`, of the shedding in frames, `warm_up`, in ticks,
        and `backend`.
    """
    kind = named(name)
    if isinstance(kind, RunSet):
        raise ValueError(f"the range of {name} is that of all its frames: write it with simulate and read its files.")
    if isinstance(kind, BouncingSet):
        for number in numbers:
            told = about(name, split, number, seed)
            yield number, Clip(bouncing.clip(kind.scene, frames=frames, seed=told["clip_seed"])), told
        return
    computed_by = chosen(backend)
    batch = _batch(kind) if computed_by == "numpy" else 1
    jobs = [
        [about(name, split, number, seed) for number in numbers[first : first + batch]]
        for first in range(0, len(numbers), batch)
    ]

    def compute(job: list[dict[str, Any]], stop: Event) -> tuple[np.ndarray, list[float], list[int]]:
        reynolds, offset = ([told[key] for told in job] for key in ("reynolds", "offset"))
        return film(kind, reynolds, offset, frames=frames, backend=computed_by, stop=stop)

    with closing(in_order(compute, jobs, workers=workers)) as done:
        for job, (pictures, periods, warm_up) in zip(jobs, done):
            for row, told in enumerate(job):
                clip = Clip(torch.from_numpy(pictures[row][:, None].copy()), None, (-1.0, 1.0))
                measured = {"period": periods[row], "warm_up": warm_up[row], "backend": computed_by}
                yield told["number"], clip, told | measured


def _batch(kind: VortexSet | RunSet) -> int:
    """Flows that numpy computes together: so many that their fields stay in a core's cache."""
    return max(1, 16_384 // kind.lattice**2)


def about(name: str, split: Split, number: int, seed: int = 0) -> dict[str, Any]:
    """What clip `number` of a split is: its Reynolds number and offset, or its seed; plain values."""
    kind = named(name)
    told = {"set": name, "split": split, "number": number, "seed": seed}
    if isinstance(kind, BouncingSet):
        return told | {"clip_seed": mix(name, seed, split, number)}
    if isinstance(kind, RunSet):
        return about_run(name, kind, number, seed) | {"split": split}
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
    backend: Backend = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Write a set as `<out>/<split>/flow_0000.npz` (bouncing sets: `clip_0000.npz`) and `<out>/set.json`.

    Files hold `frames` (T, C, H, W), `value_range` and `generated_by`, a JSON of what the clip is. Each is written
    whole or not at all; files of the same set that are there already are kept, so an interrupted run goes on. Frames
    depend neither on the backend nor on the number of workers. Sets of long runs are laid out as `runs.py` says.

    Args:
        name: of the set, a key of `SETS`.
        out_dir: a new or empty folder, or one that holds this set already.
        splits: which; None: all.
        flows: clips per split; None: the set's own numbers.
        frames: per clip, of long runs per run; None: the set's own number.
        seed: of the whole set.
        backend: what computes flows: "numpy", "numba", or "auto", numba where it is installed.
        workers: how many flows are computed at once; None: one on each core that this process may use.
        progress: called with (clips done, clips in all) after each clip.

    Raises:
        ValueError: no such set or split, or a folder that holds something else; nothing is overwritten.
    """
    kind, folder, begun = named(name), Path(out_dir), time.perf_counter()
    wanted = SPLITS if splits is None else tuple(splits)
    if unknown := [split for split in wanted if split not in SPLITS]:
        raise ValueError(f"there is no split {unknown[0]!r}; choose from {', '.join(SPLITS)}.")
    for what, number in (("flows", flows), ("frames", frames), ("workers", workers)):
        if number is not None and number < 1:
            raise ValueError(f"{what} is {number}; it must be 1 or more.")
    length, computed_by, workers = frames or kind.frames, chosen(backend), workers or cores()
    if isinstance(kind, RunSet):
        if splits is not None:
            raise ValueError(f"{name} is written whole, since its parts for training and testing are of the same runs.")
        return write_runs(
            name,
            kind,
            folder,
            runs=flows or len(kind.reynolds),
            frames=length,
            seed=seed,
            backend=computed_by,
            workers=workers,
            progress=progress,
        )
    claim(folder, _description(name, kind, length, seed))
    counts = {split: flows or kind.counts[split] for split in wanted}
    done, total, kept = 0, sum(counts.values()), 0
    for split, count in counts.items():
        paths = {number: folder / split / f"{_prefix(kind)}_{number:04d}.npz" for number in range(count)}
        missing = [number for number, path in paths.items() if not is_made(path, about(name, split, number, seed))]
        kept += count - len(missing)
        done += count - len(missing)
        if progress is not None and done:
            progress(done, total)
        clips = make(name, split, missing, frames=length, seed=seed, backend=computed_by, workers=workers)
        with closing(clips):  # or threads work on, as long as the traceback of an interruption holds the iterator
            for number, clip, told in clips:
                array_file.write_array(
                    paths[number], clip.frames, fps=clip.fps, value_range=clip.value_range, generated_by=told
                )
                done += 1
                if progress is not None:
                    progress(done, total)
    return Made(folder, total - kept, kept, time.perf_counter() - begun)


def speed(name: str, *, backend: Backend = "auto", ticks: int = 200) -> float:
    """Site updates per second of one core's time that the flows of a set are computed at, disc and all.

    Args:
        name: of a set of flows.
        backend: what computes.
        ticks: to time, after a few untimed ones.
    """
    kind = named(name)
    if isinstance(kind, BouncingSet):
        raise ValueError(f"{name} has no lattice; give a set of flows.")
    count = _batch(kind)
    lattice = wake(kind.lattice, diameter=kind.diameter, inflow=kind.inflow, reynolds=[100.0] * count, backend=backend)
    lattice.run(5)  # compiles
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
