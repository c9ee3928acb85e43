# SPDX-License-Identifier: Apache-2.0
"""Everything that is decided before training starts: settings checked, data opened, system built, costs told.

`prepare` writes nothing, so that a mistake costs the user seconds and leaves no trace. Read next:
`framecast.train.run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framecast.assets import Assets, cache_dir
from framecast.checkpoint import (
    ModelInfo,
    PartInfo,
    check_tensors,
    describe,
    fill,
    find_model,
    follow,
    load_parts,
    load_tensors,
    newest_checkpoint,
)
from framecast.data.clips import ClipStream, open_streams
from framecast.devices import Fabric, build_fabric
from framecast.draws import mix
from framecast.experiment import (
    Experiment,
    OptimiserConfig,
    StageConfig,
    VideoSpec,
    from_plain,
    nearest,
    read_yaml,
    size_of,
)
from framecast.system import Stage, System
from framecast.systems import entry, resolve
from framecast.task import UnsupportedTask
from framecast.train.optim import compilable, compiles

STATE = "train_state"  # .safetensors and .json of a checkpoint one can resume from


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do, told before it starts."""

    system: str
    stage: str
    video: VideoSpec
    clip_frames: int
    clips: int  # training windows
    files: int
    rejected: tuple[tuple[str, str], ...]  # path, reason
    parameters: int  # that learn
    frozen: int  # parameters that are only read
    memory: int  # bytes of weights, gradients, optimiser and averages; activations come on top
    batch: int
    accumulate: int
    devices: int
    device: str
    precision: str
    first_step: int
    max_steps: int
    compile: bool
    dir: Path | None  # where output goes; None: named when the run starts
    notes: tuple[str, ...] = ()

    @property
    def per_device(self) -> int:
        """Clips of one micro-batch on one device."""
        return self.batch // (self.accumulate * self.devices)

    def lines(self) -> list[str]:
        """The plan in short lines of text."""
        v = self.video
        share = f"{self.per_device} per device" + (f" × {self.accumulate} in turn" if self.accumulate > 1 else "")
        rate = f" at {v.fps:g} fps" if v.fps else ""
        lines = [
            f"{self.system}, stage {self.stage}: {_short(self.parameters)} parameters to train"
            + (f", {_short(self.frozen)} frozen" if self.frozen else ""),
            f"clips: {self.clips} of {self.clip_frames} frames, {v.width}×{v.height}×{v.channels}{rate}, "
            f"from {self.files} files" + (f" ({len(self.rejected)} more skipped)" if self.rejected else ""),
            f"steps: {self.first_step} to {self.max_steps}, batch {self.batch} ({share}), "
            f"{self.devices} × {self.device}, precision {self.precision}" + (", compiled" if self.compile else ""),
            f"memory: {_short(self.memory)}B per device for weights, gradients, optimiser and averages; "
            "activations come on top",
            f"output: {self.dir or 'runs/…'}",
        ]
        return lines + [f"note: {note}" for note in self.notes]


def _short(number: int) -> str:
    """A number as 512, 1.23 M or 45.6 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number}"


@dataclass(kw_only=True)
class Job:
    """A training run ready to start."""

    experiment: Experiment
    settings: StageConfig
    stage_name: str
    system: System
    stage: Stage
    train: ClipStream
    held: ClipStream  # validation and previews
    carried: dict[str, PartInfo]  # parts of the system that are not trained here but are there
    fabric: Fabric
    compile: bool
    plan: Plan
    dir: Path | None
    checkpoint: Path | None  # to resume from
    begun: bool = False  # the weights to be trained are another run's

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The parts of the system that this stage trains."""
        parts = self.system.parts()
        return {n: m for group in self.stage.groups().values() for n, m in group.modules.items() if n in parts}


