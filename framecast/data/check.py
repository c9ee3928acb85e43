# SPDX-License-Identifier: Apache-2.0
"""What is in a folder of clips and what is wrong with it, before hours are spent on training from it.

Looks at the header of every clip, at a few frames spread over each, and at the content of clips of equal size.
Also picks the clips that `data show` lays out: training clips exactly as the model will see them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from framecast.assets import sha256
from framecast.data.clips import ClipStream, Window
from framecast.data.fitted import FittedFrames
from framecast.data.folder import Listed, Progress, index_folder
from framecast.data.windows import Plan, Rejected, count, plan, reason
from framecast.experiment import DataConfig, to_plain

_PROMISED = 0.02  # share of the promised frames whose absence is still put down to a careless header
_STILL = 0.04  # of the value range: a clip none of whose fitted pixels changes by more has no motion
_NARROW = 0.05  # of the value range: a clip that spans less of it is blank, or in other units
_SLACK = 0.01  # of the value range: as far as values may leave it, see `to_video`
_SHOWN = 10  # entries of a list that are spelt out for people


@dataclass(frozen=True)
class Named:
    """A sentence about one file."""

    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `check_folder` found."""

    folder: str
    files: int
    frames: int  # of all readable files
    broken: tuple[Named, ...]  # cannot be opened or read
    refused: tuple[Named, ...]  # too short, or of other channels
    suspicious: tuple[Named, ...]  # readable, but the values look wrong or frames seem missing
    still: tuple[str, ...]  # nothing moves
    duplicates: tuple[tuple[str, ...], ...]  # groups of files with equal content
    rates: dict[str, int]  # frames per second -> readable files
    sizes: dict[str, int]  # height x width -> readable files
    train: tuple[int, int]  # files, windows
    validation: tuple[int, int]
    borrowed: bool  # validation uses the training clips
    refusal: str | None  # why training would refuse this folder under these settings
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether training would start and every file can be read."""
        return self.refusal is None and not self.broken

    def plain(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return {**to_plain(self), "sound": self.sound}

    def lines(self) -> list[str]:
        """The report for people, long lists shortened."""
        held = "the same, borrowed" if self.borrowed else _windows(self.validation)
        return [
            f"{self.folder}: {count(self.files, 'clip')}, {self.frames:,} frames.",
            f"fps: {_histogram(self.rates)}",
            f"height × width: {_histogram(self.sizes)}",
            f"training: {_windows(self.train)}; validation: {held}.",
            *_list("cannot be read", [f"{n.path}: {n.reason}" for n in self.broken]),
            *_list("refused", [f"{n.path}: {n.reason}" for n in self.refused]),
            *_list("suspicious", [f"{n.path}: {n.reason}" for n in self.suspicious]),
            *_list("without motion", self.still),
            *_list("with the same content as another", [" = ".join(group) for group in self.duplicates]),
            *(f"note: {note}" for note in self.notes),
            *([self.refusal] if self.refusal else []),
        ]


@dataclass(frozen=True)
class Shown:
    """A training clip as the model sees it, and where it comes from."""

    window: Window
    video: Tensor  # (T, C, H, W) in -1 to 1
    valid: Tensor  # (T,), False on padding


def check_folder(
    config: DataConfig,
    *,
    clip_frames: int,
    min_frames: int | None = None,
    probes: int = 8,
    progress: Progress | None = None,
) -> Report:
    """Look through the folder `config.dir`.

    Args:
        config: folder, cutting and reading.
        clip_frames: frames of a training clip.
        min_frames: shortest clip that is padded; None: clip_frames.
        probes: frames looked at in every clip, the first and the last among them; damage between them goes unseen.
        progress: called with (done, to do) in two passes, opening files and looking at their frames.

    Raises:
        ValueError: no such folder, no clip in it, or settings out of range.
    """
    root = Path(config.dir).expanduser()
    listed = index_folder(root, value_range=config.value_range, progress=progress)
    cut, refusal = _plan(listed, config, clip_frames, clip_frames if min_frames is None else min_frames)
    rejected = {r.path: r for r in cut.rejected} if cut else {}
    looked = [file for file in listed if file.problem is None and _kind(rejected.get(file.path)) != "channels"]
    looks = _in_threads(lambda file: _probe(root, file, config, probes), looked, progress)
    broken = [Named(f.path, reason(f.path, f.problem)) for f in listed if f.problem is not None]
    broken += [Named(file.path, probe) for file, probe in zip(looked, looks) if isinstance(probe, str)]
    seen = [(file, probe) for file, probe in zip(looked, looks) if isinstance(probe, _Probe)]
    readable = [file for file in listed if file.problem is None]
    return Report(
        folder=config.dir,
        files=len(listed),
        frames=sum(file.frames for file in readable),
        broken=tuple(broken),
        refused=tuple(Named(r.path, r.reason) for r in rejected.values() if r.kind != "unreadable"),
        suspicious=tuple(Named(file.path, why) for file, probe in seen if (why := _suspicion(file, probe))),
        still=tuple(file.path for file, probe in seen if probe.change <= _STILL and file.frames > 1),
        duplicates=_duplicates(root, readable),
        rates=_counted("none" if file.fps is None else f"{file.fps:.4g}" for file in readable),
        sizes=_counted(f"{file.height} × {file.width}" for file in readable),
        train=_total(cut.train) if cut else (0, 0),
        validation=_total(cut.validation) if cut and not cut.borrowed else (0, 0),
        borrowed=cut is not None and cut.borrowed,
        refusal=refusal,
        notes=cut.notes if cut and refusal is None else (),
    )


def pick(stream: ClipStream, n: int) -> list[Shown]:
    """The first n clips that training will see, cropped, mirrored and padded as it will see them."""
    return [Shown(stream.window(p), *stream.clip(p)) for p in range(n)]


def _plan(
    listed: Sequence[Listed], config: DataConfig, clip_frames: int, min_frames: int
) -> tuple[Plan | None, str | None]:
    """What the settings give, and why training would refuse; unlike rates still tell how many windows there are."""
    refusal = None
    for tried in (config, replace(config, allow_mixed_fps=True)):
        try:
            return plan(listed, tried, clip_frames=clip_frames, min_frames=min_frames), refusal
        except ValueError as error:
            refusal = refusal or str(error)
    return None, refusal


@dataclass(frozen=True)
class _Probe:
    """A few frames of a file, as the model would see them."""

    low: float  # least value, in the file's units
    high: float
    change: float  # greatest change of a pixel between neighbouring looked-at frames, as a share of the value range


def _probe(root: Path, file: Listed, config: DataConfig, probes: int) -> _Probe | str:
    """What a few frames tell, or why they cannot be read."""
    chosen = np.unique(np.linspace(0, file.frames - 1, max(2, probes)).round().astype(np.int64))
    try:
        frames = FittedFrames(root, replace(config, cache="none")).read(file, chosen, used=chosen).float()
    except (ValueError, OSError) as error:
        return reason(file.path, str(error))
    low, high = file.span
    change = (frames[1:] - frames[:-1]).abs().max().item() / (high - low) if len(frames) > 1 else 0.0
    return _Probe(frames.min().item(), frames.max().item(), change)


def _suspicion(file: Listed, probe: _Probe) -> str:
    """A sentence where the values look wrong for the range they are declared to have, or frames are missing."""
    low, high = file.span
    spans = f"values span {probe.low:.4g} to {probe.high:.4g}"
    if probe.low < low - _SLACK * (high - low) or probe.high > high + _SLACK * (high - low):
        return f"{spans}, outside the declared range {low:g} to {high:g}; set data.value_range to what the files hold."
    if probe.high - probe.low < _NARROW * (high - low):
        todo = "set data.value_range" if file.value_range is not None else "check how the file was written"
        return f"{spans} of a range {low:g} to {high:g}: blank, or in other units; {todo}."
    if file.promised - file.frames > max(2, _PROMISED * file.promised):
        return f"has {count(file.frames, 'frame')} and its header promises {file.promised}: it was probably cut short."
    return ""


def _duplicates(root: Path, files: Iterable[Listed]) -> tuple[tuple[str, ...], ...]:
    """Groups of files with the same content; only files of equal size and length are read for it."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for file in files:
        alike.setdefault((file.size_bytes, file.frames, file.height, file.width), []).append(file.path)
    same: dict[str, list[str]] = {}
    for path in (path for group in alike.values() if len(group) > 1 for path in group):
        same.setdefault(_digest(root / path), []).append(path)
    return tuple(sorted(tuple(sorted(group)) for group in same.values() if len(group) > 1))


def _digest(path: Path) -> str:
    """Of a file's content; of a folder's files' contents in order of their names."""
    if not path.is_dir():
        return sha256(path)
    inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    return hashlib.sha256("".join(sha256(p) for p in inside).encode()).hexdigest()


def _in_threads(work: Callable[[Listed], Any], items: Sequence[Listed], progress: Progress | None) -> list[Any]:
    """`work` on every item, in order; decoding leaves the interpreter free for other threads."""
    done = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(work, items):
            done.append(result)
            if progress is not None:
                progress(len(done), len(items))
    return done


def _kind(rejected: Rejected | None) -> str:
    return "" if rejected is None else rejected.kind


def _total(parts: Sequence[Any]) -> tuple[int, int]:
    return len(parts), sum(part.windows for part in parts)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _histogram(counts: dict[str, int]) -> str:
    return ", ".join(f"{value}: {count(files, 'file')}" for value, files in list(counts.items())[:_SHOWN]) or "none"


def _windows(total: tuple[int, int]) -> str:
    return f"{count(total[1], 'window')} in {count(total[0], 'file')}"


def _list(what: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    shown = [f"  {entry}" for entry in entries[:_SHOWN]]
    more = [f"  … and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return [f"{len(entries)} {what}:", *shown, *more]
