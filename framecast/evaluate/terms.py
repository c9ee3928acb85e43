# SPDX-License-Identifier: Apache-2.0
"""The terms in which a protocol is written: what is asked of a model, on what, how often, and how it is judged.

A protocol is a plain record. Its name stands for all of its settings: a run that differs in one is called `-partial`,
with the differences. Settings that a source leaves open are taken by us and listed as assumed. The records themselves
are in `open_sets.py` and `published.py`; `protocols.py` finds one by name. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from framecast.task import Task

METRIC_GROUPS: dict[str, str] = {
    "crps": "CRPS, empirical and fair",
    "psnr": "PSNR by frame",
    "psnr_clip": "PSNR of the error over the whole clip",
    "ssim": "structural similarity by frame",
    "lpips": "learned perceptual distance by frame",
    "best_of": "the best of all samples of a window, by each metric",
    "ensemble": "spread beside skill, rank histogram, diversity",
    "modes": "share of the true futures that the samples hit",
    "drift": "what changes with the length of a forecast",
    "late": "variance, spectrum and period of late frames beside those of the truth",
    "rf3d": "distance of sets in random features, appearance and motion apart",
    "rf3d*": "the same to reconstructions of real clips, for models with a codec",
    "fvd": "Fréchet video distance",
    "r-fvd": "Fréchet video distance of reconstructions",
    "fvd*": "Fréchet video distance to reconstructions of real clips",
    "is": "Inception Score",
    "memorisation": "distance to the nearest training window beside that of held-out windows",
    "field": "variance and spectrum by frame, period",
}
Value: TypeAlias = float | tuple[float | None, float | str]  # with a spread or a note
FRECHET_GROUPS = ("fvd", "r-fvd", "fvd*")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which windows are cut from the clips of a split, and how many futures each gets.

    `phases`: from the first frame on, a quarter of the shedding period apart; `from_start`: one, at frame `start`;
    `random`: at starts drawn uniformly; `every`: at frames 0, 1, 2, … in turn; `whole`: as `from_start`, and the clip
    must have no other frames.
    """

    how: Literal["phases", "from_start", "random", "every", "whole"]
    clips: int | None  # of the split; None: all there are
    per_clip: int = 1  # windows of each clip
    samples: int = 1  # futures of each window
    start: int = 0  # first frame, of `from_start`
    choose: Literal["first", "random"] = "first"  # which clips, where the split has more
    or_fewer: bool = False  # a split with fewer clips is as the source has it, and no deviation

    @property
    def windows(self) -> int | None:
        """In all; None: as many as there are clips for."""
        return None if self.clips is None else self.clips * self.per_clip


@dataclass(frozen=True, kw_only=True)
class Case:
    """Which frames of a window are given.

    Example:
        >>> Case(known=(0, 1, 2, 3), frames=16).name, Case(known=(0, 15), frames=16).name
        ('4 → 12', 'known 0, 15 of 16')
    """

    known: tuple[int, ...]  # given frames, from 0
    frames: int  # of the window
    judged: tuple[int, ...] | None = None  # frames that metrics of sets see; None: all, given ones included

    @property
    def name(self) -> str:
        """In a few words; its own within a protocol."""
        if self.known == tuple(range(len(self.known))):
            return f"{len(self.known)} → {self.frames - len(self.known)}"
        return f"known {', '.join(map(str, self.known))} of {self.frames}"

    @property
    def slug(self) -> str:
        """The same as a name of files, for example 4-12 and known-0-15-of-16."""
        return "-".join(re.findall(r"\w+", self.name))

    @property
    def task(self) -> Task:
        """What a model is asked."""
        leading = self.known == tuple(range(len(self.known)))
        verb = "infill" if not leading else "predict" if self.known else "generate"
        return Task(verb, tuple(i in self.known for i in range(self.frames)))

    @property
    def unknown(self) -> tuple[int, ...]:
        """The frames to fill in."""
        return tuple(i for i in range(self.frames) if i not in self.known)


@dataclass(frozen=True, kw_only=True)
class FrechetSettings:
    """How distances of sets in I3D features are computed."""

    resize: Literal["straight", "tf1", "short_side"] = "straight"  # to 224 x 224
    ddof: Literal[0, 1] = 1  # covariances over N - ddof
    folds: int = 1  # disjoint parts of the samples; the value is the mean over them


@dataclass(frozen=True, kw_only=True)
class InceptionSettings:
    """How the Inception Score is computed."""

    samples: int  # in all
    splits: int  # consecutive, of equal size; the value is the mean over them
    eps: float = 0.0  # added to probabilities


@dataclass(frozen=True)
class Published:
    """A value that a paper reports."""

    metric: str  # a key of `METRIC_GROUPS`, or a word of its own in protocols of task "record"
    method: str
    value: float | None  # None: the source has the row without a number
    spread: float | None = None  # what stands behind ± there
    note: str = ""

    @classmethod
    def rows(cls, metric: str, table: Mapping[str, Value]) -> tuple[Published, ...]:
        """One value per method; a pair gives the spread, or a note, behind the value.

        Example:
            >>> Published.rows("fvd", {"CCVS": (55, 1)})
            (Published(metric='fvd', method='CCVS', value=55, spread=1, note=''),)
        """
        pairs = {method: told if isinstance(told, tuple) else (told, "") for method, told in table.items()}
        return tuple(
            cls(metric, method, value, None, behind) if isinstance(behind, str) else cls(metric, method, value, behind)
            for method, (value, behind) in pairs.items()
        )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is asked of a model, on what, how often, and how it is judged."""

    name: str
    about: str  # one line
    set: str  # the data set; in a folder of clips `<dir>/<split>`
    split: str
    channels: int
    height: int
    width: int
    resampling: str = ""  # how the source brings frames to this size, where that is not framecast's own rule
    seed: int = 0  # of an open set; of all chances in the choice of clips and starts
    task: Literal["forecast", "generate", "reconstruct", "record"]  # record: values only, nothing to run
    cases: tuple[Case, ...] = ()
    paired: Cut | None = None  # windows that are compared with their truth, frame by frame
    sets: Cut | None = None  # windows whose completions make a set; of `generate` only their number counts
    real: Cut | None = None  # windows that make the set compared with; None: those of `sets`
    futures: int = 0  # true futures of each paired window, of sets that can draw them
    metrics: tuple[str, ...] = ()  # keys of `METRIC_GROUPS`
    frechet: FrechetSettings = FrechetSettings()
    inception: InceptionSettings | None = None
    quantise: Literal["round", "truncate"] = "round"  # how drawn values become 8-bit levels
    sampler: Mapping[str, Any] = field(default_factory=dict)  # stated options of sampling, of which a model takes those
    # that it has; empty: the model's own
    weights: Mapping[str, str] = field(default_factory=dict)  # stated weights by metric
    lpips: Literal["alex", "vgg"] = "alex"
    published: tuple[Published, ...] = ()
    assumed: tuple[str, ...] = ()  # what the source leaves open, and what is taken
    is_not: tuple[str, ...] = ()  # what a value under this name must not be taken for
    source: str

    @property
    def drawn(self) -> int | None:
        """How many clips `generate` draws for each case; None: as many as there are clips in the split."""
        for_sets = self.sets.windows * self.sets.samples if self.sets and self.sets.windows else 0
        for_score = self.inception.samples if self.inception else 0
        return max(for_sets, for_score) or None
