# SPDX-License-Identifier: Apache-2.0
"""Figures of a whole set of clips beside a set of real ones: distances of features, Inception Score, memorisation.

Such a figure depends on how many clips there are, and on chance. Beside each stands what it is between two halves of
the real clips (the floor; of half as many clips, so that distances are about twice as high there as between equal laws
with all clips), and an interval from disjoint folds: the figure on parts that share no independent unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from framecast.metrics import rf3d
from framecast.metrics.distribution import density_coverage, frechet_of, inception_score, kernel_distance

Measure = Callable[[Tensor, Tensor], tuple[float, ...]]  # features of real clips, of judged ones -> its figures

FOLDS = 4
_NEIGHBOURS = ((0.0, math.inf), (0.0, 1.0))  # what density and coverage can be
# two-sided 95 % points of Student's t for 1, 2, … degrees of freedom
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class SetFigure:
    """One figure of a set."""

    label: str
    value: float
    low: float | None  # 95 % interval; None where there are too few independent units for one
    high: float | None
    folds: tuple[float, ...]  # the figure on disjoint parts
    n_real: int
    n_fake: int
    floor: float | None  # between two halves of the real clips; of an Inception Score, that of the real clips
    better: str
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON, rounded to five digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Features:
    """Features of a set, and the independent unit of each clip."""

    values: Float64[Tensor, "n d"]
    units: Sequence[Hashable]

    def part(self, number: int, of: int) -> Tensor:
        """The clips of every `of`-th unit: parts share no unit."""
        order = {unit: i for i, unit in enumerate(dict.fromkeys(self.units))}
        return self.values[[i for i, unit in enumerate(self.units) if order[unit] % of == number]]


def compared(
    labels: Sequence[str],
    measure: Measure,
    real: Features,
    fake: Features,
    *,
    better: str = "lower",
    bounds: Sequence[tuple[float, float]] = ((0.0, math.inf),),
    folds: int = FOLDS,
    mean_of_folds: bool = False,
    note: str = "",
) -> list[SetFigure]:
    """Figures of two sets, each with its floor and its interval.

    Args:
        labels: what the measure's figures are called.
        measure: from the features of real and of judged clips; both must hold enough of them.
        real: the reference.
        fake: the set judged.
        better: lower, higher or none.
        bounds: of each figure; its interval ends there.
        folds: disjoint parts for the interval, which reaches t s / sqrt(folds) to both sides of the value, s being the
            standard deviation over parts. Parts have fewer clips, so that their spread is at least the one that counts,
            and far more for two sets of one law, where it falls with the number of clips, not with its root: the
            interval errs on the wide side.
        mean_of_folds: the value is the mean over the parts, as protocols of cross-validation want.
        note: what else must be said.

    Raises:
        ValueError: too few clips for the measure.
    """
    whole = measure(real.values, fake.values)
    parts = _on_parts(measure, real, fake, folds)
    floor = _tried(measure, real.part(0, 2), real.part(1, 2))
    if mean_of_folds and not parts:
        note = "; ".join(filter(None, (note, f"too few clips for {folds} folds: one value over all of them")))
    found = []
    for i, label in enumerate(labels):
        mine = tuple(part[i] for part in parts)
        value = float(np.mean(mine)) if mean_of_folds and mine else whole[i]
        low, high = _interval(value, mine, *bounds[i])
        own = None if floor is None else floor[i]
        found.append(SetFigure(label, value, low, high, mine, len(real.values), len(fake.values), own, better, note))
    return found


def one(measure: Callable[[Tensor, Tensor], float]) -> Measure:
    """A measure of one figure."""
    return lambda real, fake: (measure(real, fake),)


def frechet_figures(
    name: str, real: Features, fake: Features, *, ddof: int = 1, folds: int = 1
) -> dict[str, SetFigure]:
    """Fréchet and kernel distance in the features of a classifier, under the name of the first: fvd, r-fvd, fvd*.

    Args:
        name: of the figure.
        real: reference.
        fake: judged.
        ddof: of covariances.
        folds: of the protocol; above 1 the value is their mean.
    """
    length, fewest = real.values.shape[1], min(len(real.values), len(fake.values))
    note = ""
    if fewest <= length:
        note = (
            f"{fewest} clips for {length} features: covariances are singular and the value is biased upwards; compare "
            "it only with values of as many clips, and with the floor"
        )
    label = {"fvd": "FVD", "r-fvd": "R-FVD", "fvd*": "FVD*"}[name]
    kernel = {"fvd": "KVD", "r-fvd": "R-KVD", "fvd*": "KVD*"}[name]
    distance, number = one(partial(frechet_of, ddof=ddof)), folds if folds > 1 else FOLDS
    unbiased: dict[str, Any] = {"bounds": ((-math.inf, math.inf),), "note": "unbiased in the number of clips"}
    (first,) = compared([label], distance, real, fake, folds=number, mean_of_folds=folds > 1, note=note)
    (second,) = compared([kernel], one(kernel_distance), real, fake, **unbiased)
    return {name: first, kernel.lower(): second}


class RandomFeatures:
    """Both parts of `rf3d-v1` side by side, as a network whose features are kept."""

    key = rf3d.NAME

    def __init__(self) -> None:
        self._network = rf3d.RF3D()

    def features(self, clips: Tensor) -> Tensor:
        return torch.cat(list(self._network.features(clips).values()), dim=1)


_STARRED = (
    "drawn frames are compared with what the model's own codec makes of the real ones, in the floor too: this judges "
    "its draws without what the codec loses, and says nothing between models of other codecs, or without one"
)


def random_figures(real: Features, fake: Features, *, reconstructed: bool = False) -> dict[str, SetFigure]:
    """`rf3d-v1` of two sets: per part the scaled Fréchet distance, density and coverage where there are enough clips.

    Args:
        real: reference.
        fake: judged.
        reconstructed: the reference is what a codec makes of real clips: every name ends in a star, as that of FVD*.

    Raises:
        ValueError: fewer than two clips in a set.
    """
    found = {}
    star, starred = ("*", _STARRED) if reconstructed else ("", "")
    for at, part in enumerate(rf3d.PARTS):
        here = slice(at * rf3d.LENGTH, (at + 1) * rf3d.LENGTH)
        a, b = (Features(each.values[:, here], each.units) for each in (real, fake))
        name = f"{rf3d.NAME}{star} {part}"
        note = "512 clips or more on each side are recommended" if min(len(a.values), len(b.values)) < 512 else ""
        if silent := rf3d.silent(a.values, b.values):
            what = "1 feature does" if silent == 1 else f"{silent} features do"
            note = f"{what} not vary among the real clips, but among these: that makes the distance huge"
        note = "; ".join(filter(None, (starred, note)))
        (found[name],) = compared([name], one(rf3d.distance), a, b, note=note)
        if len(a.values) > rf3d.NEIGHBOURS:
            labels = [f"{name} density", f"{name} coverage"]
            found |= dict(zip(labels, compared(labels, _neighbours, a, b, better="higher", bounds=_NEIGHBOURS)))
    return found


def _neighbours(real: Tensor, fake: Tensor) -> tuple[float, float]:
    return density_coverage(*rf3d.scaled(real, fake), k=rf3d.NEIGHBOURS)


def inception_figure(real: Tensor | None, fake: Tensor, *, splits: int, eps: float) -> SetFigure:
    """Inception Score of class probabilities: mean over consecutive splits; its floor is the score of real clips.

    Raises:
        ValueError: fewer clips than splits.
    """
    scores = inception_score(fake, splits=splits, eps=eps).tolist()
    value = float(np.mean(scores))
    low, high = _interval(value, scores, 1.0, math.inf)
    best = None if real is None else inception_score(real, splits=min(splits, len(real)), eps=eps).mean().item()
    note = f"{value:.2f} ± {np.std(scores):.2f} (population deviation of {splits} splits)"
    note += "" if best is None else "; the floor is that of real clips"
    count = 0 if real is None else len(real)
    return SetFigure("Inception Score", value, low, high, tuple(scores), count, len(fake), best, "higher", note)


def _on_parts(measure: Measure, real: Features, fake: Features, folds: int) -> list[tuple[float, ...]]:
    """The figure on disjoint folds; none where a fold is too small for it."""
    found = [_tried(measure, real.part(i, folds), fake.part(i, folds)) for i in range(folds)]
    return [] if folds < 2 else [value for value in found if value is not None] if None not in found else []


def _tried(measure: Measure, real: Tensor, fake: Tensor) -> tuple[float, ...] | None:
    try:
        return measure(real, fake)
    except ValueError:  # too few clips
        return None


def _interval(value: float, parts: Sequence[float], least: float, most: float) -> tuple[float | None, float | None]:
    if len(parts) < 2:
        return None, None
    reach = _STUDENT[min(len(parts) - 2, len(_STUDENT) - 1)] * float(np.std(parts, ddof=1)) / math.sqrt(len(parts))
    return max(value - reach, least), min(value + reach, most)


def _rounded(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
