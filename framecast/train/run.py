# SPDX-License-Identifier: Apache-2.0
"""One training run from first check to last checkpoint, and the folder it fills.

    runs/2026-11-20_1530_ramvid_my-videos/      never reused; runs/latest points to the newest
      config.yaml  env.json  log.txt  metrics.csv  skipped.csv  tensorboard/
      checkpoints/step_00010000/  last -> …     model folder and training state
      samples/step_00010000/                    what the part makes of held-out clips
      config_until_step_00010000.yaml           where a resumed run went on with other settings: the former

Read next: `framecast.train.plan` (what is checked before), `framecast.train.loop` (the loop itself).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from framecast.checkpoint import describe, free_name, load_system, point, untrained
from framecast.devices import Fabric, hardware, memory, revision, versions
from framecast.experiment import Experiment, to_yaml
from framecast.generate import Model
from framecast.train.log import Pace, RunLog
from framecast.train.loop import optimise
from framecast.train.plan import Job, Plan, prepare
from framecast.train.preview import write_preview
from framecast.train.state import TrainState
from framecast.video import Video

RUNS = Path("runs")
SETTLED = 10  # steps after which the time of a step is told


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run."""

    dir: Path
    checkpoint: Path
    steps: int
    seconds: float
    loss: float | None  # of the last step; None where a resumed run had nothing left to do

    @property
    def model(self) -> Model:
        """The model it made, on the processor; parts that later stages train are refused where they are needed."""
        info = describe(self.checkpoint)
        system, lacks = load_system(self.checkpoint, require=()), {part: untrained(info, part) for part in info.missing}
        return Model(system, name=info.name, digest=info.digest, provenance=info.provenance, untrained=lacks)


class Stopped(Exception):
    """Somebody asked the run to stop; everything needed to go on has been written."""

    def __init__(self, dir: Path, checkpoint: Path):
        self.dir, self.checkpoint = dir, checkpoint
        super().__init__(
            f"Stopped. Checkpoint {checkpoint.name} written; continue with: framecast train --resume {dir}"
        )


class Progress(Protocol):
    """What a user interface is told; called on the first process only."""

    def plan(self, plan: Plan) -> None: ...
    def step(self, step: int, max_steps: int, loss: float, rate: float) -> None: ...  # rate: steps/s, 0 while unknown
    def note(self, text: str) -> None: ...
    def done(self, trained: Trained) -> None: ...


class Silent:
    """A `Progress` that tells nothing."""

    def plan(self, plan: Plan) -> None: ...
    def step(self, step: int, max_steps: int, loss: float, rate: float) -> None: ...
    def note(self, text: str) -> None: ...
    def done(self, trained: Trained) -> None: ...


