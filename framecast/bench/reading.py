# SPDX-License-Identifier: Apache-2.0
"""What reading clips costs, by kind of file: in one go, in random windows, and from the start each time.

For videos the rate of random windows is also compared with what their key frames permit: with the seconds d that
decoding takes per frame of a whole pass, and c that handing a frame over takes on top, a window of n frames whose
decoding must begin k frames before its end cannot take less than k d + n c.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.bench.measure import Memory, facts, timed
from framecast.data.array_file import write_array
from framecast.data.clip_file import BadClip, ClipFile, open_clip
from framecast.data.image_file import write_animation, write_image
from framecast.data.video_file import VideoFile, write_video

WINDOW = 16  # frames
_WINDOWS = 20  # per repeat
_FRAMES, _SIDE, _FPS = 250, 128, 25.0  # of the clips made here
_BY = "framecast bench"


def _write_folder(path: Path, frames: Tensor) -> None:
    path.mkdir()
    for i, frame in enumerate(frames):
        write_image(path / f"{i:04d}.png", frame, comment=_BY)


# kind of file -> its name, and how it is written
KINDS: dict[str, tuple[str, Callable[[Path, Tensor], object]]] = {
    "mp4, key frame every 25": ("a.mp4", lambda path, x: write_video(path, x, _FPS, comment=_BY, key_every=25)),
    "mp4, key frame every 250": ("a.mp4", lambda path, x: write_video(path, x, _FPS, comment=_BY, key_every=250)),
    "gif": ("a.gif", lambda path, x: write_animation(path, x, _FPS, comment=_BY)),
    "webp": ("a.webp", lambda path, x: write_animation(path, x, _FPS, comment=_BY)),
    "folder of png": ("a", _write_folder),
    "npz": (
        "a.npz",
        lambda path, x: write_array(path, x, fps=_FPS, value_range=None, generated_by={"by": _BY}),
    ),
    "npy": ("a.npy", lambda path, x: np.save(path, x.numpy())),
}


def scene(frames: int, side: int) -> Tensor:
    """A moving picture that is neither noise nor flat: waves that drift over each other, (T, 3, side, side) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] * (2 * np.pi / side)
    t = np.arange(frames)[:, None, None] / 12
    waves = np.zeros((frames, 3, side, side), np.float32)
    for _ in range(12):
        (p, q), speed, phase = rng.integers(-9, 10, 2), rng.normal(), rng.uniform(0, 2 * np.pi)
        waves += rng.normal(size=(3, 1, 1)) * np.sin(p * x + q * y + speed * t + phase)[:, None]
    return torch.from_numpy((127.5 + 127.5 * np.tanh(waves / 4)).astype(np.uint8))


def made(*, kind: str, repeats: int, frames: int = _FRAMES, side: int = _SIDE) -> list[dict[str, Any]]:
    """Rows for a kind of file, of a clip made for it and removed again."""
    name, write = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="framecast-bench-") as folder:
        path = Path(folder) / name
        write(path, scene(frames, side))
        return _rows(open_clip(path), f"{kind}, {side}×{side}", repeats=repeats)


def found(*, path: str, repeats: int) -> list[dict[str, Any]]:
    """Rows for a clip of the user's.

    Raises:
        BadClip: it cannot be read, or is too short.
    """
    file = open_clip(path, value_range=(0.0, 1.0))  # of arrays; not looked at
    if file.frames < WINDOW:
        raise BadClip(f"{path}: {file.frames} frames, reading is measured in windows of {WINDOW}: give a longer clip.")
    return _rows(file, f"{Path(path).name}, {file.width}×{file.height}", repeats=repeats)


def _rows(file: ClipFile, case: str, *, repeats: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    starts = [rng.randint(0, file.frames - WINDOW) for _ in range(_WINDOWS)]

    def windows(source: ClipFile) -> None:
        for start in starts:
            source.read(range(start, start + WINDOW))

    rows = [
        _row(case, "in one go", lambda: file.read(range(file.frames)), frames=file.frames, repeats=repeats),
        _row(case, "random windows", lambda: windows(file), frames=_WINDOWS * WINDOW, repeats=repeats),
    ]
    if isinstance(file, VideoFile):
        slow = file.without_seeking()
        rows.append(
            _row(case, "from the start each time", lambda: windows(slow), frames=_WINDOWS * WINDOW, repeats=repeats)
        )
        whole, spread, first = (row["seconds"] for row in rows)
        decode = _row(case, "", lambda: slow.read([file.frames - 1]), frames=1, repeats=repeats)["seconds"]
        each, handed = decode / file.frames, (whole - decode) / file.frames
        decoded = sum(start + WINDOW - file.key_frame(start) for start in starts)
        permitted = decoded * each + _WINDOWS * WINDOW * max(0.0, handed)
        rows[1] |= {"times_from_start": first / spread, "share_of_permitted": permitted / spread}
        rows[1]["frames_decoded_per_second"] = 1 / each
    return rows


def _row(case: str, how: str, work: Callable[[], object], *, frames: int, repeats: int) -> dict[str, Any]:
    cpu = torch.device("cpu")
    memory = Memory(cpu)
    work()  # what lies on the disk is in memory afterwards
    times = timed(work, repeats=repeats, device=cpu)
    row = {"what": "reading", "case": f"{case}: {how}", **times.plain(), **memory.plain()}
    return row | {"rate": frames / times.median, "rate_unit": "frames/s", **facts(cpu)}