def prepare(
    experiment: Experiment | None,
    *,
    stage: str | None = None,
    out: Path | str | None = None,
    from_model: Path | str | None = None,
    start_from: Path | str | None = None,
    resume: Path | str | None = None,
    device: str = "auto",
    devices: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Job:
    """Check, open and build everything a run needs; nothing is written. Arguments are those of `run`.

    Raises:
        ValueError: anything that would stop the run later and can be known now.
    """
    checkpoint = None
    if resume is not None:
        experiment, stage, checkpoint = _resumed(Path(resume), experiment, stage, others=(out, from_model, start_from))
    if experiment is None:
        raise ValueError("nothing to train: give an experiment, or a run to resume.")
    name, settings = stage_settings(experiment, stage)
    check(settings, where=f"stages.{name}")
    fabric = build_fabric(device=device, devices=devices, precision=settings.precision)
    _check_share(settings, fabric.world_size, where=f"stages.{name}")
    if not experiment.data.dir:
        raise ValueError("no training clips: give a folder of videos with --data, or set data.dir.")
    # the whole path, so that the run can be resumed from any folder
    place = str(Path(experiment.data.dir).expanduser().resolve())
    if (Path(place) / "set.json").is_file() and (Path(place) / "train").is_dir():
        raise ValueError(
            f"{experiment.data.dir} holds a whole simulated set, the clips to be tested on too: train on "
            f"{Path(experiment.data.dir) / 'train'}."
        )
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, dir=place))
    if out is not None and Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        raise ValueError(f"{out} exists already and is not overwritten; choose another --out.")
    source = describe(checkpoint) if checkpoint else describe(from_model) if from_model is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix("weights", name, settings.seed))
        system = _build(experiment, settings, source)
        carried = _carry(system, source, name) if source else {}
        part = _stage(system, name, settings)
    with contextlib.suppress(UnsupportedTask):  # predicting may not be its task; options it cannot use are refused
        options = experiment.sample  # type: ignore[attr-defined]
        system.plan((True,) + (False,) * (settings.clip_frames - 1), options)
    for need in part.needs:
        if need not in carried:
            raise ValueError(
                f"stage {name} is trained on top of a trained {need}: train it with --stage {need}, "
                "then give that run with --from."
            )
    if start_from is not None:
        _start_from(part, start_from)
    train, held = open_streams(
        experiment.data, clip_frames=part.clip_frames, min_frames=part.min_frames,
        seed=mix("clips", settings.seed), progress=progress,
    )  # fmt: skip
    if part.keeps and (experiment.data.flip or experiment.data.crop != "center"):
        raise ValueError(
            f"stages.{name} keeps what it makes of every clip, so clips must be cut alike every time: set data.flip to "
            "false and data.crop to center, or let the stage keep nothing (cache: false)."
        )
    train.clip(0)  # readable, not only listed
    if source is None:
        system.video = dataclasses.replace(train.video, clip_frames=system.video.clip_frames)
    learning = [module for group in part.groups().values() for module in group.modules.values()]
    compiled = compiles(settings.compile, device=fabric.device, max_steps=settings.max_steps) and any(
        map(compilable, learning)
    )
    job = Job(
        experiment=experiment, settings=settings, stage_name=name, system=system, stage=part, train=train, held=held,
        carried=carried, fabric=fabric, compile=compiled, checkpoint=checkpoint, plan=None,  # type: ignore[arg-type]
        dir=checkpoint.parents[1] if checkpoint else Path(out) if out is not None else None,
        begun=start_from is not None,
    )  # fmt: skip
    job.plan = _plan(job)
    return job


def stage_settings(experiment: Experiment, stage: str | None) -> tuple[str, StageConfig]:
    """Name and settings of a stage; None means the system's first.

    Raises:
        ValueError: the system has no such stage.
    """
    stages: Any = experiment.stages  # type: ignore[attr-defined]
    names = [field.name for field in dataclasses.fields(stages)]
    name = stage or names[0]
    if name not in names:
        raise ValueError(
            f"{experiment.system} has no stage {name!r}.{nearest(name, names)} Its stages: {', '.join(names)}."
        )
    return name, getattr(stages, name)


def check(settings: StageConfig, *, where: str) -> None:
    """Refuse settings that no stage could be trained with.

    Raises:
        ValueError: names the first such setting.
    """
    least = {
        "clip_frames": 1, "batch": 1, "accumulate": 1, "max_steps": 1, "log_every": 1, "preview_every": 0,
        "checkpoint_every": 1, "keep": 1,
    }  # fmt: skip
    for key, bound in least.items():
        if (value := getattr(settings, key)) is not None and value < bound:
            raise ValueError(f"{where}.{key} is {value}; it must be at least {bound}.")
    for key, value in vars(settings).items():
        if isinstance(value, OptimiserConfig):
            _check_optimiser(value, where=f"{where}.{key}")
    ema = settings.ema
    if not 0 <= ema.decay < 1 or ema.warmup < 0 or ema.every < 1 or ema.start < 0:
        raise ValueError(
            f"{where}.ema: decay must lie in [0, 1), warmup and start must not be below 0, every must be at least "
            f"1, got {ema}."
        )