def run(
    experiment: Experiment | None,
    *,
    stage: str | None = None,
    out: Path | str | None = None,
    from_model: Path | str | None = None,
    start_from: Path | str | None = None,
    resume: Path | str | None = None,
    device: str = "auto",
    devices: int = 1,
    progress: Progress | None = None,
    reading: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train one stage of a system.

    Args:
        experiment: what is trained, on what, how; None with `resume`: as the run was.
        stage: which part; None means the system's first.
        out: run folder, new or empty; None means a fresh one under `runs/`.
        from_model: model or run with the parts that this stage needs; they stay as they are.
        start_from: model or run whose weights the stage begins with, instead of random ones.
        resume: run folder to go on with, bit for bit as if it had never stopped.
        device: see `framecast.devices.pick_device`.
        devices: number of processes, one device each.
        progress: told what happens; None: nobody is.
        reading: called with (opened, to open) while new data files are looked at.

    Returns:
        Where the result is.

    Raises:
        ValueError: settings, data or models that cannot be trained with, found before anything is written; or a loss
            that is not finite any more.
        Stopped: interrupted by Ctrl-C or SIGTERM, after a checkpoint. A second Ctrl-C ends at once.
    """
    job = prepare(
        experiment, stage=stage, out=out, from_model=from_model, start_from=start_from, resume=resume,
        device=device, devices=devices, progress=reading,
    )  # fmt: skip
    fabric, tell = job.fabric, progress or Silent()
    gpus = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), _interruptible() as asked:
        fabric.launch()
        first = fabric.is_global_zero
        folder = Path(fabric.broadcast(str(_folder(job)) if first else ""))
        report = Report(job, fabric, folder, tell) if first else Elsewhere()
        try:
            state = TrainState(job, fabric)
            if not optimise(job, fabric, state, report=report, asked=asked):
                raise Stopped(folder, folder / "checkpoints" / f"step_{state.step:08d}")
        except BaseException as error:
            report.failed(error)
            if isinstance(error, torch.OutOfMemoryError):
                raise ValueError(_out_of_memory(job)) from error
            raise
        trained = Trained(
            dir=folder, checkpoint=folder / "checkpoints" / f"step_{state.step:08d}", steps=state.step,
            seconds=state.seconds, loss=report.loss,
        )  # fmt: skip
        report.done(trained)
        return trained


class Elsewhere:
    """The reporter of every process but the first: it tells nothing."""

    last: Path | None = None
    loss: float | None = None

    def step(self, state: TrainState, loss: float, values: Mapping[str, float]) -> None:
        self.loss = loss

    def checkpoint(self, state: TrainState) -> None: ...
    def preview(self, state: TrainState, clips: Video, made: Video) -> None: ...
    def failed(self, error: BaseException) -> None: ...
    def done(self, trained: Trained) -> None: ...


class Report:
    """The reporter of the first process: fills the run folder and tells the user interface."""

    def __init__(self, job: Job, fabric: Fabric, folder: Path, tell: Progress):
        self.job, self.fabric, self.folder, self.tell = job, fabric, folder, tell
        self.last, self.loss = job.checkpoint, None  # type: Path | None, float | None
        self.pace = Pace()
        self.seen = 0
        self.log = RunLog(folder, step=job.plan.first_step)
        plan = dataclasses.replace(job.plan, dir=folder)
        for line in plan.lines():
            self.log.note(line)
        if job.checkpoint:
            self.log.note(f"resumed from {job.checkpoint.name}: {json.dumps(_environment(fabric))}")
            _keep_changes(folder, job)
        else:
            _describe(folder, job, fabric)
        tell.plan(plan)

    def step(self, state: TrainState, loss: float, values: Mapping[str, float]) -> None:
        # checkpoints and previews take their own time, which would make the rate jump
        rate, self.loss, self.seen = self.pace.tick(state.seconds), loss, self.seen + 1
        if values:
            speed = {"clips_per_second": rate * self.job.settings.batch} if rate else {}
            self.log.metrics(state.step, {**values, **speed, "seconds": state.seconds})
        self.tell.step(state.step, self.job.settings.max_steps, loss, rate)
        if self.seen == SETTLED and rate:
            left = (self.job.settings.max_steps - state.step) / rate
            held = memory(self.fabric.device)
            self._note(
                f"{1 / rate:.3g} s per step: {_time(left)} to step {self.job.settings.max_steps}"
                + (f"; {held / 2**30:.1f} GB of GPU memory held" if held else "")
            )

    def checkpoint(self, state: TrainState) -> None:
        self.last = state.save(self.job, self.folder)
        self.log.note(f"checkpoint {self.last.name}, loss {self.loss:.6g}")

    def preview(self, state: TrainState, clips: Video, made: Video) -> None:
        folder = self.folder / "samples" / f"step_{state.step:08d}"
        write_preview(folder, clips.cpu(), made.cpu(), video=self.job.system.video, model=self.folder.name)

    def failed(self, error: BaseException) -> None:
        told = str(error) if isinstance(error, Stopped) else "".join(traceback.format_exception(error))
        self.log.note(told)
        self.log.close()

    def done(self, trained: Trained) -> None:
        self.log.note(f"done: {trained.steps} steps in {trained.seconds:.0f} s")
        self.log.close()
        self.tell.done(trained)

    def _note(self, text: str) -> None:
        self.log.note(text)
        self.tell.note(text)


def _time(seconds: float) -> str:
    """A long time in hours, a short one in minutes or seconds."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds >= 7200 else f"{seconds / 60:.2g} minutes"


def _folder(job: Job) -> Path:
    """The folder of this run: that of the run resumed, the one asked for, or a fresh one under runs/."""
    if job.dir is not None:
        job.dir.mkdir(parents=True, exist_ok=True)
        return job.dir
    data = Path(job.experiment.data.dir).expanduser().resolve().name
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", data).strip("-.") or "data"
    wanted = RUNS / f"{datetime.now():%Y-%m-%d_%H%M}_{job.system.name}_{slug}"
    while True:
        folder = free_name(wanted)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run took the name at this very moment
            continue
        point(RUNS / "latest", folder.name)
        return folder


def _describe(folder: Path, job: Job, fabric: Fabric) -> None:
    """config.yaml, env.json and, where files were left out, skipped.csv."""
    (folder / "config.yaml").write_text(to_yaml(job.experiment), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps(_environment(fabric), indent=2) + "\n", encoding="utf-8")
    if job.plan.rejected:
        with open(folder / "skipped.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "reason"])
            writer.writerows(job.plan.rejected)


def _keep_changes(folder: Path, job: Job) -> None:
    """Where a resumed run goes on with other settings: config.yaml tells them, config_until_<step>.yaml the former."""
    assert job.checkpoint is not None
    path, fresh = folder / "config.yaml", to_yaml(job.experiment)
    if path.read_text(encoding="utf-8") != fresh:
        path.replace(folder / f"config_until_{job.checkpoint.name}.yaml")
        path.write_text(fresh, encoding="utf-8")


def _environment(fabric: Fabric) -> dict[str, Any]:
    facts: dict[str, Any] = {"versions": versions(), "hardware": hardware(fabric.device), "devices": fabric.world_size}
    if commit := revision():
        facts["commit"] = commit
    return facts


def _out_of_memory(job: Job) -> str:
    settings, where = job.settings, f"stages.{job.stage_name}"
    again = f"{where}.accumulate={settings.accumulate * 2}" if job.plan.per_device > 1 else f"{where}.batch=1"
    rest = "" if settings.checkpointing else f", or {where}.checkpointing=true"
    return f"out of GPU memory with {job.plan.per_device} clips at once on a device; try {again}{rest}."


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within it the first SIGINT or SIGTERM only sets a flag, which is yielded; the second SIGINT ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield asked.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
