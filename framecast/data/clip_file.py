# SPDX-License-Identifier: Apache-2.0
"""One door to every kind of clip: video files, animations, folders of numbered images, arrays.

A ClipFile is cheap to open (headers and packets only), holds no open file, can be sent to another process, and reads
any frames exactly. Time stamps, where the source has them, decide which frames make up a clip of another rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from framecast.data import array_file, image_file, video_file
from framecast.data.files import BadClip
from framecast.task import MOST_FRAMES
from framecast.video import Clip

__all__ = [
    "BadClip", "ClipFile", "frame_indices", "looks_like_clip", "nearest_frames", "open_clip", "read_clip", "same_rate",
]  # fmt: skip


class ClipFile(Protocol):
    """A clip in a file, seen as frames 0 to `frames` - 1."""

    @property
    def path(self) -> Path: ...
    @property
    def frames(self) -> int: ...
    @property
    def fps(self) -> float | None: ...  # None where the source has no time; the average where the rate varies
    @property
    def channels(self) -> int: ...
    @property
    def height(self) -> int: ...  # pixels
    @property
    def width(self) -> int: ...
    @property
    def value_range(self) -> tuple[float, float] | None: ...  # None for uint8
    @property
    def times(self) -> np.ndarray | None: ...  # (frames,) seconds from the first frame
    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices`, (n, C, H, W) uint8 or float32, in any order, repeats allowed."""
        ...


def open_clip(
    path: Path | str,
    *,
    value_range: tuple[float, float] | None = None,
    stream: int | None = None,
    axes: str | None = None,
) -> ClipFile:
    """Open a clip of any kind.

    Args:
        path: a video, an animation, a folder of images, an .npy or .npz file, or `-` for an .npy on standard input.
        value_range: of arrays that are not uint8; says nothing about the other kinds.
        stream: which video of a file that holds several, counted from 0.
        axes: how the axes of an array lie, for example `TCHW`; None: told from its shape.

    Raises:
        BadClip: it cannot be used as a clip; the message says why in one sentence.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return image_file.open_images(path)
    if suffix in array_file.SUFFIXES or str(path) == "-":
        return array_file.open_array(path, value_range=value_range, axes=axes)
    if suffix in image_file.SUFFIXES:
        return image_file.open_images(path)
    return video_file.open_video(path, stream=stream)


def looks_like_clip(path: Path) -> bool:
    """True for a name with the suffix of a clip, and for a folder that directly holds numbered images.

    Not for a folder with as many videos as images: these are thumbnails.
    """
    if path.is_dir():
        videos = sum(inside.suffix.lower() in video_file.SUFFIXES for inside in path.iterdir())
        return len(image_file.numbered_images(path)) > max(1, videos)
    return path.suffix.lower() in array_file.SUFFIXES | video_file.SUFFIXES | image_file.ANIMATED and path.is_file()


def same_rate(a: float, b: float) -> bool:
    """Whether two frame rates count as one: 29.97 and 30 do, and 23.976 and 24; 24 and 25 do not."""
    return max(a, b) <= 1.01 * min(a, b)


def nearest_frames(times: np.ndarray, fps: float) -> np.ndarray:
    """For the moments 0, 1/fps, 2/fps … up to the last frame, the frame whose time is nearest; of two, the earlier.

    Args:
        times: (frames,) seconds from the first frame, ascending.
        fps: the wanted rate.

    Example:
        >>> nearest_frames(np.arange(6) / 30, 10.0).tolist()
        [0, 3]
    """
    period = times[-1] / (len(times) - 1) if len(times) > 1 else 1 / fps
    # half-way moments and the end are blurred a little, because containers round times to milliseconds
    blur = 0.02 * period
    moments = np.arange(int((times[-1] + 0.25 * min(period, 1 / fps)) * fps) + 1) / fps
    middles = (times[1:] + times[:-1]) / 2
    return np.searchsorted(middles + blur, moments, side="left")


def frame_indices(file: ClipFile, *, fps: float | None, stride: int) -> np.ndarray:
    """Source frame of every frame of the resampled clip: nearest time stamp to k / fps, then every stride-th.

    Args:
        file: an open clip.
        fps: the wanted rate; None: frames as stored.
        stride: source (or resampled) frames per clip frame.

    Raises:
        BadClip: another rate is wanted of a clip without time.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}; it must be at least 1.")
    indices = np.arange(file.frames)
    if fps is not None:
        if not fps > 0:
            raise ValueError(f"fps is {fps}; it must be above 0.")
        if file.times is None:
            raise BadClip(
                f"{file.path}: its frame rate is not known, so it cannot be resampled to {fps:g}; leave fps out."
            )
        if (seconds := file.times[-1]) * fps > MOST_FRAMES:
            raise BadClip(
                f"{file.path}: its {file.frames} frames span {seconds:.3g} s, too many frames at {fps:g} fps: its own "
                "rate is probably wrong; leave fps out."
            )
        indices = nearest_frames(file.times, fps)
    return indices[::stride]


def read_clip(
    path: Path | str,
    *,
    fps: float | None = None,
    stride: int = 1,
    start: int = 0,
    frames: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> Clip:
    """Read a clip, or a part of it.

    Args:
        path: as for `open_clip`.
        fps: resample to this rate by time stamp; None: frames as stored.
        stride: keep every stride-th frame (after `fps`).
        start: first frame, counted after `fps` and `stride`.
        frames: how many; None: all that follow.
        value_range: of arrays that are not uint8.

    Raises:
        BadClip: unreadable, or too short for what is asked.
    """
    file = open_clip(path, value_range=value_range)
    indices = frame_indices(file, fps=fps, stride=stride)
    end = len(indices) if frames is None else start + frames
    if not 0 <= start < end <= len(indices):
        asked = f"frame {start} on" if frames is None else f"frames {start} to {end - 1}"
        raise BadClip(f"{file.path}: {asked} asked for, the clip has {len(indices)} frames.")
    rate = fps or file.fps
    return Clip(file.read(indices[start:end].tolist()), rate and rate / stride, file.value_range)
