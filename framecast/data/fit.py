# SPDX-License-Identifier: Apache-2.0
"""A user's clip made to fit a model: rate by time stamp, short side and centre crop, colours only when asked.

Every change is said in one line. Pixels are resized by the rule that training clips go through (`fitted.fit`), so that
a model sees the same picture either way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from framecast.data import fitted
from framecast.data.clip_file import BadClip, ClipFile, frame_indices, nearest_frames, open_clip, same_rate
from framecast.data.files import UnknownRange
from framecast.experiment import VideoSpec
from framecast.video import Clip, to_video

Colour = Literal["keep", "gray", "rgb"]
_CHUNK = 2**29  # bytes of source frames held at once


def fit(clip: Clip, spec: VideoSpec, *, colour: Colour = "keep") -> tuple[Clip, list[str]]:
    """The clip with the model's channels, size and rate.

    Args:
        clip: any clip.
        spec: what the model was made for; channels, height or width of 0: as the clip's.
        colour: `gray` takes the luma of RGB, `rgb` repeats grey; `keep` changes nothing.

    Returns:
        The fitted clip and one line for every change made.

    Raises:
        ValueError: the channels differ from the model's.

    Example:
        >>> spec = VideoSpec(channels=3, height=8, width=8, clip_frames=4, fps=5.0)
        >>> small, changes = fit(Clip(torch.zeros(20, 3, 12, 16, dtype=torch.uint8), fps=10.0), spec)
        >>> tuple(small.frames.shape), changes[0]
        ((10, 3, 8, 8), '10 to 5 frames per second: 10 of 20 frames, by time stamp.')
    """
    channels = _wanted_channels(clip.frames.shape[1], spec, colour)
    spec = _sized(spec, clip.frames.shape[2], clip.frames.shape[3])
    notes = []
    if _resampled(clip.fps, spec):
        assert clip.fps is not None
        chosen = nearest_frames(np.arange(len(clip)) / clip.fps, spec.fps)  # type: ignore[arg-type]
        notes.append(_rate_note(clip.fps, spec, len(chosen), len(clip)))
        clip = replace(clip, frames=clip.frames[torch.from_numpy(chosen)], fps=spec.fps)
    notes += _timeless_notes(clip.fps, spec)
    size = (clip.frames.shape[1], clip.frames.shape[2], clip.frames.shape[3])
    value_range, range_notes = _units(clip, spec)
    frames = fitted.fit(clip.frames, channels=channels, height=spec.height, width=spec.width)
    return Clip(frames, clip.fps, value_range), notes + _picture_notes(size, channels, spec) + range_notes


def read_fitted(
    path: Path | str,
    spec: VideoSpec,
    *,
    colour: Colour = "keep",
    start: int = 0,
    frames: int | None = None,
    value_range: tuple[float, float] | None = None,
    stream: int | None = None,
) -> tuple[Clip, list[str]]:
    """Read a clip, or a part of it, as the model wants it, without ever holding more of it than needed.

    Args:
        path: as for `open_clip`.
        spec: what the model was made for.
        colour: as for `fit`.
        start: first frame, counted at the model's rate.
        frames: how many; None: all that follow.
        value_range: of arrays that are not uint8; None: what the file says, else that of a model of a field.
        stream: which video of a file that holds several.

    Raises:
        BadClip: unreadable, or too short for what is asked.
        ValueError: the channels differ from the model's.
    """
    notes = []
    try:
        file = open_clip(path, value_range=value_range, stream=stream)
    except UnknownRange:
        if spec.value_range == (0.0, 255.0):  # a model of pictures: no unit to go by
            raise
        file = open_clip(path, value_range=spec.value_range)
        notes.append(f"values taken to be in the model's units, {spec.value_range[0]:g} to {spec.value_range[1]:g}.")
    try:
        channels = _wanted_channels(file.channels, spec, colour)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    spec = _sized(spec, file.height, file.width)
    resampled = _resampled(file.fps if file.times is not None else None, spec)
    indices = frame_indices(file, fps=spec.fps if resampled else None, stride=1)
    end = len(indices) if frames is None else start + frames
    if not 0 <= start < end <= len(indices):
        rate = f" at {spec.fps:g} frames per second" if resampled else ""
        asked = f"frame {start} on" if frames is None else f"frames {start} to {end - 1}"
        raise BadClip(f"{path}: {asked} asked for, the clip has {len(indices)} frames{rate}.")
    notes += [_rate_note(file.fps, spec, len(indices), file.frames)] if resampled else _timeless_notes(file.fps, spec)
    clip = _read_in_parts(file, indices[start:end].tolist(), channels, spec)
    clip = replace(clip, fps=spec.fps if resampled else file.fps)
    value_range, range_notes = _units(clip, spec)
    notes += _picture_notes((file.channels, file.height, file.width), channels, spec) + range_notes
    clip = replace(clip, value_range=value_range)
    if clip.frames.dtype != torch.uint8:
        try:
            to_video(clip)  # refuses values outside the range, here where the file is known
        except ValueError as error:
            told = str(error).rstrip(".")
            if value_range == spec.value_range:
                raise BadClip(f"{path}: {told}, which is the model's: convert them to its units.") from None
            raise BadClip(f"{path}: {told}: declare their own with --value-range LOW,HIGH.") from None
    return clip, notes


def _read_in_parts(file: ClipFile, indices: list[int], channels: int, spec: VideoSpec) -> Clip:
    """The frames at the model's size; large ones are shrunk a part at a time."""
    values = file.channels * file.height * file.width * (1 if file.value_range is None else 4)
    step = max(1, _CHUNK // values)
    parts = [
        fitted.fit(file.read(indices[i : i + step]), channels=channels, height=spec.height, width=spec.width)
        for i in range(0, len(indices), step)
    ]
    return Clip(torch.cat(parts), None, file.value_range)


def _sized(spec: VideoSpec, height: int, width: int) -> VideoSpec:
    """The spec with the clip's own sides where it takes any."""
    return replace(spec, height=spec.height or height, width=spec.width or width)


def _wanted_channels(have: int, spec: VideoSpec, colour: Colour) -> int:
    """Channels after the change of colour; they must be the model's."""
    channels = {"keep": have, "gray": 1, "rgb": 3}[colour]
    if colour != "keep" and have not in (1, 3):
        instead = f"keep {_count(spec.channels)} of the array" if spec.channels else "leave it out"
        raise ValueError(f"the clip has {have} channels, which are not colours: --{colour} does not apply; {instead}.")
    if not spec.channels:
        return channels
    if channels != spec.channels and channels != have:
        raise ValueError(
            f"--{colour} makes {_count(channels)} of {have}, but the model expects {spec.channels}: leave it out."
        )
    if channels != spec.channels:
        keep = f"keep {spec.channels} of them in the array, or " if channels > spec.channels else ""
        flag = {(3, 1): "add --gray, or ", (1, 3): "add --rgb, or "}.get((channels, spec.channels), keep)
        raise ValueError(
            f"model expects {_count(spec.channels)}, clip has {channels}: {flag}choose a {channels}-channel model."
        )
    return channels


def _resampled(fps: float | None, spec: VideoSpec) -> bool:
    return fps is not None and spec.fps is not None and not same_rate(fps, spec.fps)


def _units(clip: Clip, spec: VideoSpec) -> tuple[tuple[float, float] | None, list[str]]:
    """The value range under which the model should see the clip.

    A model of a physical field keeps its units: the same value means the same thing in every clip, whatever range a
    clip was declared with. Pictures have no units, their own range is mapped.
    """
    own, model = clip.value_range, spec.value_range
    if model in (own, (0.0, 255.0)) or own is None:
        return own, []
    if clip.frames.dtype == torch.uint8:
        return own, [f"a picture, not a field: its 0 to 255 stand for the model's {model[0]:g} to {model[1]:g}."]
    return model, [f"values read in the model's range {model[0]:g} to {model[1]:g}, not {own[0]:g} to {own[1]:g}."]


def _rate_note(fps: float | None, spec: VideoSpec, kept: int, of: int) -> str:
    rates = f"{fps:.4g} to {spec.fps:.4g} frames per second"
    if kept > of:
        return f"{rates}: slower than the model's clips, so that {of} frames repeat to fill {kept}."
    return f"{rates}: {kept} of {of} frames, by time stamp."


def _timeless_notes(fps: float | None, spec: VideoSpec) -> list[str]:
    """A line where the model has a rate and the clip none to go by."""
    if fps is not None or spec.fps is None:
        return []
    return [f"its frame rate is not known: frames are taken as stored, as if {spec.fps:.4g} came per second."]


def _picture_notes(size: tuple[int, int, int], channels: int, spec: VideoSpec) -> list[str]:
    """Lines on colour and size."""
    have, height, width = size
    notes = []
    if have != channels:
        notes.append("colours to grey (luma)." if channels == 1 else "grey to colours (the same three times).")
    if (height, width) != (spec.height, spec.width):
        covering = fitted.covering(height, width, height=spec.height, width=spec.width)
        word = "enlarged" if covering[0] > height else "reduced" if covering[0] < height else "kept"
        cropped = "" if covering == (spec.height, spec.width) else ", centre cropped"
        left = spec.height * spec.width / (covering[0] * covering[1])
        cropped += f" ({100 * left:.2g}% of the picture is left)" if left < 0.5 else ""
        notes.append(f"{width}x{height} to {spec.width}x{spec.height} pixels: short side {word}{cropped}.")
    return notes


def _count(channels: int) -> str:
    return f"{channels} channel" if channels == 1 else f"{channels} channels"
