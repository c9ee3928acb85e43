# SPDX-License-Identifier: Apache-2.0
"""Frames to the size a feature network expects, in each of the conventions that published values were made with.

All are bilinear and none smooths before it shrinks. They differ in where an output pixel looks in the input, which
shifts frames by a fraction of a pixel, and feature distances with it.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Convention = Literal["half_pixel", "align_corners", "tf1"]
CONVENTIONS = get_args(Convention)


def resize(
    frames: Float[Tensor, "*batch h w"], height: int, width: int, *, convention: Convention = "half_pixel"
) -> Float[Tensor, "*batch height width"]:
    """Bilinear interpolation to another size, without antialiasing; neither side keeps its proportion to the other.

    With n input and m output positions, output i looks at the input position (i + 1/2) n/m - 1/2 (`half_pixel`: the
    default of PyTorch), i (n - 1)/(m - 1) (`align_corners`: of Chainer) or i n/m (`tf1`: of TensorFlow 1). Positions
    outside are those of the nearest pixel.

    Args:
        frames: any leading axes.
        height: rows of the result.
        width: columns of the result.
        convention: where output pixels look.

    Raises:
        ValueError: an unknown convention.

    Example:
        >>> line = torch.tensor([[0.0, 1.0]])
        >>> [resize(line, 1, 4, convention=c)[0].tolist() for c in ("half_pixel", "tf1")]
        [[0.0, 0.25, 0.75, 1.0], [0.0, 0.5, 1.0, 1.0]]
    """
    if convention in CONVENTIONS and frames.shape[-2:] == (height, width):
        return frames  # in every convention
    if convention == "tf1":
        return _tf1(_tf1(frames, width).mT, height).mT
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; it can be half_pixel, align_corners or tf1.")
    planes = frames.reshape(-1, 1, *frames.shape[-2:])
    made = F.interpolate(planes, (height, width), mode="bilinear", align_corners=convention == "align_corners")
    return made.reshape(*frames.shape[:-2], height, width)


def _tf1(frames: Tensor, width: int) -> Tensor:
    """The last axis, output i at input position i n/m."""
    size = frames.shape[-1]
    position = torch.arange(width, dtype=frames.dtype, device=frames.device) * (size / width)
    left = position.floor().long().clamp(max=size - 1)
    right = (left + 1).clamp(max=size - 1)
    return torch.lerp(frames[..., left], frames[..., right], position - left)


def short_side_crop(frames: Float[Tensor, "*batch h w"], side: int) -> Float[Tensor, "*batch side side"]:
    """The shorter side to `side`, the other in proportion (rounded up), and the centre square of that.

    The same as `resize(..., convention="half_pixel")` where frames are square.

    Source: VideoGPT's and PVDM's evaluation code.

    Example:
        >>> short_side_crop(torch.zeros(3, 30, 47), 15).shape
        torch.Size([3, 15, 15])
    """
    height, width = frames.shape[-2:]
    scale = side / min(height, width)
    rows, columns = (side if size == min(height, width) else math.ceil(size * scale) for size in (height, width))
    made = resize(frames, rows, columns, convention="half_pixel")
    top, left = (rows - side) // 2, (columns - side) // 2
    return made[..., top : top + side, left : left + side]
