# SPDX-License-Identifier: Apache-2.0
"""Judge samples by a protocol, beside the simple forecasts on the same windows.

`Plan` says what is judged how, `evaluate` does it and returns the whole result. Differences are taken window by window
before they are averaged, so that an interval says whether one forecast is better than another, not how much clips
differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from framecast.data.array_file import write_array
from framecast.data.files import BadClip, new_file
from framecast.evaluate.baselines import BASELINES, baseline
from framecast.evaluate.clip_sets import ClipSets, Found
from framecast.evaluate.intervals import Interval, bootstrap
from framecast.evaluate.plan import Plan, Progress, Stage, silent
from framecast.evaluate.result_folder import array_name
from framecast.evaluate.samples import CHUNK, Computed, Source
from framecast.evaluate.scoring import Scored, score
from framecast.evaluate.scoring import metric as about
from framecast.evaluate.terms import Case
from framecast.evaluate.windows import Windows
from framecast.metrics.field import motion_amount
from framecast.metrics.forecast import eight_bit
from framecast.nn.perceptual import LPIPS
from framecast.task import UnsupportedTask
from framecast.video import Clip

SHOWN = 3  # windows of a case whose samples are kept to look at
SET_GROUPS = {"rf3d", "rf3d*", "fvd", "r-fvd", "fvd*", "is", "memorisation", "field"}


@dataclass(frozen=True)
class Scores:
    """What one forecast made of some windows."""

    name: str
    units: Sequence[str]  # the independent unit of each window
    values: dict[str, np.ndarray]  # metric -> (windows, unknown frames), or (windows, 1)
    samples: int
    seconds: float  # of drawing, all windows
    record: dict[str, Any]  # how the samples came about
    ranks: np.ndarray | None = None  # counts, over all windows
    squares: dict[str, np.ndarray] = field(default_factory=dict)  # spread, skill: (windows, unknown frames)
    motion: np.ndarray | None = None  # of each true window: mean absolute difference of frames, in 8-bit levels

    @property
    def frames(self) -> int:
        """Unknown frames."""
        return max(values.shape[1] for values in self.values.values())

    def windows(self, metric: str) -> np.ndarray:
        """One value per window, the mean over its frames."""
        return self.values[metric].mean(1)

    def interval(self, metric: str) -> Interval:
        """Mean over units, of the means over their windows and frames; windows without a value are left out."""
        return _over_units(self.windows(metric), self.units, everywhere=about(metric).everywhere)

    def by_frame(self, metric: str) -> np.ndarray:
        """The mean of every frame over units, of the means over their windows."""
        units = np.array(list(map(str, self.units)))
        values = self.values[metric]
        return np.stack([values[units == unit].mean(0) for unit in dict.fromkeys(units)]).mean(0)

    def less(self, other: Scores, metric: str = "crps_fair") -> Interval:
        """This one minus the other, paired by window; below zero: this one is lower.

        Raises:
            ValueError: they have not seen the same windows.
        """
        if list(self.units) != list(other.units):
            raise ValueError(
                f"{self.name} and {other.name} have seen different windows ({len(self.units)} and {len(other.units)}), "
                "and can only be compared on the same ones."
            )
        minus = self.windows(metric) - other.windows(metric)
        return _over_units(minus, self.units, everywhere=about(metric).everywhere)

    def first(self, count: int) -> Scores:
        """Of the first `count` windows."""
        some = {metric: values[:count] for metric, values in self.values.items()}
        return replace(self, units=self.units[:count], values=some, ranks=None, squares={}, motion=None)

    def by_motion(self) -> dict[str, Any]:
        """Means over the third of windows that move least, the middle third and the third that moves most.

        Returns:
            `motion`, the mean amount of each third, `windows`, their numbers, and the means of every metric; nothing
            where there are fewer than nine windows.
        """
        if self.motion is None or len(self.motion) < 9:
            return {}
        thirds = np.array_split(np.argsort(self.motion, kind="stable"), 3)
        means = {name: [_mean(self.windows(name)[third]) for third in thirds] for name in self.values}
        return {"motion": [float(self.motion[t].mean()) for t in thirds], "windows": [len(t) for t in thirds], **means}


def _mean(values: np.ndarray) -> float:
    """Of the values that there are."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else math.nan


def _over_units(values: np.ndarray, units: Sequence[str], *, everywhere: bool) -> Interval:
    """Of the values that there are, where not every window has one: nothing may recur in it."""
    pairs = zip(values.tolist(), units, strict=True)
    there = [(value, unit) for value, unit in pairs if everywhere or not math.isnan(value)]
    if not there:
        return Interval(math.nan, math.nan, math.nan, 0)
    return bootstrap(*zip(*there))


