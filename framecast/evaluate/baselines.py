# SPDX-License-Identifier: Apache-2.0
"""Simple forecasts, the marks that a trained model has to beat: systems without weights, for clips of any size.

`framecast.load("persistence")` and every command take their names where they take a model. Motion is estimated in
`motion.py`, training windows are searched in `analog.py`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framecast.assets import Assets
from framecast.draws import Draws
from framecast.evaluate.analog import Library
from framecast.evaluate.motion import advect, motion
from framecast.experiment import SampleOptions, StageConfig, VideoSpec, nearest
from framecast.generate import Model
from framecast.metrics.forecast import hold
from framecast.system import Carry, Stage, System, UnsupportedTask, Window
from framecast.video import Known, Video

_log = logging.getLogger(__name__)

ANY = VideoSpec(channels=0, height=0, width=0, clip_frames=16)  # of the clips that simple forecasts take
_ALL = ("predict", "infill", "interpolate")

Fill = Callable[[Video, list[int], list[int]], Video]  # frames, known places, unknown places -> the unknown frames


@dataclass(frozen=True, kw_only=True)
class AnalogOptions(SampleOptions):
    """Where and how many training windows are looked up."""

    reference: str = ""  # folder of training clips; read frame by frame, at the size and channels of the given clip
    neighbours: int = 1  # windows that samples go through: sample i is the (i mod neighbours)-th nearest


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One simple forecast."""

    about: str  # what it does
    tasks: tuple[str, ...]  # verbs for which that makes sense
    needs: Literal[
        "any", "around", "leading"
    ]  # known frames: any one; on both sides of a gap; two or more, all leading
    fill: Fill | None  # None: looked up in training clips
    options: SampleOptions = field(default_factory=SampleOptions)
    samples: int = 1  # that differ


# ---- the forecasts


def _persistence(frames: Video, known: list[int], unknown: list[int]) -> Video:
    given = set(known)
    held = hold([i in given for i in range(frames.shape[1])])
    return frames[:, [held[i] for i in unknown]]


def _mean_frame(frames: Video, known: list[int], unknown: list[int]) -> Video:
    return frames[:, known].mean(1, keepdim=True).expand(-1, len(unknown), -1, -1, -1)


def _linear_extrapolation(frames: Video, known: list[int], unknown: list[int]) -> Video:
    last, slope = frames[:, known[-1]], frames[:, known[-1]] - frames[:, known[-2]]
    return torch.stack([last + (i - known[-1]) * slope for i in unknown], dim=1)


def _linear_blend(frames: Video, known: list[int], unknown: list[int]) -> Video:
    made = []
    for i in unknown:
        place = bisect(known, i)
        if place in (0, len(known)):  # beyond the ends the nearest known frame is held
            made.append(frames[:, known[0] if place == 0 else known[-1]])
        else:
            before, after = known[place - 1], known[place]
            made.append(torch.lerp(frames[:, before], frames[:, after], (i - before) / (after - before)))
    return torch.stack(made, dim=1)


def _motion_compensated(frames: Video, known: list[int], unknown: list[int]) -> Video:
    last = frames[:, known[-1]]
    return advect(last, motion(frames[:, known[-2]], last), len(unknown))


BASELINES: dict[str, Baseline] = {
    "persistence": Baseline(
        about="the last known frame, held (before the first one: that one)", tasks=_ALL, needs="any", fill=_persistence
    ),
    "mean-frame": Baseline(about="the mean of the known frames", tasks=_ALL, needs="any", fill=_mean_frame),
    "linear-extrapolation": Baseline(
        about="every pixel goes on as from the second last known frame to the last",
        tasks=("predict",),
        needs="leading",
        fill=_linear_extrapolation,
    ),
    "linear-blend": Baseline(
        about="between the known frames before and after, pixel by pixel; held at the ends",
        tasks=("infill", "interpolate"),
        needs="around",
        fill=_linear_blend,
    ),
    "motion-compensated": Baseline(
        about="the last known frame moves on as it moved from the one before",
        tasks=("predict",),
        needs="leading",
        fill=_motion_compensated,
    ),
    "analog": Baseline(
        about="the training window with the nearest known frames (--sample.reference DIR)",
        tasks=_ALL,
        needs="any",
        fill=None,
        options=AnalogOptions(),
    ),
    "analog-8": Baseline(
        about="the 8 nearest training windows, one per sample (--sample.reference DIR)",
        tasks=_ALL,
        needs="any",
        fill=None,
        options=AnalogOptions(neighbours=8),
        samples=8,
    ),
}


def baseline(name: str, device: torch.device | str = "cpu") -> Model:
    """A simple forecast as a model: it takes clips of any size, channels and rate.

    Args:
        name: a key of `BASELINES`.
        device: where it computes.

    Raises:
        ValueError: there is no forecast of that name; the nearest is named.

    Example:
        >>> from framecast.video import Clip
        >>> clip = Clip(torch.tensor([10, 14], dtype=torch.uint8).reshape(2, 1, 1, 1))
        >>> baseline("linear-extrapolation").predict(clip, 3).video.flatten().tolist()
        [10, 14, 18, 22, 26]
    """
    row = _row(name)
    system = Analog(name, row) if row.fill is None else Formula(name, row)
    return Model(system.to(device), name=name)


