# SPDX-License-Identifier: Apache-2.0
"""Judge samples by a protocol, beside the simple forecasts on the same windows.

`Plan` says what is judged how, `evaluate` does it and returns the whole result. Differences are taken window by window
before they are averaged, so that an interval says whether one forecast is better than another, not how much clips
differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from framecast.data.array_file import write_array
from framecast.data.files import new_file
from framecast.evaluate.baselines import BASELINES, baseline
from framecast.evaluate.dynamics import fields, memorisation
from framecast.evaluate.feature_cache import FeatureCache, Network
from framecast.evaluate.intervals import Interval, bootstrap
from framecast.evaluate.samples import Computed, Source
from framecast.evaluate.scoring import Scored, score
from framecast.evaluate.sets import (
    Features,
    RandomFeatures,
    SetFigure,
    frechet_figures,
    inception_figure,
    random_figures,
)
from framecast.evaluate.terms import Case, Cut, Protocol
from framecast.evaluate.windows import Windows, windows
from framecast.experiment import VideoSpec
from framecast.metrics.features import FeatureNetwork
from framecast.metrics.forecast import eight_bit
from framecast.metrics.lpips import LPIPS
from framecast.task import UnsupportedTask
from framecast.video import Clip

Progress = Callable[[int, int], None]  # done, in all
Stage = Callable[[str, str], AbstractContextManager[Progress]]  # what is done, what is counted

SHOWN = 3  # windows of a case whose samples are kept to look at


@contextmanager
def silent(label: str, unit: str) -> Iterator[Progress]:
    """A stage that nobody watches."""
    yield lambda done, total: None


@dataclass(frozen=True)
class Networks:
    """Networks whose weights the user has given; figures of the others are left out, and that is told."""

    i3d: FeatureNetwork | None = None
    c3d: FeatureNetwork | None = None
    lpips: LPIPS | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is judged, and how."""

    rules: Protocol
    data: Path  # folder of the protocol's set
    like: VideoSpec | None = None  # what the clips are fitted to; None: the protocol's own size
    windows: int | None = None  # the first so many only
    samples: int | None = None  # of each window, instead of the protocol's
    networks: Networks = field(default_factory=Networks)
    cache: FeatureCache = field(default_factory=FeatureCache)
    shown: Path | None = None  # folder for samples to look at; None: none are kept

    def cut(self, case: Case, how: Cut) -> Windows:
        """Windows of a case, at most as many as asked for."""
        found = windows(self.rules, case, how, self.data, like=self.like)
        return found.first(self.windows) if self.windows else found

    @property
    def reference(self) -> Path | None:
        """Training clips for what looks things up in them, where there are any."""
        folder = self.data / "train"
        return folder if folder.is_dir() and self.rules.split != "train" else None


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

    @property
    def frames(self) -> int:
        """Unknown frames."""
        return max(values.shape[1] for values in self.values.values())

    def windows(self, metric: str) -> np.ndarray:
        """One value per window, the mean over its frames."""
        return self.values[metric].mean(1)

    def interval(self, metric: str) -> Interval:
        """Mean over windows and frames."""
        return bootstrap(self.windows(metric).tolist(), self.units)

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
        return bootstrap((self.windows(metric) - other.windows(metric)).tolist(), self.units)

    def first(self, count: int) -> Scores:
        """Of the first `count` windows."""
        some = {metric: values[:count] for metric, values in self.values.items()}
        return replace(self, units=self.units[:count], values=some, ranks=None, squares={})


@dataclass(frozen=True)
class CaseResult:
    """All figures of one case."""

    case: Case
    windows: Windows | None  # that were compared with their truth
    scores: list[Scores]  # the judged forecast first, then the simple ones
    sets: dict[str, dict[str, SetFigure]]  # by forecast
    curves: dict[str, dict[str, np.ndarray]]  # by forecast: figures of sets by frame
    missing: list[str]  # figures that could not be computed, and why


