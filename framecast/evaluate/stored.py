# SPDX-License-Identifier: Apache-2.0
"""Samples that lie in a folder: judged as they are, whoever drew them.

One file per window, in the order of the windows by file name (numbers count as numbers): an array (S, T, C, H, W), or
(T, C, H, W) for one sample; or one array file (N, T, H, W, C) or (N, T, C, H, W) for all. What an evaluation has kept
is read by name. Videos have lost something on their way into a file and are taken only when asked for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.data.array_file import SUFFIXES
from framecast.data.clip_file import looks_like_clip, read_clip
from framecast.data.files import BadClip
from framecast.evaluate.kept import ABOUT, chunk_file, file_of, told
from framecast.evaluate.samples import CHUNK, Made
from framecast.evaluate.terms import Case, Protocol
from framecast.video import Clip


def samples_in(path: Path) -> Path | None:
    """Where samples are to be read from: an array file, or a folder that holds some but no model; else None."""
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    if not path.is_dir() or (path / "config.json").exists() or (path / "checkpoints").exists():
        return None
    if (path / "samples" / ABOUT).exists():  # what `evaluate` wrote
        return path / "samples"
    inside = [folder for folder in path.iterdir() if folder.is_dir()]
    found = (path / ABOUT).exists() or _files(path) or any(_files(folder) for folder in inside)
    return path if found else None


@dataclass(frozen=True)
class _Place:
    """Where the samples of a window lie."""

    path: Path
    row: int | None = None  # of an array that holds many windows

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path}, clip {self.row}"


class Stored:
    """Samples from files.

    Args:
        path: a folder, or one array file; for a protocol of several cases, a folder with a folder per case.
        rules: the protocol.
        windows: names of the windows of each case, by its slug: for every window that may be asked for, in order.
        enough: how many of these must be there; more files than these are taken to be the next windows.
        lossy: take videos, too.
        value_range: of float arrays that do not say it: what stands for darkest and brightest.

    Raises:
        ValueError: files that do not match the windows, or videos where none were allowed.
    """

    def __init__(
        self,
        path: Path,
        rules: Protocol,
        windows: dict[str, Sequence[str]],
        *,
        enough: int,
        lossy: bool = False,
        value_range: tuple[float, float] | None = None,
    ):
        self.path, self.rules, self.lossy, self.value_range = path, rules, lossy, value_range
        self.name = path.stem if path.is_file() else path.resolve().name
        self.record: dict[str, Any] = {"name": self.name}
        self.most = sys.maxsize
        self.shifted = 0.0  # most that known frames of the samples differ from the clips', in 8-bit levels
        self._kept = (path / ABOUT).exists()
        if self._kept:
            self.record |= told(path / ABOUT).get("model", {})
            self.name = str(self.record["name"])
        self.record |= {"stored": str(path), "lossy": False}
        self._whole = _all_in_one(path) if path.is_file() else None
        found = {slug: self._placed(slug, names, enough, len(windows)) for slug, names in windows.items()}
        self._places = found
        self.windows = min(map(len, found.values()))  # of each case, for which there are samples

    def _placed(self, slug: str, names: Sequence[str], enough: int, cases: int) -> dict[str, _Place]:
        if self._whole is not None:
            places = [_Place(self.path, row) for row in range(len(self._whole[0]))]
            return self._matched(places, names, enough, "clips")
        folder = self.path / slug if (self.path / slug).is_dir() else self.path
        if self._kept:
            places = [_Place(folder / file_of(name)) for name in names]
            if self.rules.task == "generate":
                places = [_Place(folder / chunk_file(i // CHUNK), i % CHUNK) for i in range(len(names))]
            there = list(takewhile(lambda place: place.path.exists(), places))
            return self._matched(there, names, enough, "windows")
        if cases > 1 and folder == self.path:
            raise ValueError(f"{self.path} has no folder {slug}: the protocol has {cases} cases, give each its folder.")
        files = _files(folder)
        videos = [file for file in files if file.suffix.lower() not in SUFFIXES]
        if videos and not self.lossy:
            raise ValueError(
                f"{videos[0]} is a video, and videos lose detail that metrics see: store samples as .npz, or allow "
                "them with --lossy, which the result will tell."
            )
        self.record["lossy"] = bool(videos)
        return self._matched([_Place(file) for file in files], names, enough, "files")

    def _matched(self, places: list[_Place], names: Sequence[str], enough: int, what: str) -> dict[str, _Place]:
        if not places:
            raise ValueError(f"{self.path} holds no samples of the protocol's windows: were they drawn for another?")
        if len(places) < enough:
            raise ValueError(
                f"{self.path} holds {len(places)} {what}, the protocol asks for {enough} windows: store one per "
                f"window, in their order, or judge the first with --windows {len(places)}."
            )
        if len(places) > len(names) and self.rules.task != "generate":
            raise ValueError(
                f"{self.path} holds {len(places)} {what} for {len(names)} windows: which belongs to which is not "
                "clear, so store one per window, in their order, and nothing else."
            )
        return dict(zip(names, places))

    def samples(self, case: Case, window: str, clip: Clip | None, count: int) -> Made:
        """As stored; at most `count`.

        Raises:
            ValueError: they do not fit the window, or hold values that are not numbers.
        """
        place = self._places[case.slug].get(window)
        if place is None:
            raise ValueError(f"{self.path} holds nothing for window {window}: it was never drawn.")
        video, span = self._read(place)
        if clip is None:
            return Made(self._free(video, case, place)[:1], 0.0, span)
        if place.path.suffix.lower() not in SUFFIXES and clip.frames.shape[1] == 1:  # videos are stored in colour
            video = video.float().mean(2, keepdim=True).round().to(torch.uint8)
        made = self._fitting(_in_units(_finite(video, place), span, clip), case, clip, place)
        return Made(made[:count], 0.0, clip.value_range)

    def reconstructed(self, clip: Clip) -> Tensor | None:
        return None

    def _read(self, place: _Place) -> tuple[Tensor, tuple[float, float]]:
        """Samples (S, T, …) and what their values span."""
        if self._whole is not None and place.row is not None:
            return self._spanned(self._whole[0][place.row][None], self._whole[1], place)
        if place.path.suffix.lower() == ".npz":
            frames, span = _entries(place.path)
            if frames.ndim == 5:
                return self._spanned(frames if place.row is None else frames[place.row : place.row + 1], span, place)
        try:
            clip = read_clip(place.path, value_range=self.value_range)
        except BadClip as error:
            raise ValueError(str(error)) from None
        assert clip.value_range is not None
        return clip.frames[None], clip.value_range

    def _spanned(
        self, frames: np.ndarray, span: tuple[float, float] | None, place: _Place
    ) -> tuple[Tensor, tuple[float, float]]:
        if frames.dtype == np.uint8:
            return torch.from_numpy(frames), (0.0, 255.0)
        span = span or self.value_range
        if span is None:
            raise ValueError(
                f"{place}: {frames.dtype} values of unknown range: add an entry value_range to the .npz, pass "
                "--value-range LOW,HIGH, or store uint8."
            )
        return torch.from_numpy(np.asarray(frames, np.float32)), span

    def _free(self, video: Tensor, case: Case, place: _Place) -> Tensor:
        """Clips drawn from nothing: nothing to compare them with but their length."""
        if video.ndim == 5 and video.shape[2] not in (1, 3) and video.shape[4] in (1, 3):
            video = video.permute(0, 1, 4, 2, 3)
        if video.ndim != 5 or video.shape[1] != case.frames:
            raise ValueError(f"{place}: a clip of shape {tuple(video.shape)}, expected {case.frames} frames.")
        return _finite(video, place)

    def _fitting(self, video: Tensor, case: Case, clip: Clip, place: _Place) -> Tensor:
        """The samples in the clip's dtype, with all frames of the window."""
        unknown, size = list(case.unknown), tuple(clip.frames.shape[1:])
        if video.ndim == 5 and tuple(video.shape[2:]) != size and (video.shape[4], *video.shape[2:4]) == size:
            video = video.permute(0, 1, 4, 2, 3)
        if video.ndim != 5 or tuple(video.shape[2:]) != size or video.shape[1] not in (case.frames, len(unknown)):
            raise ValueError(
                f"{place}: samples of shape {tuple(video.shape)}, a window is {case.frames} frames of {size} "
                f"({len(unknown)} of them unknown): store (samples, frames, channels, height, width)."
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


def _in_units(video: Tensor, span: tuple[float, float], clip: Clip) -> Tensor:
    """Samples in the dtype and units of the clip they answer."""
    assert clip.value_range is not None
    if video.dtype == clip.frames.dtype and span == clip.value_range:
        return video
    (low, high), (darkest, brightest) = span, clip.value_range
    values = (video.double() - low) * ((brightest - darkest) / (high - low)) + darkest
    if clip.frames.dtype == torch.uint8:
        return values.clamp(0, 255).round().to(torch.uint8)
    return values.float()


def _finite(video: Tensor, place: _Place) -> Tensor:
    if video.is_floating_point() and not bool(torch.isfinite(video).all()):
        raise ValueError(f"{place} holds values that are not numbers (nan or infinity).")
    return video


def _entries(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The frames of an .npz and what their values span."""
    try:
        with np.load(path, allow_pickle=False) as entries:
            span = tuple(entries["value_range"].tolist()) if "value_range" in entries.files else None
            frames = entries["frames"] if "frames" in entries.files else entries[entries.files[0]]
    except Exception:  # a spoiled archive fails in the words of any module it passes through
        raise ValueError(f"{path} is not a readable array of numbers.") from None
    return frames, span


def _all_in_one(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    """All clips of one array file, and what their values span."""
    span = None
    if path.suffix.lower() == ".npz":
        array, span = _entries(path)
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except Exception:
            raise ValueError(f"{path} is not a readable array of numbers.") from None
    if array.ndim != 5:
        raise ValueError(f"{path}: the array has shape {array.shape}, expected all clips as (N, T, H, W, C).")
    return array, span


def _files(folder: Path) -> list[Path]:
    """Files of a folder by name, numbers in it as numbers."""
    found = [path for path in folder.iterdir() if path.is_file() and looks_like_clip(path) and path.name[0] != "."]
    return sorted(found, key=lambda path: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", path.name)])
