# SPDX-License-Identifier: Apache-2.0
"""Which sampler, how many steps: the same windows forecast under each, quality beside cost.

Few steps are compared on many windows, many steps on fewer; every row is also given on the windows that all share, with
its difference from the longest chain there, paired by window.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from framecast.data.files import new_file
from framecast.evaluate import terms
from framecast.evaluate.run import Scores, judge
from framecast.evaluate.samples import Computed
from framecast.evaluate.windows import Windows
from framecast.generate import Model

Progress = Callable[[int, int], None]

METRICS = ("crps_fair", "crps", "psnr")  # that cases keep
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")
SHORT, LONG, LONGEST = (5, 10, 20, 50), (100, 250), 1000
FEW = (8, 4)  # windows, and samples of each, of a case that is asked for by itself


@dataclass(frozen=True)
class Case:
    """One row of the study."""

    sampler: str
    steps: int
    windows: int
    samples: int

    def __str__(self) -> str:
        return f"{self.sampler} {self.steps}"


@dataclass(frozen=True)
class Row:
    """What one case gave."""

    case: Case
    scores: Scores

    @property
    def seconds(self) -> float:
        """Of one sample of one window."""
        return self.scores.seconds / (self.case.windows * self.case.samples)


def study(
    model: Model,
    windows: Windows,
    known: Sequence[int],
    *,
    folder: Path,
    cases: Sequence[Case] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Run all cases; those that `folder` holds already are read from there, so that a stopped study goes on.

    First every sampler at few steps on 16 windows × 4 samples, then `ddpm` and the best of the others at 100 and 250
    steps on 8 × 4, and `ddpm` at 1000 on 8 × 2.

    Args:
        model: to sample from.
        windows: at least as many as the largest case has: 16 where none are chosen.
        known: given frames of each.
        folder: one JSON file per case; made if need be.
        cases: those to run in place of all that.
        progress: called with network calls done and in all (of samples and steps).

    Raises:
        ValueError: too few windows, or a folder that holds cases of another model or of other windows.
    """
    short = [Case(sampler, steps, 16, 4) for sampler in SAMPLERS for steps in SHORT]
    if len(windows) < (needed := max(case.windows for case in cases or short)):
        raise ValueError(f"the study needs {needed} windows, got {len(windows)}.")
    total = cost(cases)
    rows: list[Row] = []
    done = 0
    for case in cases or _cases(short, rows):
        name = f"{case.sampler}-{case.steps}-{case.windows}x{case.samples}.json"
        path, some = folder / name, windows.first(case.windows)
        if path.exists():
            scores = _read(path, case, model, some, known)
        else:
            scores = _judged(model, some, known, case, partial(_within, progress, done, _calls(case), total))
            with new_file(path) as whole:
                told = _plain(case, scores) | _of(model, some, known)
                whole.write_text(json.dumps(told) + "\n", encoding="utf-8")
        rows.append(Row(case, scores))
        done += _calls(case)
        _within(progress, done, 0, total, 0, 1)
    return rows


def _within(progress: Progress | None, done: int, calls: int, total: int, windows: int, of: int) -> None:
    """Tell how far the study is when a case of so many calls is through some of its windows."""
    if progress is not None:
        progress(done + calls * windows // of, total)


def cost(cases: Sequence[Case] | None = None) -> int:
    """Steps of all samplers in one study, each of one sample; `cases` as in `study`."""
    if cases:
        return sum(map(_calls, cases))
    short = [Case(sampler, steps, 16, 4) for sampler in SAMPLERS for steps in SHORT]
    return sum(_calls(case) for case in [*short, *_long("ddpm", "ddim")])  # whichever is best, it costs the same


def _cases(short: Sequence[Case], rows: Sequence[Row]) -> Iterator[Case]:
    """The cases in turn; the later ones depend on what the first gave."""
    yield from short
    others = (row for row in rows if row.case.sampler != "ddpm")
    best = min(others, key=lambda row: row.scores.windows("crps_fair").mean())
    yield from _long("ddpm", best.case.sampler)


def _long(first: str, second: str) -> list[Case]:
    cases = [Case(sampler, steps, 8, 4) for steps in LONG for sampler in (first, second)]
    return [*cases, Case(first, LONGEST, 8, 2)]


def _calls(case: Case) -> int:
    return case.steps * case.windows * case.samples


def _judged(model: Model, windows: Windows, known: Sequence[int], case: Case, progress: Progress) -> Scores:
    options = model.options({"sampler": case.sampler, "steps": case.steps})
    source, asked = Computed(model, options=options), terms.Case(known=tuple(known), frames=len(windows.clips[0]))
    return judge(source, windows, asked, ("crps", "psnr"), samples=case.samples, progress=progress)


def report(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table: per case fair CRPS, PSNR and seconds a sample, and the difference from the longest chain.

    `crps_fair_shared` and `minus_longest` are over the windows that all cases share.
    """
    shared = min(row.case.windows for row in rows)
    longest = max(rows, key=lambda row: row.case.steps).scores.first(shared)
    return [
        {
            **asdict(row.case),
            "crps_fair": row.scores.interval("crps_fair").plain(),
            "psnr": row.scores.interval("psnr").plain(),
            "seconds_per_sample": float(f"{row.seconds:.4g}"),
            "crps_fair_shared": row.scores.first(shared).interval("crps_fair").plain(),
            "minus_longest": row.scores.first(shared).less(longest).plain(),
        }
        for row in rows
    ]


def _of(model: Model, windows: Windows, known: Sequence[int]) -> dict[str, Any]:
    """What a case must be of, to belong to a study."""
    frames = windows.digest()
    return {"sha256": model.digest, "units": list(windows.units), "known": list(known), "frames_sha256": frames}


def _plain(case: Case, scores: Scores) -> dict[str, Any]:
    return {
        **asdict(case),
        "model": scores.name,
        "seconds": scores.seconds,
        "values": {metric: np.round(scores.values[metric], 5).tolist() for metric in METRICS},
        "record": scores.record,
    }


def _read(path: Path, case: Case, model: Model, windows: Windows, known: Sequence[int]) -> Scores:
    """A case that was run before.

    Raises:
        ValueError: it is of another model or of other windows, or cannot be read.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        values = {metric: np.array(told["values"][metric]) for metric in METRICS}
        scores = Scores(told["model"], told["units"], values, told["samples"], told["seconds"], told["record"])
        asked = asdict(case) | _of(model, windows, known)
        same = all(told[key] == value for key, value in asked.items())
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no case of a sampler study; choose another --out.") from None
    if not same:
        raise ValueError(f"{path} is of another model or of other windows; choose another --out.")
    return scores
