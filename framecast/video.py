# SPDX-License-Identifier: Apache-2.0
"""The two forms of a video: a Video inside (float32, -1 to 1), a Clip at the border (the data's own numbers)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from framecast.experiment import VideoSpec

Video: TypeAlias = Float32[Tensor, "b t c h w"]  # -1 to 1
Known: TypeAlias = Bool[Tensor, "t"]  # True = given

__all__ = ["Clip", "Known", "Video", "VideoSpec", "from_video", "to_video"]


@dataclass(frozen=True, repr=False)
class Clip:
    """Frames as they are in a file.

    `frames` is (T, C, H, W), uint8 or float32; uint8 stands for 0 to 255. A float clip must declare its `value_range`,
    the two values that stand for darkest and brightest (for a field: for -1 and 1 inside).
    """

    frames: Tensor
    fps: float | None = None  # frames per second; None where the source has no time
    value_range: tuple[float, float] | None = None  # None for uint8: (0, 255)

    def __repr__(self) -> str:
        size, rate = "×".join(map(str, self.frames.shape[1:])), f" at {self.fps:g} fps" if self.fps else ""
        return f"Clip({len(self.frames)} frames of {size}{rate}, values {self.value_range})"

    def __post_init__(self) -> None:
        shape = tuple(self.frames.shape)
        if self.frames.ndim != 4 or 0 in shape[1:]:
            raise ValueError(f"a clip is (frames, channels, height, width), got shape {shape}.")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps is {self.fps}; it must be above 0, or None where there is no time.")
        if self.frames.dtype == torch.uint8:
            if self.value_range not in (None, (0.0, 255.0)):
                raise ValueError(f"a uint8 clip spans 0 to 255, not {self.value_range}; convert it to float32 first.")
            object.__setattr__(self, "value_range", (0.0, 255.0))
            return
        if self.frames.dtype != torch.float32:
            raise ValueError(f"a clip holds uint8 or float32, got {self.frames.dtype}; convert it first.")
        if self.value_range is None:
            raise ValueError("a float clip needs its value range, for example value_range=(0, 1).")
        low, high = self.value_range
        if not low < high:
            raise ValueError(f"value range {self.value_range}: the first number must be below the second.")
        if not bool(torch.isfinite(self.frames).all()):
            raise ValueError("the clip holds values that are not numbers (nan or infinity).")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, frames: slice) -> Clip:
        if not isinstance(frames, slice):
            raise TypeError("index a clip with a slice, for example clip[:4].")
        fps = self.fps / frames.step if self.fps is not None and (frames.step or 1) > 1 else self.fps
        return replace(self, frames=self.frames[frames], fps=fps)


def to_video(clip: Clip, *, slack: float = 0.01) -> Video:
    """The clip as one row of a Video, (1, T, C, H, W) in -1 to 1.

    Args:
        clip: in its own units.
        slack: how far, as a share of the range, values may lie outside it before they are refused; they are clamped.

    Raises:
        ValueError: values outside the declared range.
    """
    assert clip.value_range is not None
    low, high = clip.value_range
    frames = clip.frames.to(torch.float32)
    if clip.frames.dtype != torch.uint8 and frames.numel():
        least, most = frames.min().item(), frames.max().item()
        if least < low - slack * (high - low) or most > high + slack * (high - low):
            raise ValueError(f"values span {least:g} to {most:g}, outside the declared range {low:g} to {high:g}.")
    return ((frames - low) * (2.0 / (high - low)) - 1.0).clamp(-1.0, 1.0)[None]


def from_video(video: Tensor, like: Clip) -> Tensor:
    """A Video, of any number of leading axes, in the units and the dtype of the clip `like`.

    uint8 is rounded to nearest, so uint8 -> Video -> uint8 returns every value.
    """
    assert like.value_range is not None
    low, high = like.value_range
    values = (video.clamp(-1.0, 1.0) + 1.0) * ((high - low) / 2.0) + low
    return values.round().to(torch.uint8) if like.frames.dtype == torch.uint8 else values.to(torch.float32)
