# SPDX-License-Identifier: Apache-2.0
"""Where the samples that are judged come from: drawn by a model, computed by a simple forecast, or made already.

`kept.py` keeps what a model draws, `stored.py` reads samples that somebody else has drawn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from framecast.draws import draws, mix
from framecast.evaluate.baselines import BASELINES, ensemble
from framecast.evaluate.terms import Case
from framecast.experiment import SampleOptions, to_plain
from framecast.forecast import Forecast
from framecast.generate import Model, complete
from framecast.task import Task
from framecast.video import Clip, from_video

CHUNK = 8  # clips drawn from nothing by one call, and kept in one file


@dataclass(frozen=True)
class Made:
    """Samples of one window."""

    video: Tensor  # (S, T, C, H, W), in the dtype and units of the clip they answer
    seconds: float  # that drawing took
    value_range: tuple[float, float] | None  # of the values: those that stand for darkest and brightest


class Source(Protocol):
    """Gives the samples of a window."""

    name: str
    record: dict[str, Any]  # how the samples come about, plain values
    most: int  # samples that differ: more only repeat these

    def samples(self, case: Case, window: str, clip: Clip | None, count: int) -> Made:
        """`count` samples of a window; the whole window, known frames included.

        Args:
            case: which frames are given.
            window: its name; of clips drawn from nothing, their number.
            clip: the window, of which only known frames are looked at; None where clips are drawn from nothing.
            count: of samples.
        """
        ...

    def reconstructed(self, clip: Clip) -> Tensor | None:
        """What a codec makes of a real clip; None where there is none."""
        ...


class Given:
    """Forecasts that were made already.

    Args:
        name: of the model.
        forecasts: by the name of their window.
    """

    def __init__(self, name: str, forecasts: Mapping[str, Forecast]):
        self.name, self._forecasts = name, forecasts
        self.record: dict[str, Any] = next(iter(forecasts.values())).record
        self.most = max(map(len, forecasts.values()))

    def samples(self, case: Case, window: str, clip: Clip | None, count: int) -> Made:
        made = self._forecasts[window]
        return Made(made.video[:count], made.record["seconds"], made.value_range)

    def reconstructed(self, clip: Clip) -> Tensor | None:
        return None


class Computed:
    """Draws from a model, or asks a simple forecast, each time anew.

    Args:
        model: that answers.
        options: for sampling; None: its own.
        task: what is asked of it.
        quantise: how drawn values become bytes where clips are bytes.
        seed: of all noise; the noise of a window depends on this, on its name and on nothing else.
        batch: samples drawn at once.
    """

    def __init__(
        self,
        model: Model,
        *,
        options: SampleOptions | None = None,
        task: Literal["forecast", "generate", "reconstruct", "record"] = "forecast",
        quantise: Literal["round", "truncate"] = "round",
        seed: int = 0,
        batch: int = 8,
    ):
        self.model, self.task, self.quantise, self.seed, self.batch = model, task, quantise, seed, batch
        self.options = options or model.system.options
        self.name = model.name
        self.most = ensemble(model.name) if model.name in BASELINES else sys.maxsize
        own = to_plain(model.system.options)
        self.record: dict[str, Any] = {
            "name": model.name, "system": model.system.name, "sha256": model.digest,
            "sample": to_plain(self.options), "seed": seed,
            "changed": [key for key, value in to_plain(self.options).items() if own[key] != value],
        }  # fmt: skip
        if model.untrained:
            self.record["untrained"] = list(model.untrained)
        self._chunk: tuple[tuple[str, int], Made] | None = None  # the last one drawn

    def samples(self, case: Case, window: str, clip: Clip | None, count: int) -> Made:
        if self.task == "generate":
            return one_of(self.generated(case, int(window) // CHUNK), int(window))
        assert clip is not None
        began, truncates = time.perf_counter(), self.quantise == "truncate" and clip.frames.dtype == torch.uint8
        asked = replace(clip, frames=clip.frames.float(), value_range=(0.0, 255.0)) if truncates else clip
        video = self._answer(case, window, asked, count)
        if truncates:
            video = video.clamp(0, 255).floor().to(torch.uint8)
        return Made(video, time.perf_counter() - began, clip.value_range)

    def _answer(self, case: Case, window: str, clip: Clip, count: int) -> Tensor:
        seed, known = mix("window", self.seed, window), list(case.known)
        how: dict[str, Any] = {
            "samples": count, "seed": seed, "batch": self.batch, "options": to_plain(self.options),
        }  # fmt: skip
        if self.task == "reconstruct":
            return self.model.reconstruct(clip).video[None]
        if known == list(range(len(known))):
            return self.model.predict(clip, len(clip) - len(known), context=len(known), **how).video
        return self.model.infill(clip, known, **how).video

    def reconstructed(self, clip: Clip) -> Tensor | None:
        """The clip encoded and decoded, (T, C, H, W); None where the model cannot."""
        return self.model.reconstruct(clip).video if self.model.system.codec is not None else None

    def generated(self, case: Case, chunk: int) -> Made:
        """`CHUNK` clips drawn from nothing, in the units of the model's training clips."""
        if self._chunk is not None and self._chunk[0] == (case.slug, chunk):
            return self._chunk[1]
        began, spec, device = time.perf_counter(), self.model.video, self.model.system.device
        rng = draws(mix("generated", self.seed, chunk), range(CHUNK), device)
        nothing = torch.zeros(CHUNK, 0, spec.channels, spec.height, spec.width, device=device)
        video = complete(self.model.system, nothing, Task.generate(case.frames), rng=rng, options=self.options)
        span = float(spec.value_range[0]), float(spec.value_range[1])
        like = Clip(torch.zeros(0, spec.channels, spec.height, spec.width), value_range=span)
        values = from_video(video, like).cpu()
        if span == (0.0, 255.0):
            values = (values.floor() if self.quantise == "truncate" else values.round()).to(torch.uint8)
        self._chunk = (case.slug, chunk), Made(values, time.perf_counter() - began, span)
        return self._chunk[1]


def one_of(chunk: Made, number: int) -> Made:
    """The clip of this number, of the chunk that holds it."""
    row = number % CHUNK
    return Made(chunk.video[row : row + 1], chunk.seconds / CHUNK, chunk.value_range)
