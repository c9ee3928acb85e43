# SPDX-License-Identifier: Apache-2.0
"""What networks cost: a matrix product, one evaluation, one training step; `drawing.py` has what drawing costs.

Evaluation and step go through what training itself runs: a stage's loss, the learner, the loop of `framecast.train`.
Clips are random numbers from memory: reading is measured by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from framecast.assets import Assets, cache_dir
from framecast.bench.measure import Memory, Timed, beside_matmul, facts, operations, settle, timed
from framecast.data.clips import ClipStream
from framecast.devices import Fabric, build_fabric, pick_device
from framecast.draws import draws
from framecast.experiment import DataConfig, Experiment, StageConfig, VideoSpec, size_of
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
class Fresh:
    """A stage with fresh weights and one clip."""

    name: str
    experiment: Experiment
    settings: StageConfig
    system: System
    stage: Stage
    fabric: Fabric

    @property
    def case(self) -> str:
        v = self.system.video
        size = f"{v.width}×{v.height}×{v.channels}, {self.stage.clip_frames} frames"
        return f"{self.name}: {size}, batch 1, {_WORDS[self.settings.precision]}"

    def clips(self) -> tuple[Video, Tensor]:
        v = self.system.video
        shape = (1, self.stage.clip_frames, v.channels, v.height, v.width)
        clip = draws(0, [0]).uniform(shape) * 2 - 1
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


def forward(*, preset: str | None, device: str, precision: Precision, repeats: int) -> list[dict[str, Any]]:
    """One evaluation: the stage's loss of a clip, without gradient, in evaluation mode."""
    where, row = pick_device(device), dict[str, Any]()
    with beside_matmul(row, where, _dtype(precision)):
        memory = Memory(where)
        bench = fresh(preset, device=device, precision=precision)
        bench.system.to(where).eval()
        clip, valid = (tensor.to(where) for tensor in bench.clips())

        def work() -> None:
            rng = draws(0, [0], where)
            with torch.no_grad(), bench.fabric.autocast():
                examples = bench.stage.examples(clip, valid, rng)
                bench.stage.loss(examples, step=0, turn=bench.stage.turn(0), rng=rng)
            settle(where)

        row |= {"what": "forward", "case": bench.case, "operations": operations(work)}
        for _ in range(_WARM_UP):
            work()
        row |= {**timed(work, repeats=repeats, device=where).plain(), **memory.plain()}
    return [row | facts(where)]


def step(*, preset: str | None, device: str, precision: Precision, repeats: int) -> list[dict[str, Any]]:
    """One optimiser step by the training loop: forward, backward, clipping, update, averaging of weights."""
    where, row = pick_device(device), dict[str, Any]()
    with beside_matmul(row, where, _dtype(precision)):
        memory = Memory(where)
        bench = fresh(preset, device=device, precision=precision)
        job = _job(bench)
        bench.fabric.launch()
        state, clock = TrainState(job, bench.fabric), _Clock()
        row["operations"] = operations(lambda: _train(job, state, clock, until=1))
        _train(job, state, clock, until=1 + _WARM_UP + repeats)
        times = Timed(tuple(clock.seconds[-repeats:]))
        row |= {"what": "step", "case": bench.case, **times.plain(), **memory.plain()}
    return [row | facts(where)]


def fresh(name: str | None, *, device: str, precision: Precision) -> Fresh:
    """The first stage of a preset (None: of the yardstick) with fresh weights, for one clip."""
    experiment = cast(Any, yardstick() if name is None else preset(name))
    stage_name, settings = stage_settings(experiment, None)
    settings = dataclasses.replace(settings, batch=1, accumulate=1, precision=precision, preview_every=None, seed=0)
    height, width = size_of(experiment.data.size)
    video = VideoSpec(channels=experiment.data.channels, height=height, width=width, clip_frames=settings.clip_frames)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        system = resolve(entry(experiment.system).system)(experiment.model, video, experiment.sample)
    stage = system.stage(stage_name, settings, Assets(cache_dir() / "assets"))
    fabric = build_fabric(device=device, precision=settings.precision)
    return Fresh(name or "yardstick", experiment, settings, system, stage, fabric)


@dataclass
class _Clips:
    """The same clip again and again, as the training loop asks for clips."""

    clip: Video
    valid: Tensor
    borrowed: bool = True  # nothing is held out, so the loop validates nothing

    def batch(self, positions: Iterable[int]) -> tuple[Video, Tensor]:
        return self.clip, self.valid


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


def _job(bench: Fresh) -> Job:
    """What the training loop needs, without files."""
    clips = cast(ClipStream, _Clips(*bench.clips()))
    compiled = compiles(bench.settings.compile, device=bench.fabric.device, max_steps=bench.settings.max_steps)
    experiment = dataclasses.replace(bench.experiment, data=dataclasses.replace(bench.experiment.data, workers=0))
    return Job(
        experiment=experiment, settings=bench.settings, stage_name=stage_settings(experiment, None)[0],
        system=bench.system, stage=bench.stage, train=clips, held=clips, carried={}, fabric=bench.fabric,
        compile=compiled, checkpoint=None, dir=None, plan=None,  # type: ignore[arg-type]
    )  # fmt: skip


def _train(job: Job, state: TrainState, clock: _Clock, *, until: int) -> None:
    ending = dataclasses.replace(job, settings=dataclasses.replace(job.settings, max_steps=until))
    optimise(ending, job.fabric, state, report=clock, asked=lambda: False)


def _dtype(precision: Precision) -> torch.dtype:
    return torch.float32 if precision == "32" else torch.bfloat16
