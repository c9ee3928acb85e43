# SPDX-License-Identifier: Apache-2.0
"""What a clip's frames are like by themselves, with no truth beside them: variance, spectrum, period, motion.

Compared between drawn and real clips, lead time by lead time, they tell of drift: a field that blurs loses the power of
fine scales, one that explodes gains variance, one that freezes loses its period. Everything in float64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor

# of the recurrence of a clip: how much closer than usual a clip must come back to itself, and how close to its best
_RECURS, _AS_GOOD = 0.5, 0.2


def variance_by_frame(frames: Num[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch"]:
    """Variance of each frame over its pixels, averaged over channels, in squared units of the values.

    Example:
        >>> variance_by_frame(torch.tensor([0.0, 2.0, 0.0, 2.0]).reshape(1, 1, 2, 2)).tolist()
        [1.0]
    """
    return frames.to(torch.float64).var((-2, -1), correction=0).mean(-1)


def spectrum_by_frame(frames: Num[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch k"]:
    """Power of each frame by spatial scale: |F|^2 / (h w), averaged over rings of equal wavelength and over channels.

    Ring k = 1, 2, … holds the waves of about min(h, w) / k pixels; the last is that of two pixels. White noise of
    variance v has about v in every ring. Frames are taken as they are, without a taper at their edges.

    Args:
        frames: in any number of leading axes, at least 2 pixels a side.

    Returns:
        min(h, w) // 2 values per frame, in squared units of the values, coarse scales first.

    Raises:
        ValueError: frames of one row or column.

    Example:
        >>> wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 16, 16)
        >>> spectrum_by_frame(wave).argmax().item() + 1
        3
    """
    height, width = frames.shape[-2:]
    short = min(height, width)
    if short < 2:
        raise ValueError(f"a spectrum needs frames of 2 x 2 pixels at least; these are {height} x {width}.")
    power = torch.fft.fft2(frames.to(torch.float64)).abs().square().mean(-3) / (height * width)
    along = [torch.fft.fftfreq(n, dtype=torch.float64, device=frames.device) * short for n in (height, width)]
    ring = torch.hypot(along[0][:, None], along[1]).round().long().flatten()
    inside = (ring >= 1) & (ring <= short // 2)
    ring = ring[inside] - 1
    total = power.new_zeros(*power.shape[:-2], short // 2)
    total.index_add_(-1, ring, power.flatten(-2)[..., inside])
    return total / torch.bincount(ring, minlength=short // 2)


def period(frames: Num[Tensor, "t c h w"]) -> float:
    """After how many frames a clip comes back to itself, to a fraction of a frame; nan where it does not.

    D(n) = mean |x_(t+n) - x_t|^2 is 0 at n = 0, rises, and falls again at the period; it is the autocorrelation upside
    down, without a mean to take off, which clips of few periods do not give. The first minimum as deep as the deepest
    (shallow ones are of overtones, later ones of multiples) is placed by the parabola through its neighbours.

    Args:
        frames: a clip that should hold a period and a third at least.

    Returns:
        Frames per period; nan if no minimum lies below half the highest D, as for a still, a drifting or a random clip.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(32) / 7.3
        >>> round(period(torch.stack([angle.cos(), angle.sin()], 1).reshape(32, 1, 1, 2)), 1)
        7.3
    """
    x = frames.to(torch.float64).flatten(1)
    distance = [0.0, *((x[lag:] - x[:-lag]).square().mean().item() for lag in range(1, len(x)))]
    highest, rising = 0.0, []
    for lag in range(1, len(x) - 1):
        highest = max(highest, distance[lag])
        if distance[lag - 1] > distance[lag] <= distance[lag + 1] and distance[lag] < _RECURS * highest:
            rising.append(lag)
    if not rising:
        return math.nan
    deepest = min(distance[lag] for lag in rising)
    lag = next(n for n in rising if distance[n] <= deepest + _AS_GOOD * (highest - deepest))
    before, here, after = distance[lag - 1 : lag + 2]
    return lag + 0.5 * (before - after) / (before - 2 * here + after)


def motion_amount(clip: Num[Tensor, "t c h w"]) -> float:
    """How much moves in a clip: the mean absolute difference of neighbouring frames, in the units of the values.

    Raises:
        ValueError: fewer than two frames.

    Example:
        >>> motion_amount(torch.tensor([3, 5, 1], dtype=torch.uint8).reshape(3, 1, 1, 1))
        3.0
    """
    if len(clip) < 2:
        raise ValueError(f"motion is seen between two frames; this clip has {len(clip)}.")
    return clip.to(torch.float64).diff(dim=0).abs().mean().item()
