# SPDX-License-Identifier: Apache-2.0
"""What networks cost: a matrix product, one evaluation, one training step; `drawing.py` has what drawing costs.

Evaluation and step go through what training itself runs: a stage's loss, the learner, the loop of `framecast.train`.
Clips are random numbers from memory: reading is measured by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor

from framecast.assets import Assets, cache_dir
from framecast.bench.measure import Memory, Timed, beside_matmul, facts, operations, settle, timed
from framecast.data.clips import ClipStream
from framecast.devices import Fabric, build_fabric, pick_device
from framecast.draws import draws
from framecast.experiment import DataConfig, Experiment, StageConfig, VideoSpec, from_plain, size_of, to_plain
from framecast.system import Stage, System
from framecast.systems import entry, preset, resolve
from framecast.systems.ramvid.config import (
    DiffusionStageConfig,
    RaMViDConfig,
    RaMViDExperiment,
    RaMViDSampling,
    RaMViDStages,
)
from framecast.train.loop import optimise
from framecast.train.optim import compiles
from framecast.train.plan import Job, stage_settings
from framecast.train.state import TrainState
from framecast.video import Video

Precision = Literal["32", "bf16"]
_WORDS = {"32": "float32", "bf16": "bfloat16"}
Changes = Mapping[str, Any]  # dotted key of a setting -> plain value
_WARM_UP = 1  # untimed calls after the one in which operations are counted


def yardstick() -> RaMViDExperiment:
    """The network that figures of this project are compared by: RaMViD's shape at a quarter of its width.

    64×64 RGB, 16 frames, 32 channels, 2 residual blocks, multipliers 1, 2, 3, 4, attention at 16 and 8 positions.
    """
    return RaMViDExperiment(
        data=DataConfig(channels=3, size=64),
        model=RaMViDConfig(width=32, multipliers=(1, 2, 3, 4), res_blocks=2, attention=(4, 8)),
        stages=RaMViDStages(diffusion=DiffusionStageConfig(clip_frames=16, batch=1)),
        sample=RaMViDSampling(sampler="ddim", steps=20),
    )


@dataclass(frozen=True)
class Untrained:
    """A network with fresh weights."""

    name: str
    experiment: Any
    stage_name: str  # whose clips it is made for
    settings: StageConfig
    system: System


@dataclass(frozen=True)
class Fresh:
    """A stage with fresh weights and a batch of clips."""

    name: str
    stage_name: str
    experiment: Experiment
    settings: StageConfig
    system: System
    stage: Stage
    fabric: Fabric

    @property
    def case(self) -> str:
        v = self.system.video
        size = f"{v.width}×{v.height}×{v.channels}, {self.stage.clip_frames} frames"
        batch, again = self.settings.batch, ", checkpointing" if self.settings.checkpointing else ""
        kept = ", kept examples" if self.stage.keeps else ""
        words = f"batch {batch}, {_WORDS[self.settings.precision]}{again}{kept}"
        return f"{self.name}, {self.stage_name}: {size}, {words}"

    @property
    def notes(self) -> dict[str, list[str]]:
        """What the stage says of itself, for a row."""
        return {"notes": list(self.stage.notes)} if self.stage.notes else {}

    def clips(self) -> tuple[Video, Tensor]:
        v, batch = self.system.video, self.settings.batch
        shape = (batch, self.stage.clip_frames, v.channels, v.height, v.width)
        clip = draws(0, range(batch)).uniform(shape) * 2 - 1
        return clip, torch.ones(shape[:2], dtype=torch.bool)


def matmul(*, device: str, precision: Precision, repeats: int) -> list[dict[str, Any]]:
    """The machine's own rate, which the other rows are compared with, as a row: median, not best."""
    where, row = pick_device(device), dict[str, Any]()
    with beside_matmul(row, where, _dtype(precision)) as best:
        memory, n = Memory(where), best["size"]
        a, b, out = (torch.randn(n, n, device=where).to(_dtype(precision)) for _ in range(3))
        row |= timed(lambda: torch.mm(a, b, out=out), repeats=repeats, device=where).plain() | memory.plain()
        row |= {"what": "matmul", "case": f"{n}×{n}, {best['kind']}", "operations": 2 * n**3}
    return [row | facts(where)]


