# SPDX-License-Identifier: Apache-2.0
"""Which training windows a folder's clips give: what is used, refused, held out, and what the user should know of it.

Each file is a sequence of frames (resampled to `fps` by time stamps). A window takes every `stride`-th frame of it;
windows start `spacing` frames apart, and the last possible start is always one of them. A file too short for a window
gives one padded clip where it has `min_frames`. All of this is arithmetic on the list of clips: no file is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, cast

import numpy as np

from framecast.data.clip_file import BadClip, ClipFile, frame_indices, same_rate
from framecast.data.folder import Listed
from framecast.draws import mix
from framecast.experiment import DataConfig, VideoSpec, size_of

_BORROWED = "validation and previews use the training clips."


@dataclass(frozen=True)
class Rejected:
    """A file that gives no clips."""

    path: str
    reason: str  # one sentence
    kind: Literal["unreadable", "channels", "short"]


@dataclass(frozen=True)
class Part:
    """What one file gives to one split: windows cut from a sequence of its frames."""

    listed: Listed
    frames: range | np.ndarray  # source frame at each step of the sequence
    windows: int


@dataclass(frozen=True)
class Plan:
    """What a folder gives under these settings."""

    config: DataConfig
    video: VideoSpec
    train: tuple[Part, ...]
    validation: tuple[Part, ...]  # the training parts where nothing is held out
    borrowed: bool  # whether it is so
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]  # sentences for the user


def plan(listed: Sequence[Listed], config: DataConfig, *, clip_frames: int, min_frames: int) -> Plan:
    """Cut and split the clips of a folder.

    A file is held out for validation if the hash of its relative path, as a number in [0, 1), is below
    `config.validation`: adding files moves no other file. At least one file trains. Of a single file, and of every file
    if `config.hold_out` is "ends", the last share of frames is held out if both sides then hold a window. Where nothing
    is held out validation borrows the training files, and a note says so.

    Args:
        listed: from `index_folder`.
        config: cutting and split.
        clip_frames: frames of a clip.
        min_frames: shortest clip that is padded.

    Raises:
        ValueError: settings out of range, no usable clip, or unlike frame rates.
    """
    _check(config, clip_frames, min_frames)
    seen = [_admit(file, config, clip_frames=clip_frames, min_frames=min_frames) for file in listed]
    parts = [part for part in seen if isinstance(part, Part)]
    rejected = [refused for refused in seen if isinstance(refused, Rejected)]
    if not parts:
        shown = list({r.reason: r for r in reversed(rejected)}.values())[-3:][::-1]  # first file with each reason
        reasons = "; ".join(f"{r.path}: {r.reason.rstrip('.')}" for r in shown)
        more = f"; and {len(rejected) - len(shown)} more" if len(rejected) > len(shown) else ""
        raise ValueError(f"{config.dir} holds {count(len(listed), 'clip')} and none can be used: {reasons}{more}.")
    if config.fps is None and not config.allow_mixed_fps:
        _one_rate(parts)
    train, held, split_note = _divide(parts, config, clip_frames)
    notes = [
        *_refusal_notes(rejected, len(listed), (min_frames - 1) * config.stride + 1, (min_frames, config.stride)),
        *_fitting_notes(parts, config),
        *_time_notes(parts, config, clip_frames),
        *_range_notes(parts),
        split_note,
    ]
    video = VideoSpec(
        channels=config.channels,
        height=size_of(config.size)[0],
        width=size_of(config.size)[1],
        clip_frames=clip_frames,
        fps=_rate(parts, config),
        value_range=Counter(part.listed.span for part in parts).most_common(1)[0][0],
    )
    return Plan(
        config, video, tuple(train), tuple(held or train), not held, tuple(rejected), tuple(filter(None, notes))
    )


def count(n: int, word: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def reason(path: str, sentence: str) -> str:
    """A sentence about a file without the file's name in front."""
    name = PurePosixPath(path).name
    before, colon, after = sentence.partition(": ")
    return after if colon and name and PurePosixPath(before.replace("\\", "/")).name == name else sentence


def held_out(path: str, share: float) -> bool:
    """Whether the file of this relative path is held out for validation."""
    return _place(path) < share


def _place(path: str) -> float:
    return mix("split", path) / 2**63