@dataclass(frozen=True)
class CaseResult:
    """All figures of one case."""

    case: Case
    windows: Windows | None  # that were compared with their truth
    scores: list[Scores]  # the judged forecast first, then the simple ones
    found: Found  # figures of sets
    deviations: tuple[str, ...]  # in what the windows are not as the protocol says
    notes: tuple[str, ...] = ()  # what else the user should know


def judge(
    source: Source,
    windows: Windows,
    case: Case,
    groups: Sequence[str],
    *,
    samples: int,
    lpips: LPIPS | None = None,
    quantise: Literal["round", "truncate"] = "round",
    progress: Progress | None = None,
) -> Scores:
    """Score the samples of every window.

    Args:
        source: of the samples.
        windows: to score, in order.
        case: which frames are given.
        groups: of metrics.
        samples: of each window.
        lpips: for the group lpips.
        quantise: how values become 8-bit levels.
        progress: called with windows done and in all.

    Raises:
        UnsupportedTask: the source cannot answer.
        ValueError: windows that do not fit it.
    """
    found: list[Scored] = []
    motion: list[float] = []
    seconds, count = 0.0, 0
    for i, (clip, name) in enumerate(zip(windows.clips, windows.names, strict=True)):
        made = source.samples(case, name, clip, samples)
        if found and len(made.video) != count:
            raise ValueError(
                f"{source.name} has {len(made.video)} samples of window {name} and {count} of those before: give every "
                "window as many, or judge fewer with --samples."
            )
        seconds, count = seconds + made.seconds, len(made.video)
        true = windows.futures
        futures = None if true is None else (lambda at=i, true=true: true(at))
        found.append(
            score(made.video, clip, case.known, groups, lpips=lpips, futures=futures, window=name, quantise=quantise)
        )
        if len(clip) > 1 and clip.value_range is not None:
            motion.append(motion_amount(eight_bit(clip.frames, value_range=clip.value_range)))
        if progress is not None:
            progress(i + 1, len(windows))
    if not found:
        raise ValueError("there are no windows to judge.")
    values = {metric: np.stack([each.values[metric] for each in found]) for metric in found[0].values}
    counted = [each.ranks for each in found if each.ranks is not None]
    ranks = np.sum(counted, axis=0) if counted else None
    squares = {name: np.stack([each.squares[name] for each in found]) for name in found[0].squares}
    moved = np.array(motion) if len(motion) == len(found) else None
    return Scores(source.name, windows.units, values, count, seconds, source.record, ranks, squares, moved)


def simple_sources(
    case: Case,
    *,
    reference: Path | None,
    besides: str = "",
) -> list[Source]:
    """Every simple forecast that can complete such windows.

    Args:
        case: which frames are given.
        reference: folder of training clips for the analog forecasts; None leaves those out.
        besides: a forecast to leave out.
    """
    mask = [i in case.known for i in range(case.frames)]
    able: list[Source] = []
    for name in BASELINES:
        model = baseline(name)
        changes = {"reference": str(reference)} if hasattr(model.system.options, "reference") else {}
        if name == besides or (changes and reference is None):
            continue
        options = model.options(changes)
        with suppress(UnsupportedTask):
            model.system.plan(mask, options)
            able.append(Computed(model, options=options))
    return able


def evaluate(plan: Plan, source: Source, *, stage: Stage = silent) -> list[CaseResult]:
    """Judge a source by all cases of a protocol.

    Args:
        plan: what is judged how.
        source: of the samples.
        stage: opens a stage of the work and gives what its progress is told to.

    Raises:
        UnsupportedTask: the source cannot answer such a task.
        ValueError: a set that is not there or does not fit, or too few clips for a figure.
    """
    plan.read(stage)
    return [_case(plan, number, case, source, stage) for number, case in enumerate(plan.rules.cases)]


def draw_share(plan: Plan, source: Source, *, rank: int, of: int, stage: Stage = silent) -> None:
    """Draw every `of`-th window from the `rank`-th on, for a source that keeps samples: one process's share.

    When all processes are done, `evaluate` finds everything drawn.
    """
    for case in plan.rules.cases:
        mine = list(_wanted(plan, case))[rank::of]
        with stage(f"{source.name}, {case.name}", "windows") as progress:
            for i, (name, count, clip) in enumerate(mine):
                with suppress(BadClip):  # left out when all of them are read
                    source.samples(case, name, clip(), count)
                progress(i + 1, len(mine))


