# SPDX-License-Identifier: Apache-2.0
"""The training loop: any stage of any system, one optimiser step after another.

Whatever a step computes is a function of (settings, step, weights): clips by their position in the stream
(step × batch + i), noise by seed and position, dropout by a global generator seeded anew for every micro-batch. That is
why a resumed run continues bit for bit, and why batch layouts (devices, micro-batches) agree up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from framecast.devices import Fabric
from framecast.draws import draws, mix
from framecast.experiment import StageConfig
from framecast.train.examples import Examples, open_examples
from framecast.train.optim import Learner
from framecast.train.plan import Job
from framecast.train.state import TrainState
from framecast.video import Video

VALIDATION_CLIPS, PREVIEW_CLIPS = 16, 4


class Diverged(ValueError):
    """The loss or a gradient is not a finite number any more, or left the range of sound training for good."""


class Reporter(Protocol):
    """Where the loop tells what happens; on all processes but the first these do nothing."""

    def step(self, state: TrainState, loss: float, values: Mapping[str, float]) -> None: ...
    def checkpoint(self, state: TrainState) -> None: ...
    def preview(self, state: TrainState, clips: Video, made: Video) -> None: ...
    @property
    def last(self) -> Path | None: ...  # newest checkpoint


def optimise(job: Job, fabric: Fabric, state: TrainState, *, report: Reporter, asked: Callable[[], bool]) -> bool:
    """Train from `state.step` to the end, or until `asked` (on any process) says to stop.

    Returns:
        Whether the end was reached. A checkpoint of the last step has been written either way.

    Raises:
        Diverged: a loss or gradient that is not finite, or a group whose loss stayed out of the range of sound training
            (`Stage.sound`); the weights of that step are never written.
    """
    stage, settings = job.stage, job.settings
    places = _places(settings, fabric, first=state.step)
    held = _held(job, fabric)
    workers = job.experiment.data.workers
    with open_examples(stage, job.train, fabric, places, workers=workers) as source:
        for step in range(state.step, settings.max_steps):
            began = time.perf_counter()
            turn = stage.turn(step)
            learner = state.learners[turn]
            rate = learner.take_turn(state.learners, step, max_steps=settings.max_steps)
            told = _gradients(job, fabric, learner, source, step=step, turn=turn)
            values = _agree(fabric, {**told, "stop": float(asked())})
            stop = values.pop("stop") > 0
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                raise Diverged(_diverged(values, step, job, _good(state, report)))
            if state.soundness.tick(turn, values["loss"], step=step):
                raise Diverged(_astray(state, turn, values["loss"], _good(state, report)))
            learner.update()
            after = stage.after_step(step, draws(mix("after", _noise(job), step), range(1), fabric.device, step=step))
            for name in learner.modules.keys() & state.average.modules.keys():
                state.average.update(name, learner.updates - 1)

            state.step, last = step + 1, step + 1 == settings.max_steps
            state.seconds += time.perf_counter() - began
            values |= {name: float(value) for name, value in after.items()}
            state.means.add(values if len(state.learners) == 1 else {f"{turn}/{k}": v for k, v in values.items()})
            line = state.means.take() | {"lr": rate} if state.step % settings.log_every == 0 or last else {}
            due = state.step % settings.checkpoint_every == 0 or last
            if due and held is not None:
                line["validation_loss"] = validation_loss(job, fabric, state, held)
            report.step(state, values["loss"], line)
            if due or stop:
                report.checkpoint(state)
            often = settings.preview_every
            if often is not None and (last or (often and state.step % often == 0)):
                clips = fabric.to_device(job.held.first(PREVIEW_CLIPS))
                report.preview(state, clips, preview(job, fabric, state, clips))
            fabric.barrier()
            if stop and not last:
                return False
    return True


def _gradients(
    job: Job, fabric: Fabric, learner: Learner, source: Examples, *, step: int, turn: str
) -> dict[str, Tensor]:
    """Forward and backward over all micro-batches of a step; loss, its terms and the norm of the clipped gradient."""
    settings, noise, told = job.settings, _noise(job), dict[str, Tensor]()
    for micro in range(settings.accumulate):
        rows = _rows(settings, step, micro, fabric)
        rng = draws(noise, rows, fabric.device, step=step)
        torch.manual_seed(mix("global", noise, step, fabric.global_rank, micro))
        examples = source.of(rows, rng)
        with fabric.no_backward_sync(learner.objective, enabled=micro + 1 < settings.accumulate):
            loss, terms = learner.objective(examples, step, turn, rng)
            fabric.backward(loss / settings.accumulate)
        for name, value in {"loss": loss, **terms}.items():
            told[name] = told.get(name, 0.0) + value.detach().float() / settings.accumulate
    return {**told, "grad_norm": learner.clip()}


def _noise(job: Job) -> int:
    """Seed of the run's noise."""
    return mix("noise", job.stage_name, job.settings.seed)


