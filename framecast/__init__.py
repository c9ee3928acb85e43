# SPDX-License-Identifier: Apache-2.0
"""framecast: given some frames of a clip, draw the others.

    model = framecast.load("vortex-ramvid")
    clip = framecast.read("flow.mp4", like=model)
    future = model.predict(clip[:4], horizon=16, samples=3, seed=0)
    future.save("out")

Names are loaded when they are first used, so that `import framecast` takes milliseconds.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from framecast.experiment import DataConfig

if TYPE_CHECKING:
    from framecast.generate import Model
    from framecast.video import Clip

__version__ = "0.1.0"
_log = logging.getLogger(__name__)

# name -> module:name that it stands for, or the module itself
_HOMES = {
    "Clip": "framecast.video:Clip",
    "Forecast": "framecast.forecast:Forecast",
    "Model": "framecast.generate:Model",
    "Reconstruction": "framecast.reconstruction:Reconstruction",
    "Score": "framecast.score:Score",
    "Task": "framecast.task:Task",
    "UnsupportedTask": "framecast.task:UnsupportedTask",
    "VideoSpec": "framecast.experiment:VideoSpec",
    "complete": "framecast.generate:complete",
    "draws": "framecast.draws:draws",
    "evaluate": "framecast.evaluate",  # the package can be called
    "preset": "framecast.systems:preset",
    "samplers": "framecast.diffusion.sampling",
    "stream": "framecast.generate:stream",
    "train": "framecast.train",  # the package can be called
}

__all__ = ["Videos", "load", "read", "videos", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"framecast has no {name!r}; it has: {', '.join(sorted(__all__))}.")
    module, _, inside = _HOMES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, inside) if inside else found


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def load(source: str | Path, *, device: str = "auto", verb: str | None = None) -> Model:
    """A trained model, ready to draw, or a simple forecast in place of one.

    Args:
        source: name of a bundled model or of a simple forecast (`persistence`, …, the keys of
            `framecast.evaluate.baselines.BASELINES`), a model folder, a run folder (its newest checkpoint) or a hub
            id. The bare name of a simple forecast always means it; write a folder so called as `./persistence`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        verb: what it is wanted for, where that is one thing: to `reconstruct`, only its codec need be trained; every
            other verb takes all parts.

    Raises:
        ValueError: no model there, a part not trained yet, or damaged files.
    """
    from framecast.checkpoint import NoModel, describe, load_system, untrained
    from framecast.devices import pick_device
    from framecast.evaluate.baselines import BASELINES, baseline
    from framecast.generate import Model

    if isinstance(source, str) and source in BASELINES:
        return baseline(source, pick_device(device))
    try:
        info = describe(source)
    except NoModel as error:
        raise NoModel(error.wanted, [*error.known, *BASELINES]) from None
    coded = verb == "reconstruct"
    system = load_system(source, pick_device(device), require=() if coded else None)
    lacks = {part: untrained(info, part) for part in info.missing}
    model = Model(system, name=info.name, digest=info.digest, provenance=info.provenance, untrained=lacks)
    if coded:
        _ = model.codec  # refused here where there is none, or none that is trained
    return model


def read(
    path: str | Path,
    *,
    like: Model | None = None,
    colour: Literal["keep", "gray", "rgb"] = "keep",
    start: int = 0,
    frames: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> Clip:
    """A clip from a video, an animation, a folder of images or an array.

    Args:
        path: the file or folder.
        like: fit it to this model: frame rate by time stamp, short side and centre crop; None: as stored.
        colour: `gray` or `rgb` change the channels for the model; nothing else does.
        start: first frame, at the model's rate.
        frames: how many; None: all that follow.
        value_range: of float arrays, the values that stand for darkest and brightest.

    Raises:
        ValueError: unreadable, too short, or with other channels than the model's.

    What was changed is logged (logger `framecast`, level info), and a warning where the clip does not look like those
    that the model was trained on.
    """
    if like is None:
        from framecast.data.clip_file import read_clip

        return read_clip(path, start=start, frames=frames, value_range=value_range)
    from framecast.data.fit import read_fitted

    how = {"colour": colour, "start": start, "frames": frames, "value_range": value_range}
    clip, notes = read_fitted(path, like.video, **how)  # type: ignore[arg-type]
    for note in notes:
        _log.info("%s: %s", path, note)
    if doubt := like.unlike(clip):
        _log.warning("%s: %s", path, doubt)
    return clip


@dataclass(frozen=True, kw_only=True)
class Videos:
    """A folder of clips to train on, and how they are cut."""

    data: DataConfig
    clip_frames: int | None  # None: what the experiment says


def videos(
    dir: str | Path,
    *,
    clip_frames: int | None = None,
    fps: float | None = None,
    size: int | tuple[int, int] = 64,
    channels: int = 3,
    stride: int = 1,
    value_range: tuple[float, float] | None = None,
) -> Videos:
    """A folder of clips for `framecast.train`; nothing is opened yet.

    Args:
        dir: searched recursively for videos, folders of frames and arrays.
        clip_frames: frames of a training clip; None: the experiment's own.
        fps: read at this rate by time stamp; None: as stored.
        size: side, or height and width, in pixels.
        channels: 1 grey, 3 RGB, others for arrays that have them.
        stride: source frames per clip frame.
        value_range: of float arrays.
    """
    data = DataConfig(dir=str(dir), fps=fps, size=size, channels=channels, stride=stride, value_range=value_range)
    return Videos(data=data, clip_frames=clip_frames)
