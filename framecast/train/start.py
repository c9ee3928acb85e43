# SPDX-License-Identifier: Apache-2.0
"""Training in one call from Python, `framecast.train("ramvid/vortex16", "my_videos/", max_steps=20_000)`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.systems import entry, preset, resolve
from framecast.train.plan import stage_settings
from framecast.train.run import Progress, Trained, run

if TYPE_CHECKING:
    from framecast import Videos
    from framecast.experiment import Experiment


def start(
    what: str | Experiment,
    data: str | Path | Videos | None = None,
    *,
    max_steps: int | None = None,
    batch: int | None = None,
    stage: str | None = None,
    from_model: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    progress: Progress | None = None,
) -> Trained:
    """Train a system, or one stage of it; what `framecast.train(…)` does.

    Args:
        what: a system (`ramvid`: its defaults), a preset (`ramvid/vortex16`), or an experiment of your own.
        data: a folder of clips, or `framecast.videos(…)`; None: what the experiment says.
        max_steps: optimiser steps; None: what the experiment says.
        batch: clips per step over all devices; None: what the experiment says.
        stage: which part; None: the system's first.
        from_model: model with the parts that this stage needs.
        out: run folder, new or empty; None: a fresh one under runs/.
        device: `auto`, `cpu`, `cuda`, `mps`.
        devices: how many of them.
        progress: told what happens, see `framecast.train.Progress`.

    Returns:
        Where the result is; `.model` loads it.

    Raises:
        ValueError: settings or data that cannot be trained with.
    """
    experiment: Any = what
    if isinstance(what, str):
        experiment = preset(what) if "/" in what else resolve(entry(what).experiment)()
    name, settings = stage_settings(experiment, stage)
    changes: dict[str, Any] = {
        "max_steps": max_steps,
        "batch": batch,
        "clip_frames": getattr(data, "clip_frames", None),
    }
    settings = dataclasses.replace(settings, **{key: value for key, value in changes.items() if value is not None})
    cut = experiment.data
    if isinstance(data, (str, Path)):
        cut = dataclasses.replace(cut, dir=str(data))
    elif data is not None:
        cut = data.data
    stages = dataclasses.replace(experiment.stages, **{name: settings})
    return run(
        dataclasses.replace(experiment, data=cut, stages=stages),
        stage=name,
        out=out,
        from_model=from_model,
        device=device,
        devices=devices,
        progress=progress,
    )
