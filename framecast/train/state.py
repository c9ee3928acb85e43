# SPDX-License-Identifier: Apache-2.0
"""The state of a run and its checkpoints: {step, tensors}, nothing else, so that a resumed run repeats every bit.

A checkpoint is a model folder (the weights to sample with) plus `train_state.safetensors` (weights as the optimiser
left them, and its moments) and `train_state.json` (counters).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from framecast.checkpoint import CARD, CONFIG, PartInfo, load_tensors, point, save_tensors, whole_folder, write_model
from framecast.data.appearance import appearance
from framecast.data.clips import ClipStream
from framecast.devices import Fabric
from framecast.draws import draws, mix
from framecast.train.ema import Average
from framecast.train.log import Means
from framecast.train.optim import Learner, compilable
from framecast.train.plan import STATE, Job, counters
from framecast.train.sound import Soundness


class TrainState:
    """Everything that changes while a run goes on.

    Putting the modules on their device, and wrapping each group for the averaging of gradients, happens here.
    """

    def __init__(self, job: Job, fabric: Fabric):
        self.step = 0  # optimiser steps done
        self.seconds = 0.0  # spent on them
        self.means = Means()
        self.soundness = Soundness(job.stage.sound())
        self.written: list[str] = []  # checkpoints of this run, oldest first
        self._seen: dict[str, Any] | None = None  # what the training clips look like; the same in every checkpoint
        job.system.requires_grad_(False).eval().to(fabric.device)
        for module in job.stage.frozen().values():
            module.requires_grad_(False).eval().to(fabric.device)
        self.learners: dict[str, Learner] = {}
        for name, group in job.stage.groups().items():
            learner = self.learners[name] = Learner(job.stage, group)
            learner.objective.requires_grad_(True).train()
            learner.objective, learner.optimiser = fabric.setup(learner.objective, learner.plain_optimiser)
            if job.compile:
                for module in filter(compilable, learner.modules.values()):
                    module.compile()
        if job.checkpoint is None and not job.begun:  # else it would take back what training has made of it
            self._start(job, fabric)
        self.average = Average(job.trained, job.settings.ema)
        if job.checkpoint is not None:
            self._load(job.checkpoint)

    def _start(self, job: Job, fabric: Fabric) -> None:
        """Let the stage look at the first batch, the same one on every process."""
        first = range(job.settings.batch)
        clips, _ = job.train.batch(first)
        seed = mix("start", job.stage_name, job.settings.seed)
        with torch.no_grad():
            job.stage.start(fabric.to_device(clips), draws(seed, first, fabric.device))

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Within it the learning modules are in evaluation mode, hold their averages and compute no gradient."""
        modules = [module for learner in self.learners.values() for module in learner.modules.values()]
        for module in modules:
            module.eval()
        # other batch sizes than in training: compiling for them would cost more than it saves
        try:
            with torch.no_grad(), self.average.in_place(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for module in modules:
                module.train()

    def save(self, job: Job, run: Path) -> Path:
        """Write the checkpoint of this step, whole or not at all, and drop this run's oldest ones.

        Raises:
            ValueError: a weight is not a finite number; nothing is written.
        """
        folder = run / "checkpoints" / f"step_{self.step:08d}"
        with whole_folder(folder) as fresh:
            with self.average.in_place():
                write_model(
                    fresh, job.system, parts=self._parts(job), provenance=_provenance(job, self._look(job.train))
                )
            tensors = {f"{g}/{name}": t for g, one in self.learners.items() for name, t in one.state().items()}
            save_tensors(fresh / f"{STATE}.safetensors", tensors)
            written = [*self.written, folder.name]
            told = {
                "step": self.step,
                "stage": job.stage_name,
                "seconds": self.seconds,
                "updates": {name: learner.updates for name, learner in self.learners.items()},
                "means": self.means.state,
                "astray": self.soundness.state,
                "written": written,
            }
            (fresh / f"{STATE}.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        point(folder.parent / "last", folder.name)
        self.written = written
        self._prune(job, run)
        return folder

    def _look(self, clips: ClipStream) -> dict[str, Any]:
        """What the training clips look like, by which the model can tell one of another kind; {} where they broke."""
        if self._seen is None:
            try:
                self._seen = appearance(clips)
            except ValueError:
                self._seen = {}
        return self._seen

    def _parts(self, job: Job) -> dict[str, PartInfo]:
        fresh = PartInfo(
            stage=job.stage_name,
            step=self.step,
            weights="ema" if job.settings.ema.decay else "raw",
            needs=dict.fromkeys(job.stage.needs, ""),
        )
        return {**job.carried, **dict.fromkeys(job.trained, fresh)}

    def sound_checkpoint(self) -> str | None:
        """Name of this run's newest checkpoint from before its training left the range it should keep to.

        The loss of step s is that of the weights after s steps, so a checkpoint of step s is not sound where s is not.
        """
        since = self.soundness.since
        sound = [name for name in self.written if since is None or int(name.removeprefix("step_")) < since]
        return sound[-1] if sound else None

    def _prune(self, job: Job, run: Path) -> None:
        """Remove the oldest checkpoints that this run wrote, and in them only the files it wrote."""
        kept = self.written[-job.settings.keep :]
        if (good := self.sound_checkpoint()) and good not in kept:
            kept = [good, *kept]
        surplus, self.written = [name for name in self.written if name not in kept], kept
        for name in surplus:
            folder = run / "checkpoints" / name
            ours = [CONFIG, CARD, f"{STATE}.json", f"{STATE}.safetensors"]
            ours += [f"{part}.safetensors" for part in job.system.parts()]
            for file in ours:
                (folder / file).unlink(missing_ok=True)
            if folder.is_dir() and not os.listdir(folder):  # else somebody keeps something in it
                folder.rmdir()

    def _load(self, checkpoint: Path) -> None:
        """Go back to a checkpoint of the same stage.

        Raises:
            ValueError: its files are damaged or belong to other settings.
        """
        told = counters(checkpoint)
        path = checkpoint / f"{STATE}.safetensors"
        tensors = load_tensors(path)
        for name, learner in self.learners.items():
            head = f"{name}/"
            mine = {key.removeprefix(head): t for key, t in tensors.items() if key.startswith(head)}
            learner.load(mine, where=str(path))
            learner.updates = told["updates"][name]
        for name in self.average.modules:
            file = checkpoint / f"{name}.safetensors"
            self.average.load(name, load_tensors(file), where=str(file))
        self.step, self.seconds = told["step"], told["seconds"]
        self.means.state = {name: list(pair) for name, pair in told["means"].items()}
        self.soundness.state = told.get("astray", {})
        self.written = [name for name in told["written"] if (checkpoint.parent / name).is_dir()]


def _provenance(job: Job, look: dict[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {
        "data": Path(job.experiment.data.dir).expanduser().resolve().name,
        "clips": job.train.windows,
        "batch": job.settings.batch,
        "seed": job.settings.seed,
        "licence": "not stated",
    }
    if job.experiment.source:
        facts["settings from"] = job.experiment.source
    if look:
        facts["appearance"] = look
    return facts
