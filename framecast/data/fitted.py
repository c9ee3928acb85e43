# SPDX-License-Identifier: Apache-2.0
"""Frames at the size and with the channels a model wants.

`fit` is the one rule by which a clip is made to fit (luma, short side, crop). `FittedFrames` reads frames of listed
files through that rule, keeps headers at hand and small files decoded, and gives the same values either way.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import get_worker_info

from framecast.data.clip_file import BadClip, ClipFile, open_clip
from framecast.data.folder import Listed
from framecast.experiment import DataConfig, size_of

_MEMORY = 2 * 2**30  # bytes of decoded frames a training process keeps; its reading processes share them out
_DECODE = 2**30  # most source pixels of a file that is decoded whole: a few seconds of work
_CHUNK = 2**25  # source values handled at once
_OPEN = 1024  # files whose headers are kept
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def fit(
    frames: Tensor, *, channels: int, height: int, width: int, crop: tuple[float, float] | None = (0.5, 0.5)
) -> Tensor:
    """Frames with these channels and this size: luma or repeated grey, short side resized, then cut.

    Resizing is bilinear with antialiasing; bytes are rounded to nearest once, at the end of it.

    Args:
        frames: (n, C, H, W), uint8 or float32, n at least 1.
        channels: wanted; 3 to 1 and 1 to 3 are the only changes possible.
        height: wanted, pixels.
        width: wanted, pixels.
        crop: where the window lies along the excess height and width: 0 first pixel, 0.5 centre, 1 last pixel;
            None cuts nothing, so one side may stay longer than wanted.

    Returns:
        Same dtype, (n, channels, height, width).

    Raises:
        ValueError: another change of channels.

    Example:
        >>> fit(torch.zeros(2, 3, 48, 80, dtype=torch.uint8), channels=1, height=24, width=24).shape
        torch.Size([2, 1, 24, 24])
    """
    size = covering(frames.shape[-2], frames.shape[-1], height=height, width=width)
    step = max(1, _CHUNK // max(1, frames[0].numel()))
    fitted = torch.cat([_resized(_recoloured(part, channels), size, frames.dtype) for part in frames.split(step)])
    return fitted if crop is None else cut(fitted, height=height, width=width, crop=crop)


def covering(from_height: int, from_width: int, *, height: int, width: int) -> tuple[int, int]:
    """The least size of the same shape that covers height x width."""
    scale = max(height / from_height, width / from_width)
    return max(height, round(from_height * scale)), max(width, round(from_width * scale))


def cut(frames: Tensor, *, height: int, width: int, crop: tuple[float, float]) -> Tensor:
    """The window height x width of frames, at the place `crop` as in `fit`."""
    spare = frames.shape[-2] - height, frames.shape[-1] - width
    top, left = (max(0, math.ceil(share * (excess + 1)) - 1) for share, excess in zip(crop, spare))
    return frames[..., top : top + height, left : left + width]


def _recoloured(frames: Tensor, channels: int) -> Tensor:
    """Grey from colour (float, not yet rounded), colour from grey (repeated)."""
    have = frames.shape[1]
    if have == channels:
        return frames
    if (have, channels) == (3, 1):
        return torch.einsum("nchw,c->nhw", frames.float(), torch.tensor(_LUMA))[:, None]
    if (have, channels) == (1, 3):
        return frames.expand(-1, 3, -1, -1)
    raise ValueError(f"frames have {have} channels and {channels} are wanted; only 3 to 1 and 1 to 3 can be converted.")


def _resized(frames: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if tuple(frames.shape[-2:]) != size:
        frames = interpolate(frames.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return frames.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 and frames.dtype != dtype else frames


class FittedFrames:
    """Reads frames of listed files, fitted; what it keeps never changes what it returns.

    With `crop="center"` frames come cut, with `crop="random"` uncut. Copies sent to other processes start empty.
    """

    def __init__(self, root: Path, config: DataConfig):
        self.root = root
        self.config = config
        self.height, self.width = size_of(config.size)
        self._files: OrderedDict[str, ClipFile] = OrderedDict()
        self._kept: dict[str, tuple[np.ndarray, Tensor] | None] = {}  # source frames and their pictures; None: not kept
        self._bytes = 0

    def __reduce__(self) -> tuple[type[FittedFrames], tuple[Path, DataConfig]]:
        return FittedFrames, (self.root, self.config)

    def read(self, listed: Listed, wanted: np.ndarray, *, used: Sequence[int] | np.ndarray) -> Tensor:
        """Fitted frames.

        Args:
            listed: the file.
            wanted: source frames, any order, repeats allowed.
            used: all source frames that will ever be asked of this file; kept decoded where the file is small.

        Raises:
            BadClip: the file cannot be read.
            OSError: neither can the disk.
        """
        if self.config.cache == "memory" and listed.path not in self._kept:
            self._kept[listed.path] = self._decode(listed, np.unique(np.asarray(used)))
        kept = self._kept.get(listed.path)
        if kept is not None:
            return kept[1][torch.from_numpy(np.searchsorted(kept[0], wanted))]
        distinct, back = np.unique(wanted, return_inverse=True)
        return self._fetch(listed, distinct)[torch.from_numpy(back)]

    def _decode(self, listed: Listed, source: np.ndarray) -> tuple[np.ndarray, Tensor] | None:
        """A small file whole, or None where it is too large for what is left or breaks on the way."""
        height, width = covering(listed.height, listed.width, height=self.height, width=self.width)
        value = 1 if listed.value_range is None else 4
        need = len(source) * self.config.channels * height * width * value
        worker = get_worker_info()
        budget = _MEMORY // (worker.num_workers if worker is not None else 1)
        if self._bytes + need > budget or listed.frames * listed.height * listed.width > _DECODE:
            return None
        try:
            pictures = self._fetch(listed, source)
        except (BadClip, OSError):
            return None  # its sound windows are still read one by one
        self._bytes += pictures.numel() * pictures.element_size()
        self._files.pop(listed.path, None)
        return source, pictures

    def _fetch(self, listed: Listed, source: np.ndarray) -> Tensor:
        """Distinct ascending source frames from the file, fitted."""
        file = self._file(listed)
        step = max(1, _CHUNK // (listed.channels * listed.height * listed.width))
        crop = (0.5, 0.5) if self.config.crop == "center" else None
        fitted = [
            fit(
                file.read(source[start : start + step].tolist()),
                channels=self.config.channels,
                height=self.height,
                width=self.width,
                crop=crop,
            ).contiguous()  # a cut window must not hold the whole picture in memory
            for start in range(0, len(source), step)
        ]
        return fitted[0] if len(fitted) == 1 else torch.cat(fitted)

    def _file(self, listed: Listed) -> ClipFile:
        file = self._files.pop(listed.path, None)
        if file is None:
            file = open_clip(self.root / listed.path, value_range=self.config.value_range)
        self._files[listed.path] = file
        while len(self._files) > _OPEN:
            self._files.popitem(last=False)
        return file