def _check(config: DataConfig, clip_frames: int, min_frames: int) -> None:
    """Refuse settings that mean nothing."""
    height, width = size_of(config.size)
    low, high = config.value_range or (0.0, 1.0)
    wrong = [
        (min(height, width) < 1, f"data.size is {config.size}; it must be at least 1 pixel."),
        (config.channels < 1, f"data.channels is {config.channels}; it must be at least 1."),
        (config.stride < 1, f"data.stride is {config.stride}; it must be at least 1."),
        (config.spacing < 1, f"data.spacing is {config.spacing}; it must be at least 1."),
        (config.workers < 0, f"data.workers is {config.workers}; it must be 0 or more."),
        (config.fps is not None and not config.fps > 0, f"data.fps is {config.fps}; it must be above 0, or null."),
        (not 0 <= config.validation < 1, f"data.validation is {config.validation}; it must be from 0 to below 1."),
        (low >= high, f"data.value_range is {low:g} to {high:g}; the first number must be below the second."),
        (clip_frames < 1, f"clip_frames is {clip_frames}; it must be at least 1."),
        (not 1 <= min_frames <= clip_frames, f"min_frames is {min_frames}; it must be from 1 to {clip_frames}."),
    ]
    for broken, sentence in wrong:
        if broken:
            raise ValueError(sentence)


def _admit(file: Listed, config: DataConfig, *, clip_frames: int, min_frames: int) -> Part | Rejected:
    """The windows of a file, or why it has none."""
    if file.problem is not None:
        return Rejected(file.path, reason(file.path, file.problem), "unreadable")
    pictures = file.value_range is None and {file.channels, config.channels} == {1, 3}  # a field has no luma
    if file.channels != config.channels and not pictures:
        why = f"has {count(file.channels, 'channel')}, data.channels is {config.channels} (set it to {file.channels})."
        return Rejected(file.path, why, "channels")
    try:
        frames = _sequence(file, config)
    except BadClip as error:  # time stamps that cannot be true
        return Rejected(file.path, reason(file.path, str(error)), "unreadable")
    need = (min_frames - 1) * config.stride + 1
    if len(frames) < need:
        at = f" at {config.fps:g} fps" if config.fps and file.fps else ""
        why = f"has {count(len(frames), 'frame')}{at}; {min_frames} frames × stride {config.stride} need {need}."
        return Rejected(file.path, why, "short")
    return _part(file, frames, config, clip_frames)


def _sequence(file: Listed, config: DataConfig) -> range | np.ndarray:
    """Source frames of a file at `config.fps`; a file without time keeps its own."""
    if config.fps is None or file.fps is None:
        return range(file.frames)
    if file.stamps is None and same_rate(config.fps, file.fps):
        return range(file.frames)
    # the list has all of a file that the choice of frames asks for, so that no file need be opened for it
    return frame_indices(cast(ClipFile, file), fps=config.fps, stride=1).astype(np.int32)


