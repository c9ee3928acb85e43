# SPDX-License-Identifier: Apache-2.0
"""The contract of every system, seen by those who sample (System) and by the trainer (Stage).

A concrete system is a final class in `framecast/systems/<name>/<name>.py` whose constructor takes
`(config, video, options)`: its own settings record, the VideoSpec of its clips, its default sampling options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from framecast.assets import Assets
from framecast.draws import Draws
from framecast.experiment import OptimiserConfig, SampleOptions, StageConfig, VideoSpec
from framecast.task import UnsupportedTask, Window
from framecast.video import Known, Video

__all__ = [
    "Carry", "Code", "Codec", "CodeScorer", "Group", "Loss", "Scorer", "Stage", "System", "UnsupportedTask", "Video",
    "Window",
]  # fmt: skip

Carry: TypeAlias = Any  # opaque tensors, valid for the next window of the same plan; None where a system has none


Code: TypeAlias = dict[str, Tensor]  # by plane or level, a row per clip; floats, or whole numbers


class Codec(Protocol):
    """Clips of one length to codes and back; `framecast.reconstruction` codes longer ones piece by piece."""

    frames: int  # of the clips it takes
    parts: tuple[str, ...]  # parts of the system that must be trained for it
    views: tuple[str, ...]  # what of a code can be looked at by itself: sets of planes, levels

    def encode(self, video: Video) -> Code:
        """(B, frames, C, H, W), on the device of the weights."""
        ...

    def decode(self, code: Code) -> Video:
        """Of any code that `encode`, `stored` or `only` gives."""
        ...

    def stored(self, code: Code) -> Code:
        """A code of `encode` as a file would keep it; itself where that loses nothing."""
        ...

    def bits(self, code: Code) -> float:
        """Size of the stored code of one clip."""
        ...

    def only(self, code: Code, view: str) -> Code:
        """A code of `encode` without what lies outside of a view."""
        ...

    def figures(self, codes: Sequence[Code]) -> dict[str, float]:
        """What else the codes of a clip's pieces tell, by the name under which it is shown; may be nothing."""
        ...


class Scorer(Protocol):
    """A system that can tell how likely a clip is: bits per dimension of every unknown frame, lower is likelier."""

    of: Literal["pixels"]
    levels: int  # noise levels that it visits unless told otherwise
    most_levels: int  # all that it can visit
    context: int  # leading frames that it needs to be given; 0 where it can tell of the first frame, too

    def windows(self, known: Sequence[bool]) -> list[Window]:
        """Windows in which every unknown frame is scored once, given what is known in its window by then."""
        ...

    def calls(self, windows: Sequence[Window], levels: int) -> int:
        """Network calls that scoring these windows takes."""
        ...

    def bits(self, frames: Video, known: Known, *, rng: Draws, levels: int | None = None) -> Tensor:
        """(B, unknown frames), float64 on the CPU."""
        ...


class CodeScorer(Protocol):
    """A system that can tell how likely the codes of a clip are: bits of every code of the unknown frames, exactly.

    Known frames are the first ones. The steps of a level share the unknown frames equally: of n steps, step k belongs
    to the k-th n-th of those frames.
    """

    of: Literal["codes"]
    context: int  # leading frames that it needs to be given
    frames: int  # of the shortest clip it can score
    unit: int  # unknown frames come in whole numbers of so many
    uniform: Mapping[str, float]  # by level, bits of a code where all codes are as likely
    notes: tuple[str, ...]  # what the reader of its numbers should know, a sentence each

    def windows(self, known: Sequence[bool]) -> list[Window]:
        """Windows in which the codes of every unknown frame are scored once."""
        ...

    def calls(self, windows: Sequence[Window]) -> int:
        """Network calls that scoring these windows takes."""
        ...

    def bits(self, frames: Video, known: Known) -> dict[str, Tensor]:
        """By level, coarsest first, (B, steps, height, width), float64 on the CPU."""
        ...


@dataclass(frozen=True)
class Loss:
    """One value of an objective: what is differentiated, and what is logged (detached scalars)."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Modules that learn together under one optimiser; gradients are clipped over each module by itself."""

    modules: Mapping[str, nn.Module]
    optimiser: OptimiserConfig


