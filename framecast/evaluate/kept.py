# SPDX-License-Identifier: Apache-2.0
"""Samples that are drawn once and kept without loss, window by window.

A stopped evaluation goes on where it was, several processes draw into one folder, and anybody can judge the same
samples again. A file is taken only for the frames it answered: a digest of what was known stands in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.data.array_file import write_array
from framecast.data.files import new_file
from framecast.evaluate.samples import CHUNK, Computed, Made, one_of
from framecast.evaluate.terms import Case, Protocol
from framecast.experiment import to_plain
from framecast.video import Clip

_log = logging.getLogger(__name__)
# of a protocol: words, and which figures are made of samples; nothing that these depend on
_BESIDES = ("about", "assumed", "is_not", "published", "source", "metrics")

ABOUT = "samples.json"  # in the folder: whose samples they are


def file_of(window: str) -> str:
    """The file of a window's samples, whatever folders the window's name has in it."""
    return f"{window.replace('/', '~')}.npz"


def chunk_file(number: int) -> str:
    """The file of so many clips drawn from nothing."""
    return f"chunk_{number:05d}.npz"


def identity(rules: Protocol, computed: Computed) -> dict[str, Any]:
    """What samples in one folder must share: the protocol's settings and how they are drawn."""
    settings = {key: value for key, value in asdict(rules).items() if key not in _BESIDES}
    told = {"protocol": settings, "model": computed.record, "video": to_plain(computed.model.video)}
    return json.loads(json.dumps(to_plain(told)))  # as it is read back


class Kept:
    """Draws from a model what is not kept yet, and keeps it.

    Args:
        computed: draws.
        folder: one .npz per window, and `samples.json`, which says whose they are.
        identity: plain values that samples of one folder must share.

    Raises:
        ValueError: the folder holds samples of something else.
    """

    def __init__(self, computed: Computed, folder: Path, identity: Mapping[str, Any]):
        self.computed, self.folder = computed, folder
        self.name, self.record, self.most = computed.name, computed.record, computed.most
        self._chunk: tuple[Path, Made] | None = None  # the last one read or drawn
        about = folder / ABOUT
        if about.exists():
            check(about, identity)
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and says nothing of whose samples it holds: choose another --out.")
        else:
            with new_file(about) as temporary:
                temporary.write_text(json.dumps(dict(identity), indent=2) + "\n", encoding="utf-8")

    def samples(self, case: Case, window: str, clip: Clip | None, count: int) -> Made:
        if self.computed.task == "generate":
            return one_of(self._generated(case, int(window) // CHUNK), int(window))
        assert clip is not None
        path, given = self.path(case, window), _digest(clip, case)
        if (kept := _read(path, given, clip.frames.shape)) is not None and len(kept.video) >= count:
            return Made(kept.video[:count], kept.seconds * count / len(kept.video), clip.value_range)
        made = self.computed.samples(case, window, clip, count)
        self._keep(path, made, fps=clip.fps, given=given)
        return made

    def reconstructed(self, clip: Clip) -> Tensor | None:
        return self.computed.reconstructed(clip)

    def path(self, case: Case, window: str) -> Path:
        """Where the samples of a window are kept."""
        return self.folder / case.slug / file_of(window)

    def _generated(self, case: Case, number: int) -> Made:
        path = self.folder / case.slug / chunk_file(number)
        if self._chunk is not None and self._chunk[0] == path:
            return self._chunk[1]
        spec = self.computed.model.video
        made = _read(path, "", (case.frames, spec.channels, spec.height, spec.width))
        if made is None:
            made = self.computed.generated(case, number)
            self._keep(path, made, fps=spec.fps, given="")
        self._chunk = path, made
        return made

    def _keep(self, path: Path, made: Made, *, fps: float | None, given: str) -> None:
        told = {**self.record, "seconds": round(made.seconds, 3), "given": given}
        write_array(path, made.video, fps=fps, value_range=made.value_range, generated_by=told, overwrite=True)


def begun(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds samples of just this evaluation."""
    try:
        check(folder / ABOUT, identity)
    except (ValueError, OSError):
        return False
    return True


def told(about: Path) -> dict[str, Any]:
    """What a folder of samples says of itself.

    Raises:
        ValueError: the file is no such description.
    """
    try:
        values = json.loads(about.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("model", {}), dict):
        raise ValueError(f"{about} does not say whose samples lie beside it: it is damaged, or of another program.")
    return values


def check(about: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder whose samples are of another evaluation.

    Raises:
        ValueError: they are; the first setting that differs is named.
    """
    there = told(about)
    if isinstance(rules := there.get("protocol"), dict):
        there["protocol"] = {key: value for key, value in rules.items() if key not in _BESIDES}
    differs = next(_differences(there, dict(identity)), None)
    if differs is not None:
        raise ValueError(
            f"{about.parent} holds samples of another evaluation ({differs}): choose another --out, or repeat the "
            "command that began it."
        )


def _differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(key), b.get(key), f"{where}.{key}" if where else str(key))
    elif a != b:
        yield f"{where}: {a} there, {b} here"


def _digest(clip: Clip, case: Case) -> str:
    """Of the frames that a window gives; a codec is given them all."""
    given = clip.frames[list(case.known)] if case.known else clip.frames
    return hashlib.sha256(given.contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path, given: str, shape: tuple[int, ...]) -> Made | None:
    """What an earlier evaluation kept; nothing where there is nothing for these frames, or what cannot be read."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as entries:
            about = json.loads(str(entries["generated_by"]))
            span = tuple(entries["value_range"].tolist()) if "value_range" in entries.files else (0.0, 255.0)
            made = Made(torch.from_numpy(entries["frames"]), float(about.get("seconds", 0.0)), span)
    except Exception as error:  # a spoiled archive fails in the words of any module it passes through
        _log.warning("%s cannot be read and is drawn again (%s).", path, error)
        return None
    if about.get("given") != given or tuple(made.video.shape[1:]) != tuple(shape):
        _log.warning("%s answers other frames and is drawn again.", path)
        return None
    return made