def _rows(settings: StageConfig, step: int, micro: int, fabric: Fabric) -> range:
    """Positions in the stream of one micro-batch of this process."""
    share = settings.batch // (settings.accumulate * fabric.world_size)
    start = step * settings.batch + (micro * fabric.world_size + fabric.global_rank) * share
    return range(start, start + share)


def _places(settings: StageConfig, fabric: Fabric, *, first: int) -> Iterator[list[int]]:
    """Positions of all micro-batches of this process from step `first` on."""
    for step in range(first, settings.max_steps):
        for micro in range(settings.accumulate):
            yield list(_rows(settings, step, micro, fabric))


def _agree(fabric: Fabric, values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Means over all processes, in one exchange and one wait for the device."""
    names = sorted(values)
    told = torch.stack([torch.as_tensor(values[n], dtype=torch.float32, device=fabric.device) for n in names])
    means = fabric.all_reduce(told, reduce_op="mean")
    assert isinstance(means, Tensor)
    return dict(zip(names, means.tolist()))


def _good(state: TrainState, report: Reporter) -> Path | None:
    """The newest checkpoint whose training was sound."""
    name = state.sound_checkpoint()
    return report.last.with_name(name) if report.last and name else None


def _diverged(values: Mapping[str, float], step: int, job: Job, good: Path | None) -> str:
    terms = [f"{name} {value:g}" for name, value in values.items() if not math.isfinite(value)]
    where = f"The last good checkpoint is {good}" if good else "No checkpoint had been written"
    return (
        f"training diverged at step {step} ({', '.join(terms)}). {where}; lower "
        f"stages.{job.stage_name}.optimiser.lr (now {job.settings.optimiser.lr:g}) or raise warmup_steps."
    )


def _astray(state: TrainState, turn: str, loss: float, good: Path | None) -> str:
    (low, high), (turns, first) = state.soundness.ranges[turn], state.soundness.state[turn]
    where = f"The last good checkpoint is {good}" if good else "No checkpoint had been written before"
    return (
        f"training diverged: the loss of the {turn} has been outside {low:g} to {high:g} for {turns} of their steps in "
        f"a row, since step {first} (now {loss:.3g}). {where}; use that, or train on from it with lower learning rates."
    )


def _held(job: Job, fabric: Fabric) -> tuple[Video, Tensor] | None:
    """A few clips to judge by, always the same; None where none were held out."""
    if job.held.borrowed:
        return None
    count = min(VALIDATION_CLIPS, job.held.windows)
    clips, valid = job.held.batch(range(count))
    return fabric.to_device(clips), fabric.to_device(valid)


def validation_loss(job: Job, fabric: Fabric, state: TrainState, held: tuple[Video, Tensor]) -> float:
    """Loss of the first group on the held-out clips, by the averaged weights and with the same noise every time."""
    clips, valid = held
    rng = draws(mix("validation", job.settings.seed), range(len(clips)), fabric.device)
    with state.judged(), fabric.autocast():
        examples = job.stage.examples(clips, valid, rng)
        loss = job.stage.loss(examples, step=state.step, turn=next(iter(state.learners)), rng=rng)
    return float(loss.total)


def preview(job: Job, fabric: Fabric, state: TrainState, clips: Video) -> Video:
    """What the averaged weights make of some clips, with the same noise every time."""
    rng = draws(mix("preview", job.settings.seed), range(len(clips)), fabric.device)
    with state.judged(), fabric.autocast():
        made = job.stage.preview(clips, rng)
    return made.float()
