"""Small folders of clips whose every frame tells its own number: frame i is painted with the value i."""

from pathlib import Path

import numpy as np


def counting(frames: int, *, channels: int = 1, height: int = 8, width: int = 8, first: int = 0) -> np.ndarray:
    """(T, C, H, W) uint8, frame i filled with first + i."""
    values = np.arange(first, first + frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (frames, channels, height, width)).copy()


def write(path: Path, frames: np.ndarray, *, fps: float | None = None) -> Path:
    """An .npy, or an .npz that knows its rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if fps is None:
        np.save(path.with_suffix(".npy"), frames)
        return path.with_suffix(".npy")
    np.savez(path.with_suffix(".npz"), frames=frames, fps=np.float64(fps))
    return path.with_suffix(".npz")


def numbers(video) -> list[int]:
    """The numbers of the frames of a (T, C, H, W) clip in -1 to 1."""
    return ((video[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
