# SPDX-License-Identifier: Apache-2.0
"""Clips as arrays: .npy and .npz, of any number of channels, uint8 or numbers with a declared range.

Frames are read where they lie: .npy is mapped, .npz is read up to the last frame wanted. An .npz may say its own
`value_range` and `fps`. What this program writes is lossless and says in `generated_by` where it comes from.
"""

from __future__ import annotations

import io
import json
import math
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.data.files import BadClip, UnknownRange, new_file

SUFFIXES = frozenset({".npy", ".npz"})
_LAYOUT = "frames are expected as (T, C, H, W), (T, H, W) or (T, H, W, 3); transpose the array if they lie otherwise"
_ABOUT = ("fps", "value_range", "generated_by")  # entries of an .npz beside the frames
# numpy reads headers as Python literals, and Python 3.11 before 3.11.8 cannot do so in several threads at once: now and
# then a good file fails with "AST constructor recursion depth mismatch" (github.com/python/cpython/issues/106905)
_PARSING = threading.Lock()


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file, seen as frames (T, C, H, W)."""

    path: Path
    frames: int
    fps: float | None
    channels: int
    height: int  # pixels
    width: int
    value_range: tuple[float, float] | None  # None: uint8
    times: np.ndarray | None  # (frames,) seconds from the first frame
    axes: str  # how the stored axes lie, for example TCHW
    key: str = ""  # entry of an .npz
    _array: np.ndarray | None = field(default=None, repr=False)  # from standard input only

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` as (n, C, H, W), uint8 or float32, in any order, repeats allowed.

        Raises:
            BadClip: a frame that the file does not have, or one with values that are not numbers.
        """
        for i in indices:
            if not 0 <= i < self.frames:
                raise BadClip(f"{self.path}: frame {i} asked for, the file has frames 0 to {self.frames - 1}.")
        chosen = np.asarray(indices, np.int64)
        try:
            stored = self._stored(chosen)
        except Exception as error:  # see open_array
            raise BadClip(f"{self.path}: the array cannot be read to its end ({_first_line(error)}).") from None
        picked = _to_frames(stored, self.axes)
        if self.value_range is None:
            return torch.from_numpy(
                np.ascontiguousarray(picked if picked.dtype == np.uint8 else picked * np.uint8(255))
            )
        picked = np.ascontiguousarray(picked, np.float32)
        bad = ~np.isfinite(picked).all(axis=(1, 2, 3))
        if bad.any():
            raise BadClip(
                f"{self.path}: frame {chosen[bad.argmax()]} holds values that are not numbers (nan or infinity)."
            )
        return torch.from_numpy(picked)

    def _stored(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen frames, axes as stored."""
        along = self.axes.index("T")
        if self._array is not None:
            return self._array.take(chosen, axis=along)
        if not self.key:
            return _mapped(self.path).take(chosen, axis=along)
        with zipfile.ZipFile(self.path) as archive, archive.open(self.key + ".npy") as entry:
            shape, fortran, dtype = _header(entry)
            if along or fortran:
                rest = np.frombuffer(entry.read(), dtype, int(np.prod(shape)))
                return rest.reshape(shape, order="F" if fortran else "C").take(chosen, axis=along)
            size, begin = dtype.itemsize * int(np.prod(shape[1:])), entry.tell()
            frames = {}
            for i in sorted(set(chosen.tolist())):
                entry.seek(begin + i * size)
                frames[i] = np.frombuffer(entry.read(size), dtype, size // dtype.itemsize).reshape(shape[1:])
            return np.stack([frames[i] for i in chosen.tolist()]) if frames else np.empty((0, *shape[1:]), dtype)


def open_array(
    path: Path | str, *, value_range: tuple[float, float] | None = None, axes: str | None = None
) -> ArrayFile:
    """Open an array by its header.

    Args:
        path: .npy or .npz; `-` reads an .npy from standard input.
        value_range: of arrays that are not uint8: the values that stand for darkest and brightest; None: what the
            .npz says.
        axes: how the axes lie, the letters T, C, H, W in any order (C may be missing); None: told from the shape.

    Raises:
        BadClip: not an array of frames, or numbers without a range.
    """
    path = Path(path)
    key = ""
    array: np.ndarray | None = None
    about: dict[str, Any] = {}
    try:
        if str(path) == "-":
            piped = sys.stdin.buffer.read()
            _header(io.BytesIO(piped))
            array = np.load(io.BytesIO(piped), allow_pickle=False)
            shape, dtype = array.shape, array.dtype
        elif not path.is_file():
            raise BadClip(f"{path}: there is no such file.")
        elif not path.stat().st_size:
            raise BadClip(f"{path}: the file is empty.")
        elif path.suffix.lower() == ".npz":
            key, shape, dtype, about = _look_into(path)
        else:
            with open(path, "rb") as file:
                _header(file)
            mapped = _mapped(path)
            shape, dtype = mapped.shape, mapped.dtype
    except (BadClip, PermissionError):
        raise
    except Exception as error:  # a spoiled header or archive fails in the words of any module it passes through
        raise BadClip(f"{path}: not a readable array ({_first_line(error)}).") from None
    layout = _checked_axes(path, shape, axes) if axes else _told_axes(path, shape)
    size = dict(zip(layout, shape))
    if 0 in shape:
        raise BadClip(f"{path}: the array is empty, its shape is {shape}.")
    fps = about.get("fps")
    return ArrayFile(
        path=path,
        frames=size["T"],
        fps=fps,
        channels=size.get("C", 1),
        height=size["H"],
        width=size["W"],
        value_range=_range(path, dtype, value_range or about.get("value_range")),
        times=None if fps is None else np.arange(size["T"]) / fps,
        axes=layout,
        key=key,
        _array=array,
    )


def write_array(
    path: Path | str,
    frames: Tensor,
    *,
    fps: float | None,
    value_range: tuple[float, float] | None,
    generated_by: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write frames without loss as .npz with the entries frames, fps, value_range and generated_by.

    Args:
        path: ends in .npz.
        frames: (…, T, C, H, W), uint8 or float32.
        fps: frames per second; None leaves the entry out.
        value_range: of float frames.
        generated_by: plain values: model, seed and so on; stored as JSON.
        overwrite: replace a file that is there already.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: arrays are written as .npz; name the file so.")
    entries: dict[str, Any] = {"frames": frames.cpu().numpy(), "generated_by": np.array(json.dumps(dict(generated_by)))}
    if fps is not None:
        entries["fps"] = np.float64(fps)
    if value_range is not None and frames.dtype != torch.uint8:
        entries["value_range"] = np.asarray(value_range, np.float64)
    with new_file(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **entries)
    return path


def generated_by(path: Path) -> dict[str, Any]:
    """What an .npz says about where it comes from; nothing for any other file, and for what cannot be read."""
    if path.suffix.lower() != ".npz":
        return {}
    try:
        with _PARSING, np.load(path, allow_pickle=False) as archive:
            told = json.loads(str(archive["generated_by"]))
    except Exception:  # no such entry, or see open_array
        return {}
    return told if isinstance(told, dict) else {}


def _look_into(path: Path) -> tuple[str, tuple[int, ...], np.dtype, dict[str, Any]]:
    """Name, shape and type of the frames in an .npz, and what it says about them."""
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in (n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")):
            if name not in _ABOUT:
                with archive.open(name + ".npy") as entry:
                    shape, _, dtype = _header(entry)
                    if entry.tell() + dtype.itemsize * math.prod(shape) > archive.getinfo(name + ".npy").file_size:
                        raise ValueError(f"{name} is cut short of the shape {shape} it claims")
                shapes[name] = shape, dtype
    found = [name for name, (shape, _) in shapes.items() if len(shape) in (3, 4)]
    found = ["frames"] if "frames" in found else found
    if len(found) != 1:
        listed = ", ".join(f"{name} {shape}" for name, (shape, _) in shapes.items()) or "none"
        raise BadClip(f"{path}: needs one array of frames with 3 or 4 axes, or one named frames; it holds: {listed}.")
    about: dict[str, Any] = {}
    with _PARSING, np.load(path, allow_pickle=False) as archive:
        if "fps" in archive.files and (fps := float(archive["fps"])) > 0:
            about["fps"] = fps
        if "value_range" in archive.files:
            low, high = archive["value_range"].reshape(-1).tolist()
            about["value_range"] = float(low), float(high)
    return found[0], *shapes[found[0]], about


def _mapped(path: Path) -> np.ndarray:
    """An .npy where it lies."""
    with _PARSING:
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _header(entry: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of the array that begins here; the reader stops at its first value."""
    try:
        version = np.lib.format.read_magic(entry)
    except ValueError:
        raise ValueError("it does not begin as an .npy file does") from None
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _PARSING:
        shape, fortran, dtype = read(entry)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran, dtype


def _checked_axes(path: Path, shape: tuple[int, ...], axes: str) -> str:
    axes = axes.upper()
    if len(set(axes)) != len(axes) or set(axes) not in ({"T", "C", "H", "W"}, {"T", "H", "W"}):
        raise BadClip(f"{path}: axes {axes!r} must name T, H, W and at most C, each once, for example TCHW.")
    if len(axes) != len(shape):
        raise BadClip(f"{path}: axes {axes!r} name {len(axes)} axes, the array has shape {shape}.")
    return axes


def _told_axes(path: Path, shape: tuple[int, ...]) -> str:
    """How the axes lie, where the shape leaves no doubt; a short last axis means colours."""
    if len(shape) == 4:
        if shape[3] not in (1, 3, 4) or shape[3] >= min(shape[1:3]):
            return "TCHW"
        if shape[1] > 4:
            return "THWC"
        raise BadClip(f"{path}: shape {shape} can be read in two ways: {_LAYOUT}.")
    if len(shape) == 3 and (shape[2] not in (1, 3, 4) or shape[1] <= 4):
        return "THW"
    if len(shape) == 5:
        raise BadClip(f"{path}: the array has shape {shape}, a set of clips: store one of them, as (T, C, H, W).")
    raise BadClip(f"{path}: the array has shape {shape}: {_LAYOUT}.")


def _range(path: Path, dtype: np.dtype, declared: tuple[float, float] | None) -> tuple[float, float] | None:
    """The value range of such an array; None for uint8 (and for true and false, which are read as 0 and 255)."""
    if dtype in (np.uint8, np.bool_):
        return None
    if not (np.issubdtype(dtype, np.floating) or np.issubdtype(dtype, np.integer)):
        raise BadClip(f"{path}: holds {dtype} values, which are not numbers of a picture.")
    if declared is None:
        raise UnknownRange(
            f"{path}: holds {dtype} values of unknown range: pass it, for example value_range=(0, 1) "
            "(--value-range 0,1; in training --data.value_range 0,1), or store uint8."
        )
    low, high = declared
    if not (low < high and math.isfinite(high - low)):
        raise BadClip(f"{path}: value range {low:g} to {high:g}: the first number must be below the second.")
    return float(low), float(high)


def _to_frames(stored: np.ndarray, axes: str) -> np.ndarray:
    """(T, C, H, W) from any order of the axes."""
    if "C" not in axes:
        stored, axes = stored[..., None], axes + "C"
    return stored.transpose([axes.index(letter) for letter in "TCHW"])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
