# SPDX-License-Identifier: Apache-2.0
"""How sure a mean is: bootstrap intervals over independent units.

Windows of one flow differ only in phase, so that they count as one unit: whole units are drawn again, never windows.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds 95 of 100 means of such samples of units; one unit alone gives no interval."""

    mean: float
    low: float  # nan of one unit, as is high
    high: float
    units: int  # independent ones

    def __str__(self) -> str:
        if self.units < 2:
            return f"{self.mean:.3g} (one unit, no interval)"
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low > 0 or self.high < 0

    def plain(self) -> dict[str, float | int | None]:
        """For JSON, rounded to five digits; null where there is no interval."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high}
        rounded = {name: None if math.isnan(value) else float(f"{value:.5g}") for name, value in numbers.items()}
        return rounded | {"units": self.units}


def bootstrap(
    values: Sequence[float], units: Sequence[Hashable], *, redraws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of values and its percentile bootstrap interval over units.

    For a paired comparison give the differences, one per window. Of one unit nothing is known of how much units differ:
    its interval is nan, and excludes nothing.

    Args:
        values: one per window.
        units: what each window belongs to; windows of one unit are averaged first.
        redraws: samples of units drawn with replacement.
        level: share of their means that the interval holds.
        seed: of the redraws.

    Raises:
        ValueError: no values, or not as many units as values.

    Source: Efron (1979), percentile method.

    Example:
        >>> interval = bootstrap([1.0, 3.0, 2.0, 2.0], ["a", "a", "b", "b"])
        >>> interval.mean, interval.low, interval.units
        (2.0, 2.0, 2)
    """
    if not values or len(values) != len(units):
        raise ValueError(f"{len(values)} values and {len(units)} units: give one unit per value, at least one.")
    inside: dict[Hashable, list[float]] = {}
    for value, unit in zip(values, units):
        inside.setdefault(unit, []).append(float(value))
    means = np.array([np.mean(group) for group in inside.values()])
    if len(means) == 1:
        return Interval(float(means[0]), math.nan, math.nan, 1)
    rng = np.random.Generator(np.random.PCG64(seed))
    redrawn = means[rng.integers(0, len(means), (redraws, len(means)))].mean(1)
    low, high = np.quantile(redrawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means.mean()), float(low), float(high), len(means))