def judge(
    source: Source,
    windows: Windows,
    case: Case,
    groups: Sequence[str],
    *,
    samples: int,
    lpips: LPIPS | None = None,
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
        progress: called with windows done and in all.

    Raises:
        UnsupportedTask: the source cannot answer.
        ValueError: windows that do not fit it.
    """
    found: list[Scored] = []
    seconds, count = 0.0, 0
    for i, (clip, name) in enumerate(zip(windows.clips, windows.names, strict=True)):
        made = source.samples(case, name, clip, samples)
        seconds, count = seconds + made.seconds, len(made.video)
        true = windows.futures
        futures = None if true is None else (lambda at=i, true=true: true(at))
        found.append(score(made.video, clip, case.known, groups, lpips=lpips, futures=futures, window=name))
        if progress is not None:
            progress(i + 1, len(windows))
    if not found:
        raise ValueError("there are no windows to judge.")
    values = {metric: np.stack([each.values[metric] for each in found]) for metric in found[0].values}
    counted = [each.ranks for each in found if each.ranks is not None]
    ranks = np.sum(counted, axis=0) if counted else None
    squares = {name: np.stack([each.squares[name] for each in found]) for name in found[0].squares}
    return Scores(source.name, windows.units, values, count, seconds, source.record, ranks, squares)


def simple_sources(
    case: Case,
    *,
    reference: Path | None,
    besides: str = "",
    quantise: Literal["round", "truncate"] = "round",
) -> list[Source]:
    """Every simple forecast that can complete such windows.

    Args:
        case: which frames are given.
        reference: folder of training clips for the analog forecasts; None leaves those out.
        besides: a forecast to leave out.
        quantise: how values become bytes.
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
            able.append(Computed(model, options=options, quantise=quantise))
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
    return [_case(plan, number, case, source, stage) for number, case in enumerate(plan.rules.cases)]


def _case(plan: Plan, number: int, case: Case, source: Source, stage: Stage) -> CaseResult:
    rules = plan.rules
    others: list[Source] = []
    if rules.task == "forecast":
        others = simple_sources(case, reference=plan.reference, besides=source.name, quantise=rules.quantise)
    scores: list[Scores] = []
    cut = None
    if rules.paired is not None:
        cut = plan.cut(case, rules.paired)
        samples = plan.samples or rules.paired.samples
        how: dict[str, Any] = {"lpips": plan.networks.lpips}
        with stage(f"{source.name}, {case.name}", "windows") as progress:
            scores.append(judge(source, cut, case, rules.metrics, samples=samples, progress=progress, **how))
        with stage("simple forecasts", "forecasts") as progress:
            for other in others:
                scores.append(judge(other, cut, case, rules.metrics, samples=min(samples, other.most), **how))
                progress(len(scores) - 1, len(others))
    found = _Sets(plan, case, stage).figures(source, others) if rules.sets is not None else ({}, {}, [])
    missing = [*found[2]]
    if "lpips" in rules.metrics and plan.networks.lpips is None:
        missing.append(f"LPIPS is not computed: no {rules.lpips} weights were given")
    _show(plan, number, case, [source, *others], cut)
    return CaseResult(case, cut, scores, found[0], found[1], missing)


class _Sets:
    """Figures of sets of one case."""

    def __init__(self, plan: Plan, case: Case, stage: Stage):
        self.plan, self.case, self.stage = plan, case, stage
        self.rules = plan.rules
        assert self.rules.sets is not None
        self.cut: Cut = self.rules.sets
        self.real = plan.cut(case, self.rules.real or self.cut)
        self.random = RandomFeatures()
        self.missing: list[str] = []

    def figures(
        self, source: Source, others: Sequence[Source]
    ) -> tuple[dict[str, dict[str, SetFigure]], dict[str, dict[str, np.ndarray]], list[str]]:
        """By forecast: figures, and curves by frame; and what could not be computed."""
        told: dict[str, dict[str, SetFigure]] = {}
        curves: dict[str, dict[str, np.ndarray]] = {}
        for each in (source, *others):
            told[each.name] = self._random(each)
            if each is source or each.name == "persistence":  # other simple forecasts would cost as much as the model
                told[each.name] |= self._classified(each)
        groups = self.rules.metrics
        if "fvd*" in groups:
            told[source.name] |= self._beside_reconstructions(source)
        if "memorisation" in groups:
            told[source.name] |= self._memorised(source)
        if "field" in groups:
            figures, curves[source.name] = fields(self._real_clips(), self._fake_clips(source), units=self.real.units)
            told[source.name] |= figures
        return told, curves, self.missing

    def _random(self, source: Source) -> dict[str, SetFigure]:
        if self.real.clips[0].frames.shape[1] not in (1, 3):
            self._miss("rf3d-v1 is not computed: it takes 1 or 3 channels")
            return {}
        return self._tried("rf3d-v1", lambda: random_figures(self._real(self.random), self._fake(self.random, source)))

    def _beside_reconstructions(self, source: Source) -> dict[str, SetFigure]:
        """FVD*: the reference is what the model's codec makes of the real clips."""
        network = self.plan.networks.i3d
        if network is None:
            self._miss("FVD* is not computed: no I3D weights were given (--i3d FILE)")
            return {}
        if source.reconstructed(self.real.clips[0]) is None:
            self._miss("FVD* is not computed: the model has no codec to reconstruct real clips with")
            return {}

        def clips() -> Iterator[Tensor]:
            for clip in self.real.clips:
                made = source.reconstructed(clip)
                assert made is not None
                yield self._seen(made, clip)

        with self.stage("reconstructions of real clips, i3d", "clips") as progress:
            total = len(self.real)
            values = self.plan.cache.features(network, clips(), progress=lambda done: progress(done, total))
        real, fake = Features(values, self.real.units), self._fake(network, source)
        return self._tried("FVD*", partial(self._frechet, "fvd*", real, fake))

    def _frechet(self, name: str, real: Features, fake: Features) -> dict[str, SetFigure]:
        settings = self.rules.frechet
        return frechet_figures(name, real, fake, ddof=settings.ddof, folds=settings.folds)

    def _tried(self, name: str, figures: Callable[[], dict[str, SetFigure]]) -> dict[str, SetFigure]:
        """Figures, or none where there are too few clips for them, which is told."""
        try:
            return figures()
        except ValueError as error:
            self._miss(f"{name} is not computed: {error}")
            return {}

    def _memorised(self, source: Source) -> dict[str, SetFigure]:
        reference = self.plan.reference
        if reference is None:
            self._miss(f"memorisation is not looked for: there is no folder {self.plan.data / 'train'}")
            return {}
        with self.stage("nearest training windows", "clips") as progress:
            figure = memorisation(
                self._real_clips(), self._fake_clips(source), reference=reference, total=self.fakes, progress=progress
            )
        return {"memorisation": figure}

    def _real_clips(self) -> Iterator[Tensor]:
        return (self._seen(clip.frames, clip) for clip in self.real.clips)

    def _fake_clips(self, source: Source) -> Iterator[Tensor]:
        for _, name, clip in self._asked():
            for sample in source.samples(self.case, name, clip, self.cut.samples).video:
                yield self._seen(sample, clip)

    def _classified(self, source: Source) -> dict[str, SetFigure]:
        """What I3D and C3D say."""
        told: dict[str, SetFigure] = {}
        groups, networks, rules = self.rules.metrics, self.plan.networks, self.rules
        for name in ("fvd", "r-fvd"):
            if name in groups and networks.i3d is None:
                self._miss(f"{name.upper()} is not computed: no I3D weights were given (--i3d FILE)")
            elif name in groups and networks.i3d is not None:
                real, fake = self._real(networks.i3d), self._fake(networks.i3d, source)
                told |= self._tried(name.upper(), partial(self._frechet, name, real, fake))
        if "is" in groups and rules.inception is not None:
            if networks.c3d is None:
                self._miss(
                    "the Inception Score is not computed: no C3D weights were given (--c3d FILE --c3d-mean FILE)"
                )
            else:
                real, fake = self._real(networks.c3d), self._fake(networks.c3d, source)
                splits = min(rules.inception.splits, len(fake.values))
                told["is"] = inception_figure(real.values, fake.values, splits=splits, eps=rules.inception.eps)
        return told

    def _miss(self, what: str) -> None:
        if what not in self.missing:
            self.missing.append(what)

    def _real(self, network: Network) -> Features:
        with self.stage(f"real clips, {_called(network)}", "clips") as progress:
            total = len(self.real)
            values = self.plan.cache.features(network, self._real_clips(), progress=lambda done: progress(done, total))
        return Features(values, self.real.units)

    def _fake(self, network: Network, source: Source) -> Features:
        total = self.fakes
        units = [unit for unit, _, _ in self._asked() for _ in range(self.cut.samples)]
        with self.stage(f"{source.name}, {_called(network)}", "clips") as progress:
            values = self.plan.cache.features(
                network, self._fake_clips(source), progress=lambda done: progress(done, total)
            )
        return Features(values, units[: len(values)])

    @property
    def fakes(self) -> int:
        """How many clips are judged."""
        return sum(1 for _ in self._asked()) * self.cut.samples

    def _asked(self) -> Iterable[tuple[str, str, Clip]]:
        """Unit, name and clip of every window to complete; to generate, only numbers and a clip's form."""
        if self.rules.task != "generate":
            return zip(self.fake_windows.units, self.fake_windows.names, self.fake_windows.clips)
        count = min(self.plan.windows or 10**9, self.cut.windows or len(self.real))
        form = self.real.clips[0]
        return ((str(i), str(i), form) for i in range(count))

    @property
    def fake_windows(self) -> Windows:
        """Windows that are completed: those of the real set, unless the protocol compares with another."""
        return self.real if self.rules.real is None else self.plan.cut(self.case, self.cut)

    def _seen(self, frames: Tensor, like: Clip) -> Tensor:
        """The frames that metrics of sets see, as bytes."""
        assert like.value_range is not None
        judged = list(self.case.judged) if self.case.judged is not None else list(range(len(frames)))
        return eight_bit(frames[judged], value_range=like.value_range)


def _called(network: Network) -> str:
    return getattr(network, "name", network.key)


def _show(plan: Plan, number: int, case: Case, sources: Sequence[Source], cut: Windows | None) -> None:
    """Keep the samples of a few windows to look at: in strips, maps and videos of a report."""
    if plan.shown is None:
        return
    if cut is None:
        assert plan.rules.sets is not None
        cut = plan.cut(case, plan.rules.real or plan.rules.sets)
    for i in range(min(SHOWN, len(cut))):
        folder, clip = plan.shown / str(number) / str(i), cut.clips[i]
        name = str(i) if plan.rules.task == "generate" else cut.names[i]
        about = {"name": name, "unit": cut.units[i], "known": list(case.known)}
        _keep(folder / "truth.npz", clip.frames, clip, {"window": cut.names[i]})
        for source in sources:
            made = source.samples(case, name, clip, min(_shown_samples(plan), source.most)).video
            _keep(folder / f"{source.name}.npz", made, clip, source.record)
        with new_file(folder / "about.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _shown_samples(plan: Plan) -> int:
    cut = plan.rules.paired or plan.rules.sets
    assert cut is not None
    return min(8, plan.samples or cut.samples)


def _keep(path: Path, frames: Tensor, like: Clip, told: dict[str, Any]) -> None:
    value_range = None if frames.dtype == torch.uint8 else like.value_range
    write_array(path, frames, fps=like.fps, value_range=value_range, generated_by=told, overwrite=True)
