# SPDX-License-Identifier: Apache-2.0
"""The folder of a set of long runs: raw vorticity that shares one value range, known only when all of it is there.

First each run becomes a file of its own in `.runs`; when all are there, their common range is known, and they are cut
into `train/flow_0000.npz` and `test/flow_0000.npz`, which declare it, and `.runs` goes. `vortex.npy` holds all frames
once more as one array, the training parts of all runs first: the form in which the RVD paper's data set is read.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from framecast.data.files import new_file
from framecast.data.simulate.lattice_boltzmann import Backend
from framecast.data.simulate.set_folder import Made, claim, is_made
from framecast.data.simulate.street import RunSet, film_run
from framecast.data.simulate.workers import in_order
from framecast.draws import mix

_SPLITS = ("train", "test")


def about_run(name: str, kind: RunSet, number: int, seed: int) -> dict[str, Any]:
    """What run `number` is: plain values."""
    low, high = kind.bump
    rng = np.random.Generator(np.random.PCG64(mix(name, seed, "run", number)))
    bump = low + (high - low) * rng.random()
    return {"set": name, "number": number, "seed": seed, "reynolds": kind.reynolds[number], "bump": bump}


def write_runs(
    name: str,
    kind: RunSet,
    folder: Path,
    *,
    runs: int,
    frames: int,
    seed: int,
    backend: Backend,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Made:
    """Write the first runs of a set, each of so many frames; arguments as of `sets.simulate`."""
    begun = time.perf_counter()
    if runs > len(kind.reynolds):
        raise ValueError(f"{name} has {len(kind.reynolds)} runs; {runs} were asked for.")
    if frames < 5:
        raise ValueError(f"frames is {frames}; a run's last fifth is for testing, so it must be 5 or more.")
    described = {"format_version": 1, "set": name, "seed": seed, "runs": runs, "frames": frames}
    claim(folder, described | {"settings": asdict(kind)})
    abouts = [about_run(name, kind, number, seed) for number in range(runs)]
    files = {(split, number): _file(folder, split, number) for number in range(runs) for split in _SPLITS}
    missing = [
        key for key, path in files.items() if not is_made(path, abouts[key[1]] | {"split": key[0], "frames": frames})
    ]
    parts = folder / ".runs"

    def report(computed: int, cut: int) -> None:
        if progress is not None:
            progress(computed + cut, 2 * runs)

    if missing:
        to_run = [told for told in abouts if not is_made(_part(parts, told["number"]), told | {"frames": frames})]
        done = runs - len(to_run)
        report(done, 0)

        def compute(told: dict[str, Any], stop: Event) -> tuple[np.ndarray, float]:
            return film_run(kind, told["reynolds"], told["bump"], frames=frames, backend=backend, stop=stop)

        with closing(in_order(compute, to_run, workers=workers)) as films:  # see sets.simulate
            for told, (pictures, period) in zip(to_run, films):
                told = told | {"frames": frames, "period": period, "warm_up": kind.warm_up, "backend": backend}
                told |= {"least": float(pictures.min()), "greatest": float(pictures.max())}
                _write(_part(parts, told["number"]), pictures, None, told)
                done += 1
                report(done, 0)
        value_range = _common_range(parts, runs)
        for number in range(runs):
            mine = {split: files[split, number] for split in _SPLITS if (split, number) in missing}
            _cut(_part(parts, number), mine, value_range=value_range, tested=frames // 5)
            report(runs, number + 1)
    if not (folder / "vortex.npy").exists():
        _stack(folder / "vortex.npy", [_file(folder, split, number) for split in _SPLITS for number in range(runs)])
    shutil.rmtree(parts, ignore_errors=True)
    return Made(folder, len(missing), len(files) - len(missing), time.perf_counter() - begun)


def _file(folder: Path, split: str, number: int) -> Path:
    return folder / split / f"flow_{number:04d}.npz"


def _part(parts: Path, number: int) -> Path:
    return parts / f"run_{number:04d}.npz"


def _common_range(parts: Path, runs: int) -> tuple[float, float]:
    """Least and greatest value of all runs."""
    abouts = []
    for number in range(runs):
        with np.load(_part(parts, number), allow_pickle=False) as entries:
            abouts.append(json.loads(str(entries["generated_by"])))
    return min(told["least"] for told in abouts), max(told["greatest"] for told in abouts)


def _cut(part: Path, files: Mapping[str, Path], *, value_range: tuple[float, float], tested: int) -> None:
    """Cut a run into the files that are missing, by split."""
    with np.load(part, allow_pickle=False) as entries:
        pictures, told = entries["frames"], json.loads(str(entries["generated_by"]))
    for split, path in files.items():
        mine = pictures[:-tested] if split == "train" else pictures[-tested:]
        _write(path, mine[:, None], value_range, told | {"split": split})


def _write(
    path: Path, pictures: np.ndarray, value_range: tuple[float, float] | None, generated_by: Mapping[str, Any]
) -> None:
    """As `array_file.write_array` does, but not compressed: raw vorticity shrinks by a tenth, and takes a minute."""
    entries = {"frames": pictures, "generated_by": np.array(json.dumps(dict(generated_by)))}
    if value_range is not None:
        entries["value_range"] = np.asarray(value_range, np.float64)
    with new_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **entries)  # type: ignore[arg-type]


def _stack(path: Path, files: list[Path]) -> None:
    """All frames of the files as one array (frames, height, width)."""
    clips = [np.load(file, allow_pickle=False) for file in files]
    shapes = [clip["frames"].shape for clip in clips]
    with new_file(path) as temporary:
        total = (sum(shape[0] for shape in shapes), *shapes[0][2:])
        whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=total)
        begin = 0
        for clip, shape in zip(clips, shapes):
            whole[begin : begin + shape[0]] = clip["frames"][:, 0]
            begin += shape[0]
            clip.close()
        whole.flush()
        del whole  # closes the file, which must not be open when it is renamed
