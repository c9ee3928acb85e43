"""Clips whose frames carry their own number as black and white blocks, so that tests recognise every frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8  # 4 x 2 blocks


def picture(number: int, height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8: the bits of `number` as blocks, over a texture that moves with it."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    bits = (number >> (rows[:, None] * 4 + columns[None])) & 1
    texture = (np.arange(height)[:, None] * 3 + np.arange(width)[None] * 5 + number * 7) % 40
    pixels = (bits * 200 + texture).astype(np.uint8)[..., None]
    return np.repeat(pixels, channels, axis=2)


def number_of(pixels: np.ndarray) -> int:
    """The number in a picture (C, H, W) or (H, W, C) of any size."""
    pixels = np.asarray(pixels, np.float32)
    grey = pixels.mean(0) if pixels.shape[0] in (1, 3) else pixels.mean(-1)
    height, width = grey.shape
    bits = [
        grey[r * height // 2 : (r + 1) * height // 2, c * width // 4 : (c + 1) * width // 4].mean() > 120
        for r in range(2)
        for c in range(4)
    ]
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def write(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    count: int = 60,
    options: dict[str, str] | None = None,
    rate: Fraction | int = 25,
    stamps: list[int] | None = None,
    rotation: int = 0,
    height: int = 48,
    width: int = 64,
) -> Path:
    """Write frames 0 to count - 1; `stamps` are their times in milliseconds, for varying rates."""
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=rate, options=options or {})
        track.width, track.height, track.pix_fmt = width, height, pix_fmt
        track.codec_context.thread_count = 1
        if stamps:
            track.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            track.set_display_rotation(rotation)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width), format="rgb24")
            if stamps:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def numbers(frames) -> list[int]:
    """The numbers in a tensor of frames (n, C, H, W)."""
    return [number_of(frame) for frame in frames.numpy()]