def _part(file: Listed, frames: range | np.ndarray, config: DataConfig, clip_frames: int) -> Part:
    last = max(0, len(frames) - _span(config, clip_frames))  # last possible start
    return Part(file, frames, -(-last // config.spacing) + 1)


def _span(config: DataConfig, clip_frames: int) -> int:
    """Steps of a file's sequence from a window's first frame to its last."""
    return (clip_frames - 1) * config.stride + 1


def _rates(parts: Iterable[Part]) -> Counter[float]:
    """Files per frame rate, rates that mean the same taken together; files without time left out."""
    rates: Counter[float] = Counter()
    last = 0.0
    for fps in sorted(part.listed.fps for part in parts if part.listed.fps is not None):
        last = last if same_rate(fps, last) else fps
        rates[last] += 1
    return rates


def _one_rate(parts: Sequence[Part]) -> None:
    rates = _rates(parts)
    if len(rates) > 1:
        (first, files), *others = sorted(rates.items())
        seen = ", ".join([f"{first:.4g}: {count(files, 'file')}", *(f"{fps:.4g}: {n}" for fps, n in others)])
        raise ValueError(f"fps differ ({seen}). Set data.fps to resample by time, or data.allow_mixed_fps=true.")


def _rate(parts: Sequence[Part], config: DataConfig) -> float | None:
    """Frames per second of the clips, where they have one rate."""
    timed = [part.listed.fps for part in parts if part.listed.fps is not None]
    if not timed:
        return None
    if config.fps is not None:
        return config.fps / config.stride
    return Counter(timed).most_common(1)[0][0] / config.stride if len(_rates(parts)) == 1 else None


def _divide(parts: list[Part], config: DataConfig, clip_frames: int) -> tuple[list[Part], list[Part], str]:
    """Training parts, held-out parts (may be none), and a note where the user should know."""
    share = config.validation
    if share == 0:
        return parts, [], f"data.validation is 0: {_BORROWED}"
    if len(parts) == 1 or config.hold_out == "ends":
        return _divide_ends(parts, config, clip_frames)
    held = [part for part in parts if held_out(part.listed.path, share)]
    if len(held) == len(parts):
        held.remove(max(held, key=lambda part: _place(part.listed.path)))
    if not held:
        why = f"by data.validation={share:g} none of the {len(parts)} files is held out"
        return parts, [], f"{why}: {_BORROWED} Set data.hold_out=ends to hold out the end of every file."
    names = {part.listed.path for part in held}
    return [part for part in parts if part.listed.path not in names], held, ""


def _divide_ends(parts: list[Part], config: DataConfig, clip_frames: int) -> tuple[list[Part], list[Part], str]:
    """Every file is cut in time and its end held out; a file too short for both sides trains whole."""
    span = _span(config, clip_frames)
    train, held = [], []
    for part in parts:
        frames = part.frames
        tail = max(span, round(config.validation * len(frames)))
        if len(frames) - tail < span:
            train.append(part)
            continue
        train.append(_part(part.listed, frames[:-tail], config, clip_frames))
        held.append(_part(part.listed, frames[-tail:], config, clip_frames))
    if not held:
        few = count(len(parts[0].frames), "frame")
        which = f"one file of {few} is" if len(parts) == 1 else f"all {len(parts)} files are"
        return parts, [], f"{which} too short to hold out an end: {_BORROWED}"
    if len(parts) == 1:
        tail, length = len(held[0].frames), len(parts[0].frames)
        return train, held, f"one file: its last {tail} of {length} frames are held out for validation."
    return train, held, f"the ends of {len(held)} of {len(parts)} files are held out for validation."


def _refusal_notes(rejected: Sequence[Rejected], files: int, need: int, why: tuple[int, int]) -> list[str]:
    kinds = {kind: [r for r in rejected if r.kind == kind] for kind in ("unreadable", "channels", "short")}
    notes = [
        f"{len(some)} of {count(files, 'file')} {what}, skipped; first {some[0].path}: {some[0].reason}"
        for kind, what in (("unreadable", "cannot be read"), ("channels", "with other channels"))
        if (some := kinds[kind])
    ]
    if kinds["short"]:
        notes.append(
            f"{len(kinds['short'])} of {count(files, 'file')} have under {need} frames "
            f"({why[0]} frames × stride {why[1]} need {need}), skipped."
        )
    return notes


def _fitting_notes(parts: Sequence[Part], config: DataConfig) -> list[str]:
    height, width = size_of(config.size)
    colour = sum(part.listed.channels > config.channels for part in parts)
    grey = sum(part.listed.channels < config.channels for part in parts)
    small = sum(part.listed.height < height or part.listed.width < width for part in parts)
    return [
        f"{count(colour, 'colour file')} turned grey (data.channels=1)." if colour else "",
        f"{count(grey, 'grey file')} repeated over 3 channels (data.channels=3)." if grey else "",
        f"{count(small, 'file')} smaller than {height} × {width} enlarged." if small else "",
    ]


def _time_notes(parts: Sequence[Part], config: DataConfig, clip_frames: int) -> list[str]:
    span = _span(config, clip_frames)
    padded = sum(len(part.frames) < span for part in parts)
    timeless = sum(part.listed.fps is None for part in parts)
    slow = [part.listed.fps for part in parts if part.listed.fps is not None]
    slower = 0
    if config.fps is not None:
        slower = sum(fps < config.fps and not same_rate(fps, config.fps) for fps in slow)
    rates = _rates(parts)
    return [
        f"{count(padded, 'file')} too short for {clip_frames} frames × stride {config.stride}, padded by repeating the "
        "last frame; padding is not learned."
        if padded
        else "",
        f"{count(timeless, 'file')} without frame rate, frames taken as stored." if timeless and slow else "",
        f"{count(slower, 'file')} slower than data.fps={config.fps:g}, frames repeat." if slower else "",
        f"fps differ ({min(rates):.4g} to {max(rates):.4g}) and are used as they are (data.allow_mixed_fps)."
        if len(rates) > 1 and config.fps is None
        else "",
    ]


def _range_notes(parts: Sequence[Part]) -> list[str]:
    ranges = Counter(part.listed.span for part in parts)
    if len(ranges) < 2:
        return []
    seen = ", ".join(f"{low:g} to {high:g}: {count(files, 'file')}" for (low, high), files in sorted(ranges.items()))
    return [f"value ranges differ ({seen}); each is mapped to -1 to 1 by itself; data.value_range gives arrays one."]