class Stage(ABC):
    """One separately trained part. The trainer knows stages, never papers.

    All methods get Videos of the stage's clip_frames. `rng` has one row per clip.
    """

    clip_frames: int  # frames of a training clip
    min_frames: int  # shortest clip it can learn from; shorter clips of at least this length arrive padded, see `valid`
    needs: tuple[str, ...] = ()  # parts that must be trained before
    keeps: bool = False  # examples depend on the clip alone, without chance: the trainer makes them once and keeps them
    notes: tuple[str, ...] = ()  # what its user should know before training begins, a sentence each

    @abstractmethod
    def groups(self) -> dict[str, Group]:
        """Optimiser groups by name. A module's name must be a part of the system or its own alone (a discriminator)."""

    def frozen(self) -> dict[str, nn.Module]:
        """Modules it only reads: put on the device, never trained, never saved."""
        return {}

    def turn(self, step: int) -> str:
        """The one group that learns in this optimiser step, in all its micro-batches."""
        return next(iter(self.groups()))

    def sound(self) -> dict[str, tuple[float, float]]:
        """By group, the range its loss keeps to in sound training; a run that stays out of it is stopped."""
        return {}

    def start(self, clips: Video, rng: Draws) -> None:
        """Called once before step 0 with a first batch, where weights are fresh.

        What it computes must be buffers or weights of the modules. Those of another run stay as they were trained.
        """
        return

    def examples(self, clip: Video, valid: Bool[Tensor, "b t"], rng: Draws) -> dict[str, Tensor]:
        """Training examples of a batch of clips, without gradient.

        Args:
            clip: (B, T, C, H, W).
            valid: False on frames that pad a short clip.
            rng: one row per clip.
        """
        return {"clip": clip}

    @abstractmethod
    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        """The objective of the group `turn`, a mean over rows; every weight of the group takes part in every call."""

    def after_step(self, step: int, rng: Draws) -> dict[str, Tensor]:
        """Called once per optimiser step (codebook averages, restarts); returns scalars to log."""
        return {}

    @abstractmethod
    def preview(self, clips: Video, rng: Draws) -> Video:
        """What the part makes of some held-out clips just now, same shape as `clips`."""


class System(nn.Module, ABC):
    """A video model as seen from outside. Concrete systems are final."""

    name: ClassVar[str]  # key in `framecast.systems.SYSTEMS`
    tasks: tuple[str, ...] = ()  # verbs it can answer, of a system that is not in that table
    config: Any  # the system's settings record
    video: VideoSpec
    options: SampleOptions  # defaults for `sample`
    codec: Codec | None = None
    scorer: Scorer | CodeScorer | None = None

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The trained modules by name: one safetensors file each."""

    @abstractmethod
    def plan(self, known: Sequence[bool], options: SampleOptions) -> list[Window]:
        """How this system completes such a video.

        Raises:
            UnsupportedTask: it cannot; the message says what it needs.
        """

    @abstractmethod
    def sample(
        self, frames: Video, known: Known, *, rng: Draws, options: SampleOptions, carry: Carry = None
    ) -> tuple[Video, Carry]:
        """Draw the unknown frames of one window.

        Args:
            frames: (B, T, C, H, W) in -1 to 1; values at unknown frames are ignored.
            known: (T,), True = given.
            rng: one row per video of the batch.
            options: this system's sampling options.
            carry: what the previous window of the same plan returned.

        Returns:
            The completed frames, known ones bit-identical unless `options.given` is "model", and the next carry.
        """

    @abstractmethod
    def stage(self, name: str, settings: StageConfig, assets: Assets) -> Stage:
        """The stage that trains part `name`; built only for training.

        Raises:
            ValueError: no such stage, or settings it cannot be trained with.
        """

    @property
    def context(self) -> int:
        """Known frames that a prediction continues from when nobody says otherwise."""
        return max(1, self.video.clip_frames // 4)

    def horizon(self, context: int) -> int:
        """Frames that a prediction from so many draws when nobody says otherwise: those that fill a clip."""
        return max(1, self.video.clip_frames - context)

    def calls(self, window: Window, options: SampleOptions) -> int:
        """Network evaluations that drawing a window takes; for estimates and progress only."""
        return sampler_steps(options) if self.parts() else 0

    def watched(self) -> list[nn.Module]:
        """Modules whose calls are those that `calls` counts; for progress only."""
        return list(self.parts().values())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def sampler_steps(options: SampleOptions) -> int:
    """Steps of a sampler under these options, in whatever way they are written; 1 where there is none.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Options(SampleOptions):
        ...     steps: int | str = "10,20,30"
        >>> sampler_steps(Options()), sampler_steps(Options(steps="ddim25")), sampler_steps(SampleOptions())
        (60, 25, 1)
    """
    steps = getattr(options, "steps", 1)
    if isinstance(steps, str):
        steps = sum(int(piece) for piece in steps.removeprefix("ddim").split(",") if piece.strip().isdecimal())
    return max(1, steps)
