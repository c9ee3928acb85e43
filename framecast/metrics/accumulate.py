# SPDX-License-Identifier: Apache-2.0
"""Figures of many windows from figures of few: what is kept of each window, and how parts are put together.

An accumulator is a value that merges with another of its kind; windows may be divided among batches, runs and processes
in any way. `Moments` of `distribution.py` is one, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, distributed

T = TypeVar("T")


@runtime_checkable
class Accumulator(Protocol):
    """What can be put together from parts."""

    def merge(self: T, other: T, /) -> T:
        """The figures of both; neither is changed."""
        ...


A = TypeVar("A", bound=Accumulator)


def over_processes(accumulator: A) -> A:
    """Put together what all processes hold, in order of rank, so that each gets the same bits; alone, it stays itself.

    Every process must call this, one that has seen nothing with an empty accumulator.

    Example:
        >>> over_processes(Counts(torch.tensor([1, 2]))).counts.tolist()
        [1, 2]
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return accumulator
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, accumulator)
    return reduce(lambda a, b: a.merge(b), parts)


@dataclass(frozen=True)
class _Entry:
    """One figure: sum of weights, windows, weighted mean, and weighted sum of squares around it."""

    weight: float
    count: int
    mean: Float64[Tensor, "*shape"]
    scatter: Float64[Tensor, "*shape"]

    def merge(self, other: _Entry) -> _Entry:
        weight, gap = self.weight + other.weight, other.mean - self.mean
        share = other.weight / weight
        scatter = self.scatter + other.scatter + self.weight * share * gap.square()
        return _Entry(weight, self.count + other.count, self.mean + share * gap, scatter)


@dataclass(frozen=True)
class Mean:
    """Mean and standard deviation over windows of any number of named figures: numbers, curves over frames, maps.

    Example:
        >>> both = Mean.of({"crps": 1.0}).merge(Mean.of({"crps": 3.0, "psnr": 20.0}))
        >>> both.mean("crps").item(), round(both.sd("crps").item(), 4), both.count("psnr")
        (2.0, 1.4142, 1)
    """

    entries: Mapping[str, _Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, figures: Mapping[str, Tensor | float], *, weight: float = 1.0) -> Mean:
        """The figures of one window, which counts `weight` in the mean.

        Raises:
            ValueError: a weight that is not positive.
        """
        if not weight > 0:
            raise ValueError(f"the weight of a window is {weight}; it must be above 0.")
        values = {name: torch.as_tensor(value).detach().double() for name, value in figures.items()}
        return cls({name: _Entry(weight, 1, value, torch.zeros_like(value)) for name, value in values.items()})

    def merge(self, other: Mean) -> Mean:
        """Over the windows of both; a window may lack a figure.

        Raises:
            ValueError: a figure has two shapes.
        """
        merged = dict(self.entries)
        for name, entry in other.entries.items():
            mine = merged.get(name)
            if mine is not None and mine.mean.shape != entry.mean.shape:
                raise ValueError(
                    f"{name} has the shape {tuple(mine.mean.shape)} in one window and {tuple(entry.mean.shape)} in "
                    "another; put windows of equal length together."
                )
            merged[name] = entry if mine is None else mine.merge(entry)
        return Mean(merged)

    def mean(self, name: str) -> Float64[Tensor, "*shape"]:
        """Weighted mean of a figure."""
        return self.entries[name].mean

    def sd(self, name: str) -> Float64[Tensor, "*shape"]:
        """Standard deviation over windows, with n - 1 for n windows of equal weight; nan of one window."""
        entry = self.entries[name]
        bessel = entry.count / (entry.count - 1) if entry.count > 1 else torch.nan
        return (entry.scatter / entry.weight * bessel).sqrt()

    def count(self, name: str) -> int:
        """Windows that had the figure."""
        return self.entries[name].count if name in self.entries else 0


@dataclass(frozen=True)
class Counts:
    """Whole numbers that add up, for example how often the truth had each rank among the samples.

    Example:
        >>> Counts(torch.tensor([1, 0, 2])).merge(Counts(torch.tensor([0, 1, 1]))).counts.tolist()
        [1, 1, 3]
    """

    counts: Int64[Tensor, "*shape"]

    def merge(self, other: Counts) -> Counts:
        """The sums.

        Raises:
            ValueError: counts of different shapes, for example of different numbers of samples.
        """
        if self.counts.shape != other.counts.shape:
            shapes = f"{tuple(self.counts.shape)} and {tuple(other.counts.shape)}"
            raise ValueError(f"counts have the shapes {shapes} and cannot be added; draw equally many samples.")
        return Counts(self.counts + other.counts)