def _check_optimiser(optimiser: OptimiserConfig, *, where: str) -> None:
    if not optimiser.lr > 0:
        raise ValueError(f"{where}.lr is {optimiser.lr}; the learning rate must be above 0.")
    for key in ("clip_norm", "warmup_steps", "decay_steps", "decay", "decay_from", "weight_decay"):
        if (value := getattr(optimiser, key)) < 0:
            raise ValueError(f"{where}.{key} is {value}; it must not be below 0.")
    if optimiser.schedule == "step" and optimiser.decay > 1:
        raise ValueError(f"{where}.decay is {optimiser.decay}; a factor per drop, it must not be above 1.")
    if not 0 <= optimiser.floor <= 1:
        raise ValueError(f"{where}.floor is {optimiser.floor}; a share of lr, it must lie between 0 and 1.")
    if not all(0 <= beta < 1 for beta in optimiser.betas) or optimiser.eps < 0:
        told = f"{list(optimiser.betas)} and {optimiser.eps}"
        raise ValueError(f"{where}: betas must lie in [0, 1) and eps must not be below 0, got {told}.")


def _check_share(settings: StageConfig, devices: int, *, where: str) -> None:
    parts = settings.accumulate * devices
    if settings.batch % parts:
        each = f"accumulate {settings.accumulate} × {devices} device{'s' if devices > 1 else ''}"
        raise ValueError(
            f"{where}.batch is {settings.batch}, which cannot be divided evenly by {each}; "
            f"try {max(parts, settings.batch // parts * parts)}."
        )


def _resumed(
    path: Path, experiment: Experiment | None, stage: str | None, *, others: tuple[Any, ...]
) -> tuple[Experiment, str, Path]:
    """Settings, stage and newest checkpoint of a run to go on with."""
    if any(other is not None for other in others):
        raise ValueError("--resume goes on with a run as it was: leave out --out, --from and --start-from.")
    run = follow(path.expanduser())
    if run.parent.name == "checkpoints":
        raise ValueError(f"{path} is one checkpoint; --resume takes the run folder: {run.parents[1]}")
    if not run.is_dir() or not (run / "config.yaml").is_file():
        raise ValueError(f"{path} is not a run folder: there is no config.yaml in it.")
    checkpoint = newest_checkpoint(run)
    if not (checkpoint / f"{STATE}.json").is_file():
        raise ValueError(f"{checkpoint} holds no training state; give it with --start-from to begin a new run with it.")
    state = counters(checkpoint)
    for name in [STATE, *(part for part, trained in describe(checkpoint).parts.items() if trained)]:
        check_tensors(checkpoint / f"{name}.safetensors")
    stored = read_config(run / "config.yaml")
    if stage not in (None, state["stage"]):
        raise ValueError(f"{path} trains stage {state['stage']}, not {stage}.")
    if experiment is None:
        return stored, state["stage"], checkpoint
    if (experiment.system, experiment.model) != (stored.system, stored.model):  # type: ignore[attr-defined]
        raise ValueError(f"the model settings differ from those of {path}; a run is resumed with its own.")
    return experiment, state["stage"], checkpoint


