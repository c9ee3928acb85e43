# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of clips: one line per clip, remembered between runs.

Hides the walk through the folder (recursive, hidden names skipped, a folder of numbered frames is one clip) and the
cache that spares opening every file again. Nothing is ever written into the user's folder.
Read next: `framecast.data.clips`, which cuts training windows from these clips.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from framecast.assets import cache_dir
from framecast.data.clip_file import BadClip, ClipFile, looks_like_clip, open_clip
from framecast.experiment import to_plain

_log = logging.getLogger(__name__)
_VERSION = 2  # of the cache file; another number means rebuild
_REGULAR = 1e-3  # seconds by which time stamps may leave an even grid and still count as even

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Listed:
    """One clip of a folder as its header tells it.

    With a `problem` the clip cannot be read, and all but path, size and time mean nothing.
    """

    path: str  # relative to the folder, with "/" between names on every system; "." where the folder itself is the clip
    frames: int
    fps: float | None
    channels: int
    height: int
    width: int
    value_range: tuple[float, float] | None  # None for uint8
    problem: str | None  # why it cannot be read, one sentence
    size_bytes: int  # of a folder of frames: all its files together
    mtime_ns: int  # of a folder of frames: the newest
    stamps: tuple[float, ...] | None = None  # seconds of each frame where they are not evenly spaced
    promised: int = 0  # frames that a video's header claims; 0: it does not say

    @property
    def span(self) -> tuple[float, float]:
        """The values that stand for darkest and brightest."""
        return self.value_range or (0.0, 255.0)

    @cached_property
    def times(self) -> np.ndarray:
        """Seconds of each frame, as `ClipFile.times` gives them."""
        if self.stamps is not None:
            return np.asarray(self.stamps, dtype=np.float64)
        return np.arange(self.frames, dtype=np.float64) / (self.fps or 1.0)


def index_folder(
    root: Path, *, value_range: tuple[float, float] | None = None, progress: Progress | None = None
) -> list[Listed]:
    """All clips under `root`, sorted by relative path, broken ones with their `problem`.

    Clips whose size and time of change are as they were are taken from a cache file in the user's cache folder.

    Args:
        root: folder, searched recursively; links to folders are followed.
        value_range: what float arrays span, see `open_clip`.
        progress: called with (opened, to open) after every clip that had to be opened.

    Raises:
        ValueError: no such folder, or no clip in it.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}; give a folder that holds clips.")
    signed = {_relative(path, root): (path, *_signature(path)) for path in _clips(root)}
    if not signed:
        raise ValueError(f"{root} holds no clips: no video, no folder of numbered frames and no array was found in it.")
    store = cache_dir() / "index" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]}.json"
    known = _load(store, value_range)
    current = {name: known[name] for name, (_, *sign) in signed.items() if name in known and _signed(known[name], sign)}
    fresh = [name for name in signed if name not in current]
    if fresh or len(known) != len(current):
        pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
        try:
            for listed in pool.map(lambda name: _open(name, *signed[name], value_range=value_range), fresh):
                current[listed.path] = listed
                if progress is not None:
                    progress(len(current) - (len(signed) - len(fresh)), len(fresh))
        finally:  # an interrupted scan of a large folder goes on where it stopped
            pool.shutdown(cancel_futures=True)
            _save(store, current, root=root, value_range=value_range)
    return [current[name] for name in sorted(current)]


def _clips(root: Path) -> Iterator[Path]:
    """Clips under `root`; a folder that is itself a clip is not entered."""
    if _is_clip(root):
        yield root
        return
    yield from _walk(root, {root.resolve()})


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """`seen` holds the real folders entered so far: links may form a ring."""
    try:
        inside = sorted(folder.iterdir())
    except PermissionError:
        _log.warning("%s may not be read and is skipped.", folder)
        return
    for path in inside:
        if path.name.startswith("."):
            continue
        if _is_clip(path):
            yield path
        elif path.is_dir() and (real := path.resolve()) not in seen:
            seen.add(real)
            yield from _walk(path, seen)


def _is_clip(path: Path) -> bool:
    try:
        return looks_like_clip(path)
    except PermissionError:
        return False  # `_walk` tells of the folder


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _signature(path: Path) -> tuple[int, int]:
    """Size and time of change; of a folder of frames, over the folder and the files in it."""
    own = path.stat()
    if not path.is_dir():
        return own.st_size, own.st_mtime_ns
    inside = [entry.stat() for entry in os.scandir(path) if entry.is_file()]  # a link may lead nowhere
    return sum(s.st_size for s in inside), max([own.st_mtime_ns, *(s.st_mtime_ns for s in inside)])


def _signed(listed: Listed, signature: list[int]) -> bool:
    return [listed.size_bytes, listed.mtime_ns] == signature


def _open(name: str, path: Path, size_bytes: int, mtime_ns: int, *, value_range: tuple[float, float] | None) -> Listed:
    """The line of one clip, with a `problem` where it cannot be opened."""
    try:
        file = open_clip(path, value_range=value_range)
        if file.frames < 1:
            raise BadClip(f"{path.name}: holds no frames.")
        return Listed(
            path=name,
            frames=int(file.frames),
            fps=None if file.fps is None else float(file.fps),
            channels=int(file.channels),
            height=int(file.height),
            width=int(file.width),
            value_range=None if file.value_range is None else (float(file.value_range[0]), float(file.value_range[1])),
            problem=None,
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
            stamps=_uneven(file),
            promised=int(getattr(file, "promised", 0)),
        )
    except (BadClip, OSError) as error:
        return Listed(name, 0, None, 0, 0, 0, None, str(error) or type(error).__name__, size_bytes, mtime_ns)


def _uneven(file: ClipFile) -> tuple[float, ...] | None:
    """Time stamps from the first frame on, or None where they are as even as `fps` says."""
    if file.fps is None or file.times is None:
        return None
    times = np.asarray(file.times, dtype=np.float64)
    if np.abs(times - np.arange(len(times)) / file.fps).max() <= _REGULAR:
        return None
    return tuple(float(t) for t in times.round(6))


def _load(store: Path, value_range: tuple[float, float] | None) -> dict[str, Listed]:
    """The cached lines; none where the file is absent, of another version, damaged or for another value range."""
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
        if content["version"] != _VERSION or content["value_range"] != to_plain(value_range):
            return {}
        return {line["path"]: _listed(line) for line in content["clips"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _listed(line: dict[str, Any]) -> Listed:
    pairs = {key: line[key] and tuple(line[key]) for key in ("value_range", "stamps")}
    return Listed(**{**line, **pairs})


def _save(store: Path, clips: dict[str, Listed], *, root: Path, value_range: tuple[float, float] | None) -> None:
    """Write the cache whole or not at all; a cache folder that cannot be written costs time, nothing else."""
    content = {
        "version": _VERSION,
        "folder": str(root.resolve()),
        "value_range": to_plain(value_range),
        "clips": [to_plain(listed) for listed in clips.values()],
    }
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=store.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(file.name, store)
    except OSError as error:
        _log.info("the list of clips could not be kept in %s: %s", store, error)