def forward(
    *,
    preset: str | None,
    device: str,
    precision: Precision,
    repeats: int,
    stage: str | None = None,
    changes: Changes = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One evaluation: the stage's loss of a clip, without gradient, in evaluation mode."""
    where, row = pick_device(device), dict[str, Any]()
    with beside_matmul(row, where, _dtype(precision)):
        memory = Memory(where)
        bench = fresh(preset, device=device, precision=precision, stage=stage, changes=changes)
        for module in (bench.system, *bench.stage.frozen().values()):
            module.to(where).eval()
        clip, valid = (tensor.to(where) for tensor in bench.clips())

        def work() -> None:
            rng = draws(0, [0], where)
            with torch.no_grad(), bench.fabric.autocast():
                examples = bench.stage.examples(clip, valid, rng)
                bench.stage.loss(examples, step=0, turn=bench.stage.turn(0), rng=rng)
            settle(where)

        row |= {"what": "forward", "case": bench.case, "operations": operations(work), **bench.notes}
        for _ in range(_WARM_UP):
            work()
        row |= {**timed(work, repeats=repeats, device=where).plain(), **memory.plain()}
    return [row | facts(where)]


def step(
    *,
    preset: str | None,
    device: str,
    precision: Precision,
    repeats: int,
    stage: str | None = None,
    changes: Changes = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One optimiser step by the training loop: forward, backward, clipping, update, averaging of weights.

    A row for the first steps of a stage; where several groups take turns later on, one for each of these, too. Where
    examples are kept, making them is no part of a step.
    """
    where, rows = pick_device(device), []
    bench: Fresh | None = fresh(preset, device=device, precision=precision, stage=stage, changes=changes)
    assert bench is not None
    turns = dict(taking_turns(bench))
    period = max(1, len(turns))
    if not turns or min(turns.values()) > _WARM_UP + repeats:
        turns = {"": 0, **turns}
    for turn, first in turns.items():
        row, bench = dict[str, Any](), None  # the memory it held is free before the next one is built
        with beside_matmul(row, where, _dtype(precision)):
            memory = Memory(where)
            bench = fresh(preset, device=device, precision=precision, stage=stage, changes=changes)
            training = Training(bench, first=first)
            counted = operations(partial(training.steps, 1))
            if bench.stage.keeps:
                counted = operations(partial(training.steps, 2)) - counted
            training.seconds.clear()
            each = period if turn else 1
            training.state.step = first
            training.steps(each * (_WARM_UP + repeats))
            times = Timed(tuple(training.seconds[::each][_WARM_UP:]))
            case = bench.case + (f", {turn} in turn" if turn else "")
            row |= {"what": "step", "case": case, "operations": counted}
            row |= {**times.plain(), **memory.plain(), **bench.notes}
            del training
        rows.append(row | facts(where))
    return rows


def taking_turns(bench: Fresh) -> Iterator[tuple[str, int]]:
    """Each group and a step in which it learns, from where on all groups of the stage take turns."""
    groups, last = len(bench.stage.groups()), bench.settings.max_steps
    start = bench.stage.turn(0)
    other = next((step for step in range(last) if bench.stage.turn(step) != start), None)
    if other is not None:
        for step in range(other, other + groups):
            yield bench.stage.turn(step), step


def untrained(name: str | None, *, stage: str | None = None, changes: Changes = MappingProxyType({})) -> Untrained:
    """The network of a preset (None: the yardstick) with fresh weights.

    Args:
        name: of the preset.
        stage: whose clips it is made for; None: the first.
        changes: settings by dotted key, in place of the preset's.

    Raises:
        ValueError: no network can be built so.
    """
    experiment = changed(cast(Any, yardstick() if name is None else preset(name)), changes)
    stage_name, settings = stage_settings(experiment, stage)
    height, width = size_of(experiment.data.size)
    video = VideoSpec(channels=experiment.data.channels, height=height, width=width, clip_frames=settings.clip_frames)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        system = resolve(entry(experiment.system).system)(experiment.model, video, experiment.sample)
    return Untrained(_named(name or "yardstick", changes), experiment, stage_name, settings, system)


def fresh(
    name: str | None,
    *,
    device: str,
    precision: Precision,
    stage: str | None = None,
    batch: int = 1,
    changes: Changes = MappingProxyType({}),
) -> Fresh:
    """A stage of a preset with fresh weights; other arguments are those of `untrained`.

    Args:
        name: of the preset.
        device: where it trains.
        precision: of its arithmetic.
        stage: None: the first.
        batch: clips of a step, all at once.
        changes: settings by dotted key, in place of the preset's.
    """
    built = untrained(name, stage=stage, changes=changes)
    settings = dataclasses.replace(
        built.settings, batch=batch, accumulate=1, precision=precision, preview_every=None, seed=0
    )
    part = built.system.stage(built.stage_name, settings, Assets(cache_dir() / "assets"))
    fabric = build_fabric(device=device, precision=settings.precision)
    return Fresh(built.name, built.stage_name, built.experiment, settings, built.system, part, fabric)


def changed(experiment: Any, changes: Changes) -> Any:
    """An experiment with other values at these dotted keys.

    Example:
        >>> changed(yardstick(), {"data.size": 32, "stages.diffusion.checkpointing": True}).data.size
        32

    Raises:
        ValueError: no such setting, or not a value for it.
    """
    plain = to_plain(experiment)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = plain
        for word in path:
            inner = inner.get(word, {})
        inner[last] = value
    return from_plain(type(experiment), plain) if changes else experiment


def _named(name: str, changes: Changes) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in changes.items())])


@dataclass
class _Clips:
    """The same clips again and again, as the training loop asks for clips."""

    clip: Video
    valid: Tensor
    borrowed: bool = True  # nothing is held out, so the loop validates nothing

    def batch(self, positions: Iterable[int]) -> tuple[Video, Tensor]:
        rows = [position % len(self.clip) for position in positions]
        return self.clip[rows], self.valid[rows]

    def number(self, position: int) -> int:
        return position % len(self.clip)


@dataclass
class _Clock:
    """Told of every step by the training loop; keeps the seconds of each."""

    seconds: list[float] = field(default_factory=list)
    last: Path | None = None
    _before: float = 0.0

    def step(self, state: TrainState, loss: float, values: Mapping[str, float]) -> None:
        self.seconds.append(state.seconds - self._before)
        self._before = state.seconds

    def checkpoint(self, state: TrainState) -> None: ...
    def preview(self, state: TrainState, clips: Video, made: Video) -> None: ...


class Training:
    """The training loop, one optimiser step at a time.

    Args:
        bench: which stage; its networks are put on its device.
        first: number of the first step.
    """

    def __init__(self, bench: Fresh, *, first: int = 0):
        clips = cast(ClipStream, _Clips(*bench.clips()))
        compiled = compiles(bench.settings.compile, device=bench.fabric.device, max_steps=bench.settings.max_steps)
        experiment = dataclasses.replace(bench.experiment, data=dataclasses.replace(bench.experiment.data, workers=0))
        bench.fabric.launch()
        self.job = Job(
            experiment=experiment, settings=bench.settings, stage_name=bench.stage_name,
            system=bench.system, stage=bench.stage, train=clips, held=clips, carried={}, fabric=bench.fabric,
            compile=compiled, checkpoint=None, dir=None, plan=None,  # type: ignore[arg-type]
        )  # fmt: skip
        self.state, self.clock = TrainState(self.job, bench.fabric), _Clock()
        self.state.step = first

    @property
    def seconds(self) -> list[float]:
        """Of every step so far."""
        return self.clock.seconds

    def steps(self, count: int) -> None:
        """So many steps."""
        settings = dataclasses.replace(self.job.settings, max_steps=self.state.step + count)
        job = dataclasses.replace(self.job, settings=settings)
        optimise(job, job.fabric, self.state, report=self.clock, asked=lambda: False)


def _dtype(precision: Precision) -> torch.dtype:
    return torch.float32 if precision == "32" else torch.bfloat16
