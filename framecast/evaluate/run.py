# SPDX-License-Identifier: Apache-2.0
"""Judge a model by a protocol, beside the simple forecasts: scores of every window, means with intervals.

All who are compared see the same windows. Differences are taken window by window before they are averaged, so that an
interval says whether one forecast is better than another, not how much flows differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framecast.evaluate.baselines import BASELINES, baseline, ensemble
from framecast.evaluate.intervals import Interval, bootstrap
from framecast.evaluate.protocols import Protocol
from framecast.evaluate.windows import Windows
from framecast.experiment import SampleOptions, to_plain
from framecast.forecast import Forecast
from framecast.generate import Model
from framecast.task import UnsupportedTask

METRICS = ("crps_fair", "crps", "psnr")


@dataclass(frozen=True)
class Scores:
    """What one model made of some windows; CRPS in 8-bit levels, PSNR in decibels."""

    name: str
    units: Sequence[str]  # the independent unit of each window
    values: dict[str, np.ndarray]  # metric -> (windows, unknown frames)
    samples: int
    seconds: float  # of drawing, all windows
    record: dict[str, Any]  # of the first window's forecast

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
        return Scores(self.name, self.units[:count], some, self.samples, self.seconds, self.record)


def judge(
    model: Model,
    windows: Windows,
    known: Sequence[int],
    *,
    samples: int,
    options: SampleOptions | None = None,
    seed: int = 0,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Complete every window from its known frames and score the others.

    Args:
        model: that forecasts.
        windows: to complete.
        known: given frames of each, from 0.
        samples: of each window.
        options: sampling options; None: the model's own.
        seed: window i is drawn from seed + i.
        batch: samples drawn at once.
        progress: called with windows done and in all.

    Raises:
        UnsupportedTask: the model cannot.
        ValueError: windows that do not fit it.
    """
    plain = to_plain(options) if options is not None else None
    how: dict[str, Any] = {"samples": samples, "options": plain, "batch": batch}

    def forecasts() -> Iterator[Forecast]:
        for i, clip in enumerate(windows.clips):
            if list(known) == list(range(len(known))):
                yield model.predict(clip, len(clip) - len(known), context=len(known), seed=seed + i, **how)
            else:
                yield model.infill(clip, known, seed=seed + i, **how)
            if progress is not None:
                progress(i + 1, len(windows))

    return scored(model.name, forecasts(), windows.units)


def scored(name: str, forecasts: Iterable[Forecast], units: Sequence[str]) -> Scores:
    """Scores of forecasts whose truth is known, one per unit given; they are taken one at a time, and not kept.

    Raises:
        ValueError: a forecast without a truth to compare with.
    """
    told: list[dict[str, list[float]]] = []
    seconds, record, samples = 0.0, dict[str, Any](), 0
    for made in forecasts:
        scores = made.scores()
        if scores is None:
            raise ValueError(f"forecast {len(told)} of {name} has no truth to compare with.")
        told.append(scores["model"]["per_frame"])
        seconds += made.record["seconds"]
        record, samples = record or made.record, len(made)
    values = {metric: np.array([frames[metric] for frames in told]) for metric in METRICS}
    return Scores(name, units, values, samples, seconds, record)


def simple_forecasts(
    windows: Windows,
    known: Sequence[int],
    *,
    reference: Path | str | None,
    besides: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """Scores of every simple forecast that can do this, on the same windows, with as many samples as it has.

    Args:
        windows: to complete.
        known: given frames of each.
        reference: folder of training clips for the analog forecasts; None leaves those out.
        besides: a forecast to leave out.
        progress: called with forecasts done and in all.
    """
    mask = [i in set(known) for i in range(len(windows.clips[0]))]
    able = []
    for name in BASELINES:
        model = baseline(name)
        changes = {"reference": str(reference)} if hasattr(model.system.options, "reference") else {}
        if name == besides or (changes and reference is None):
            continue
        options = model.options(changes)
        with suppress(UnsupportedTask):
            model.system.plan(mask, options)
            able.append((model, options))
    found = []
    for model, options in able:
        found.append(judge(model, windows, known, samples=ensemble(model.name), options=options))
        if progress is not None:
            progress(len(found), len(able))
    return found


def result(protocol: Protocol, model: Scores, others: Sequence[Scores]) -> dict[str, Any]:
    """All figures of an evaluation with the whole protocol, for JSON."""
    changed = deviations(protocol, model)
    return {
        "protocol": protocol.name + ("-partial" if changed else ""),
        "deviations": changed,
        "settings": asdict(protocol),
        "unit": "CRPS in 8-bit levels, PSNR of a sample in dB; intervals: 95 %, bootstrap over flows",
        "windows": len(model.units),
        "model": _told(model) | {"record": model.record},
        "simple_forecasts": {
            other.name: _told(other) | {"model_minus_this": model.less(other).plain()} for other in others
        },
    }


def deviations(protocol: Protocol, model: Scores) -> list[str]:
    """In what a run differs from its protocol, in words."""
    changed, stated = [], protocol.paired
    if stated is not None and len(model.units) != stated.windows:
        changed.append(f"{len(model.units)} windows instead of {stated.windows}")
    if stated is not None and model.samples != stated.samples:
        changed.append(f"{model.samples} samples instead of {stated.samples}")
    return changed


def _told(scores: Scores) -> dict[str, Any]:
    leads = {f"{m}_by_frame": [float(f"{v:.5g}") for v in scores.values[m].mean(0)] for m in METRICS}
    means = {metric: scores.interval(metric).plain() for metric in METRICS}
    return {**means, **leads, "samples": scores.samples, "seconds": round(scores.seconds, 2)}