def counters(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of how far its run had come.

    Raises:
        ValueError: the file is damaged.
    """
    path = checkpoint / f"{STATE}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("step", "stage", "seconds", "updates", "means", "written") if key not in found]
        wrong = f"{missing[0]} is missing" if missing else ""
    except (ValueError, TypeError):
        wrong = "it is not JSON"
    if wrong:
        raise ValueError(f"{path} is damaged ({wrong}): copy the checkpoint again, or remove it.")
    return found


def read_config(path: Path) -> Experiment:
    """The experiment in a YAML file, as `config.yaml` of a run holds it.

    Raises:
        ValueError: not such a file, an unknown system or setting.
    """
    values = read_yaml(path)
    if "system" not in values:
        raise ValueError(f"{path} names no system: its first line should be `system: …`.")
    return from_plain(resolve(entry(values["system"]).experiment), values)


def _build(experiment: Experiment, settings: StageConfig, source: ModelInfo | None) -> System:
    """The system with fresh weights, made for the clips of `source` where one is given."""
    height, width = size_of(experiment.data.size)
    video = VideoSpec(
        channels=experiment.data.channels, height=height, width=width, clip_frames=settings.clip_frames
    )  # fmt: skip
    if source:
        if source.system != experiment.system:
            raise ValueError(f"{source.dir} is a {source.system} model, the experiment trains {experiment.system}.")
        ours, theirs = ((v.channels, v.height, v.width) for v in (video, source.video))
        if ours != theirs:
            told = [f"{w}×{h} with {c} channel{'s' if c > 1 else ''}" for c, h, w in (theirs, ours)]
            raise ValueError(f"{source.dir} was made for {told[0]}, the data settings say {told[1]}: make them agree.")
        video = source.video
    config, options = experiment.model, experiment.sample  # type: ignore[attr-defined]
    return resolve(entry(experiment.system).system)(config, video, options)


def _carry(system: System, source: ModelInfo, stage: str) -> dict[str, PartInfo]:
    """Load what is there besides the part to be trained; parts that stand on that part would be void, so they go."""
    names = [n for n, p in source.parts.items() if p and p.stage != stage and stage not in p.needs]
    return load_parts(system, source, names)


def _stage(system: System, name: str, settings: StageConfig) -> Stage:
    stage = system.stage(name, settings, Assets(cache_dir() / "assets"))
    if stage.clip_frames < 1 or not 1 <= stage.min_frames <= stage.clip_frames:
        raise ValueError(f"stages.{name}.clip_frames is {stage.clip_frames}; it needs at least {stage.min_frames}.")
    return stage


def _start_from(stage: Stage, source: Path | str) -> None:
    """Copy the weights of the parts to be trained from a model or run, whatever else differs."""
    folder = find_model(source)
    found = False
    for group in stage.groups().values():
        for name, module in group.modules.items():
            path = folder / f"{name}.safetensors"
            if path.is_file():
                fill(module, load_tensors(path), where=str(path))
                found = True
    if not found:
        names = ", ".join(name for group in stage.groups().values() for name in group.modules)
        raise ValueError(f"{folder} holds no weights to start from; this stage trains: {names}.")


def _plan(job: Job) -> Plan:
    learning = {
        id(p): p.numel() for g in job.stage.groups().values() for m in g.modules.values() for p in m.parameters()
    }
    averaged = sum(p.numel() for m in job.trained.values() for p in m.parameters()) if job.settings.ema.decay else 0
    resting = [*job.system.parts().values(), *job.stage.frozen().values()]
    frozen = {id(p): p.numel() for m in resting for p in m.parameters() if id(p) not in learning}
    notes = [*job.stage.notes, *job.train.notes]
    if few := job.train.few_clips(job.settings.batch, stage=job.stage_name):
        notes.append(few)
    first = 0
    if job.checkpoint:
        first = counters(job.checkpoint)["step"]
        had = describe(job.checkpoint).provenance["clips"]
        if had != job.train.windows:
            notes.append(f"{had} clips when the run stopped, {job.train.windows} now: it sees others from here on.")
    # float32: a weight, its gradient and Adam's two moments; one average; the frozen ones
    memory = 4 * (4 * sum(learning.values()) + averaged + sum(frozen.values()))
    return Plan(
        system=job.system.name, stage=job.stage_name, video=job.system.video, clip_frames=job.stage.clip_frames,
        clips=job.train.windows, files=len(job.train.files),
        rejected=tuple((str(r.path), r.reason) for r in job.train.rejected),
        parameters=sum(learning.values()), frozen=sum(frozen.values()), memory=memory, batch=job.settings.batch,
        accumulate=job.settings.accumulate, devices=job.fabric.world_size, device=job.fabric.device.type,
        precision=job.settings.precision, first_step=first, max_steps=job.settings.max_steps, compile=job.compile,
        dir=job.dir, notes=tuple(notes),
    )  # fmt: skip
