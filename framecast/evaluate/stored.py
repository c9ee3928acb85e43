# SPDX-License-Identifier: Apache-2.0
"""Samples that lie in a folder: judged as they are, whoever drew them.

One file per window, in the order of the windows by file name (numbers count as numbers): an array (S, T, C, H, W), or
(T, C, H, W) for one sample; or one array file (N, T, H, W, C) or (N, T, C, H, W) for all. Videos have lost something on
their way into a file and are taken only when asked for.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.data.array_file import SUFFIXES
from framecast.data.clip_file import read_clip
from framecast.data.files import BadClip
from framecast.evaluate.samples import Made, file_of
from framecast.evaluate.terms import Case
from framecast.video import Clip


def holds_samples(path: Path) -> bool:
    """Whether a path is something to read samples from: an array file, or a folder that holds files but no model."""
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    return (
        path.is_dir() and not (path / "config.json").exists() and (path / "samples.json").exists() | bool(_files(path))
    )


class Stored:
    """Samples from files.

    Args:
        path: a folder, or one array file. For a protocol of several cases, a folder with a folder per case.
        windows: names of the windows of each case, in order.
        lossy: take videos, too.

    Raises:
        ValueError: not as many files as windows, or videos where none were allowed; no later than the first sample.
    """

    def __init__(self, path: Path, windows: dict[str, Sequence[str]], *, lossy: bool = False):
        self.path, self.lossy = path, lossy
        self.name = path.stem if path.is_file() else path.resolve().name
        self.record: dict[str, Any] = {"name": self.name, "stored": str(path), "lossy": False}
        self.most = sys.maxsize
        self.shifted = 0.0  # most that known frames of the samples differ from the clips', in 8-bit levels
        self._whole = _all_in_one(path) if path.is_file() else None
        self._places = {slug: self._placed(slug, names, len(windows)) for slug, names in windows.items()}
        about = path / "samples.json"
        if about.exists():
            told = json.loads(about.read_text(encoding="utf-8"))
            self.name = str(told.get("model", {}).get("name", self.name))
            self.record |= told.get("model", {})

    def _placed(self, slug: str, names: Sequence[str], cases: int) -> dict[str, Path | int]:
        if self._whole is not None:
            self._match(len(self._whole), len(names), "clips")
            return {name: i for i, name in enumerate(names)}
        folder = self.path / slug if (self.path / slug).is_dir() else self.path
        if (self.path / "samples.json").exists():  # kept by an evaluation, by name
            return {name: folder / file_of(name) for name in names}
        if cases > 1 and folder == self.path:
            raise ValueError(f"{self.path} has no folder {slug}: the protocol has {cases} cases, give each its folder.")
        files = _files(folder)
        self._match(len(files), len(names), "files")
        videos = [file for file in files if file.suffix.lower() not in SUFFIXES]
        if videos and not self.lossy:
            raise ValueError(
                f"{videos[0]} is a video, and videos lose detail that metrics see: store samples as .npz, or allow "
                "them with --lossy, which the result will tell."
            )
        self.record["lossy"] = bool(videos)
        return dict(zip(names, files))

    def _match(self, found: int, windows: int, what: str) -> None:
        if found < windows:
            raise ValueError(
                f"{self.path} holds {found} {what}, the protocol asks for {windows} windows: store one per window, in "
                f"their order, or judge the first with --windows {found}."
            )

    def samples(self, case: Case, window: str, clip: Clip | None, count: int) -> Made:
        """As stored; at most `count`.

        Raises:
            ValueError: they do not fit the window, or hold values that are not numbers.
        """
        assert clip is not None
        place = self._places[case.slug][window]
        if isinstance(place, int):
            assert self._whole is not None
            where, video = f"{self.path}, clip {place}", torch.from_numpy(self._whole[place])[None]
        else:
            where, video = str(place), self._read(place)
        return Made(self._fitting(video, case, clip, where)[:count], 0.0, clip.value_range)

    def reconstructed(self, clip: Clip) -> Tensor | None:
        return None

    def _read(self, path: Path) -> Tensor:
        if not path.exists():
            raise ValueError(f"{path} is not there: the window it stands for was never drawn.")
        if path.suffix.lower() == ".npz":
            try:
                with np.load(path, allow_pickle=False) as entries:
                    frames = entries["frames"] if "frames" in entries.files else entries[entries.files[0]]
            except Exception as error:  # a spoiled archive fails in the words of any module it passes through
                raise ValueError(f"{path} is not a readable array ({error}).") from None
            if frames.ndim == 5:
                return torch.from_numpy(frames)
        try:
            return read_clip(path).frames[None]
        except BadClip as error:
            raise ValueError(str(error)) from None

    def _fitting(self, video: Tensor, case: Case, clip: Clip, where: str) -> Tensor:
        """The samples in the clip's dtype, with all frames of the window."""
        unknown = [i for i in range(case.frames) if i not in case.known]
        size = tuple(clip.frames.shape[1:])
        if video.ndim == 5 and tuple(video.shape[2:]) != size and (video.shape[4], *video.shape[2:4]) == size:
            video = video.permute(0, 1, 4, 2, 3)
        if video.ndim != 5 or tuple(video.shape[2:]) != size or video.shape[1] not in (case.frames, len(unknown)):
            raise ValueError(
                f"{where}: samples of shape {tuple(video.shape)}, a window is {case.frames} frames of {size} "
                f"({len(unknown)} of them unknown): store (samples, frames, channels, height, width)."
            )
        if video.is_floating_point() and not bool(torch.isfinite(video).all()):
            raise ValueError(f"{where} holds values that are not numbers (nan or infinity).")
        if video.dtype != clip.frames.dtype:
            raise ValueError(
                f"{where}: samples are {video.dtype}, the clips are {clip.frames.dtype}: store them alike."
            )
        if video.shape[1] == case.frames:
            self._compare_known(video, case, clip)
            return video
        whole = clip.frames.expand(len(video), -1, -1, -1, -1).clone()
        whole[:, unknown] = video
        return whole

    def _compare_known(self, video: Tensor, case: Case, clip: Clip) -> None:
        if case.known and clip.value_range:
            known = list(case.known)
            low, high = clip.value_range
            gap = (video[:, known].double() - clip.frames[known].double()).abs().max().item() * 255 / (high - low)
            self.shifted = max(self.shifted, gap)


def _all_in_one(path: Path) -> np.ndarray:
    """All clips of one array file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        array = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
    except Exception as error:
        raise ValueError(f"{path} is not a readable array ({error}).") from None
    if array.ndim != 5:
        raise ValueError(f"{path}: the array has shape {array.shape}, expected all clips as (N, T, H, W, C).")
    return array


def _files(folder: Path) -> list[Path]:
    """Files of a folder by name, numbers in it as numbers."""
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    found = [
        path for path in found if path.suffix.lower() in SUFFIXES | {".mp4", ".avi", ".webm", ".mkv", ".gif", ".webp"}
    ]
    return sorted(found, key=lambda path: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", path.name)])