def _wanted(plan: Plan, case: Case) -> Iterator[tuple[str, int, Callable[[], Clip | None]]]:
    """Every window once, with the most samples that are asked of it; clips are read when they are needed."""
    rules = plan.rules
    if rules.task == "generate":
        for number in range(0, ClipSets(plan, case, silent).count, CHUNK):
            yield str(number), 1, lambda: None
        return
    counts: dict[str, int] = {}
    clips: dict[str, Callable[[], Clip | None]] = {}
    for cut in filter(None, (rules.paired, rules.sets)):
        found, count = plan.cut(case, cut), plan.samples or cut.samples
        count = count if cut is rules.paired else min(count, cut.samples)
        for i, name in enumerate(found.names):
            counts[name] = max(count, counts.get(name, 0))
            clips[name] = partial(found.clips.__getitem__, i)
    for name, count in counts.items():
        yield name, count, clips[name]


def _case(plan: Plan, number: int, case: Case, source: Source, stage: Stage) -> CaseResult:
    rules = plan.rules
    others: list[Source] = []
    if rules.task == "forecast":
        others = simple_sources(case, reference=plan.reference, besides=source.name)
    scores: list[Scores] = []
    missing: list[str] = []
    cut = None
    if rules.paired is not None:
        cut = plan.cut(case, rules.paired)
        how: dict[str, Any] = {"lpips": plan.networks.lpips, "quantise": rules.quantise}
        samples = plan.samples or rules.paired.samples
        with stage(f"{source.name}, {case.name}", "windows") as progress:
            scores.append(judge(source, cut, case, rules.metrics, samples=samples, progress=progress, **how))
        with stage("simple forecasts", "forecasts") as progress:
            for i, other in enumerate(list(others)):
                try:
                    scores.append(judge(other, cut, case, rules.metrics, samples=min(samples, other.most), **how))
                except (
                    ValueError
                ) as error:  # training clips that do not suit, for one; the model is judged all the same
                    missing.append(f"{other.name} is left out: {error}")
                    others.remove(other)
                progress(i + 1, len(others))
    found, real, count = Found(), None, SHOWN
    if set(rules.metrics) & SET_GROUPS:
        sets = ClipSets(plan, case, stage)
        found, real, count = sets.judge(source, others), sets.real, sets.count
    if "lpips" in rules.metrics and plan.networks.lpips is None:
        found.missing.append(f"LPIPS is not computed: no {rules.lpips} backbone was given (--lpips FILE)")
    _show(plan, number, case, [source, *others], cut if cut is not None else real, count=min(SHOWN, count))
    seen = [windows for windows in (cut, real) if windows is not None]
    deviations = dict.fromkeys(line for windows in seen for line in windows.deviations)
    notes = dict.fromkeys([*missing, *(line for windows in seen for line in windows.notes)])
    return CaseResult(case, cut, scores, found, tuple(deviations), tuple(notes))


def _show(plan: Plan, number: int, case: Case, sources: Sequence[Source], cut: Windows | None, *, count: int) -> None:
    """Keep the samples of a few windows to look at: in strips, maps and videos of a report."""
    if plan.shown is None:
        return
    for i in range(count if cut is None else min(count, len(cut))):
        folder, clip = plan.shown / str(number) / str(i), None if cut is None else cut.clips[i]
        name = str(i) if plan.rules.task == "generate" or cut is None else cut.names[i]
        about = {"name": name, "unit": name if cut is None else cut.units[i], "known": list(case.known)}
        if clip is not None:
            _keep(folder / "truth.npz", clip.frames, clip.fps, clip.value_range, about)
        for source in sources:
            given = None if plan.rules.task == "generate" else clip
            made = source.samples(case, name, given, min(_shown_samples(plan), source.most))
            _keep(
                folder / array_name(source.name),
                made.video,
                clip.fps if clip else None,
                made.value_range,
                source.record,
            )
        with new_file(folder / "about.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _shown_samples(plan: Plan) -> int:
    cut = plan.rules.paired or plan.rules.sets
    return min(8, plan.samples or (cut.samples if cut is not None else 1))


def _keep(
    path: Path, frames: Tensor, fps: float | None, value_range: tuple[float, float] | None, told: dict[str, Any]
) -> None:
    value_range = None if frames.dtype == torch.uint8 else value_range
    write_array(path, frames, fps=fps, value_range=value_range, generated_by=told, overwrite=True)