def ensemble(name: str) -> int:
    """How many samples of a simple forecast differ: to draw more of them only repeats these.

    Example:
        >>> ensemble("persistence"), ensemble("analog-8")
        (1, 8)
    """
    return _row(name).samples


def _row(name: str) -> Baseline:
    if name not in BASELINES:
        raise ValueError(
            f"{name!r} is not a simple forecast.{nearest(name, BASELINES)} Simple forecasts: {', '.join(BASELINES)}."
        )
    return BASELINES[name]


# ---- as systems


class _Simple(System):
    """What simple forecasts share: no weights, one window over the whole video, any frame size."""

    def __init__(self, name: str, row: Baseline):
        super().__init__()
        self.name, self.row, self.tasks = name, row, row.tasks  # type: ignore[misc]
        self.config, self.video, self.options = None, ANY, row.options
        self.register_buffer("_here", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        here: Any = self._here
        return here.device

    def parts(self) -> dict[str, nn.Module]:
        return {}

    def plan(self, known: Sequence[bool], options: SampleOptions) -> list[Window]:
        if all(known):
            return []
        lacks = _lacks(self.row.needs, known)
        if lacks:
            able = [name for name, row in BASELINES.items() if not _lacks(row.needs, known)]
            others = f" Simple forecasts that can: {', '.join(able)}." if able else ""
            raise UnsupportedTask(f"{self.name} {lacks}.{others}")
        return [Window(tuple(range(len(known))), tuple(known))]

    @torch.no_grad()
    def sample(
        self, frames: Video, known: Known, *, rng: Draws, options: Any, carry: Carry = None
    ) -> tuple[Video, Carry]:
        given = [i for i, k in enumerate(known.tolist()) if k]
        unknown = [i for i, k in enumerate(known.tolist()) if not k]
        made = self.fill(frames, given, unknown, rng=rng, options=options)
        whole = frames.clone()  # known frames stay bit-identical
        whole[:, unknown] = made.clamp(-1.0, 1.0)
        return whole, None

    @abstractmethod
    def fill(self, frames: Video, known: list[int], unknown: list[int], *, rng: Draws, options: Any) -> Video:
        """The frames at the unknown places."""

    def stage(self, name: str, settings: StageConfig, assets: Assets) -> Stage:
        raise ValueError(f"{self.name} is a simple forecast: there is nothing to train.")


def _lacks(needs: str, known: Sequence[bool]) -> str:
    """What is missing from the known frames, or nothing."""
    count = sum(known)
    if not count:
        return "makes frames from known ones and none is given"
    if needs == "leading" and any(known[count:]):
        return "continues a clip, all its known frames must come first"
    if needs == "leading" and count < 2:
        return "needs two known frames to tell how things change, and 1 is given"
    first, last = list(known).index(True), len(known) - list(known)[::-1].index(True)
    if needs == "around" and all(known[first:last]):
        return "fills gaps between known frames, and there is none"
    return ""


class Formula(_Simple):
    """A forecast computed from the known frames alone."""

    def fill(self, frames: Video, known: list[int], unknown: list[int], *, rng: Draws, options: Any) -> Video:
        assert self.row.fill is not None
        return self.row.fill(frames, known, unknown)


class Analog(_Simple):
    """The nearest windows of a folder of training clips; the folder is read once per frame size."""

    def __init__(self, name: str, row: Baseline):
        super().__init__(name, row)
        self._library: tuple[tuple[str, int, int, int], Library] | None = None

    def plan(self, known: Sequence[bool], options: SampleOptions) -> list[Window]:
        assert isinstance(options, AnalogOptions)
        windows = super().plan(known, options)
        if not options.reference:
            raise ValueError(
                f"{self.name} looks for the nearest training windows: name their folder with --sample.reference DIR "
                "(in Python options={'reference': DIR})."
            )
        if options.neighbours < 1:
            raise ValueError(f"neighbours is {options.neighbours}; it must be at least 1.")
        return windows

    def fill(self, frames: Video, known: list[int], unknown: list[int], *, rng: Draws, options: Any) -> Video:
        given = frames[:, known].cpu()
        once = bool((given == given[:1]).all())  # samples of one clip: one search
        library = self._read(options.reference, given)
        given = given[:1] if once else given
        found = library.nearest(given, known, length=frames.shape[1], count=options.neighbours)
        if not library.warned and any(torch.equal(a, b) for a, b in zip(found[:, 0, known], given)):
            library.warned = True
            _log.warning(
                "%s: the given frames are among the clips of %s themselves, and what follows them there is drawn: name "
                "a folder without this clip.", self.name, options.reference,
            )  # fmt: skip
        picked = [found[0 if once else i, row % found.shape[1], unknown] for i, row in enumerate(rng.rows)]
        return torch.stack(picked).to(frames.device)

    def _read(self, folder: str, given: Tensor) -> Library:
        channels, height, width = given.shape[2:]
        key = (folder, channels, height, width)
        if self._library is None or self._library[0] != key:
            self._library = key, Library(folder, channels=channels, height=height, width=width)
        return self._library[1]
