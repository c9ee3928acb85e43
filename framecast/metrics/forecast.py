# SPDX-License-Identifier: Apache-2.0
"""How good drawn futures are when the truth is known: CRPS by value, frame and place, in the units of the values.

RVD's paper, appendix A, sums over the 256 grey levels; on 8-bit values that sum is the empirical estimator exactly, so
nothing here loops over levels. For figures "in 8-bit units" quantise both sides with `eight_bit` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from framecast.metrics.image import psnr

Estimator = Literal["empirical", "fair"]


def eight_bit(
    values: Num[Tensor, "*shape"],
    *,
    value_range: tuple[float, float],
    how: Literal["round", "truncate"] = "round",
) -> UInt8[Tensor, "*shape"]:
    """Values of a range as grey levels 0 to 255, rounded to nearest (or cut off, as some papers do); uint8 stays.

    Example:
        >>> eight_bit(torch.tensor([-1.0, 0.0, 1.0]), value_range=(-1.0, 1.0)).tolist()
        [0, 128, 255]
    """
    if values.dtype == torch.uint8:
        return values
    low, high = value_range
    levels = ((values - low) * (255.0 / (high - low))).clamp(0, 255)
    return (levels.round() if how == "round" else levels.floor()).to(torch.uint8)


def crps(
    samples: Num[Tensor, "s *shape"],
    truth: Num[Tensor, "*shape"],
    *,
    estimator: Estimator = "empirical",
) -> Float[Tensor, "*shape"]:
    """Continuous ranked probability score of every value, lower is better.

    E|X - y| - E|X - X'| / 2 over the samples X, X'. With them sorted, the second term is
    sum_i (2 i - S - 1) x_(i) / S^2 (`empirical`: the score of the step distribution, too high by E|X - X'| / (2 S) on
    average) or the same over S (S - 1) (`fair`: unbiased in S). One sample gives the absolute error in both.

    Args:
        samples: S independent forecasts of the same thing.
        truth: what really followed.
        estimator: `empirical` compares with published values, `fair` compares different S.

    Returns:
        A score per value, in the units of the values; average over what you like (pixels first for a curve over
        frames, channels only for a map).

    Raises:
        ValueError: no sample, or an unknown estimator.

    Source: RVD paper, appendix A; Gneiting and Raftery (2007), equation 21; Ferro (2014) for the fair form.

    Example:
        >>> crps(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0])).item()
        0.5
    """
    if estimator not in ("empirical", "fair"):
        raise ValueError(f"estimator is {estimator!r}; it can be empirical or fair.")
    count = samples.shape[0]
    if count == 0:
        raise ValueError("CRPS needs at least one sample.")
    # float32 is exact for 8-bit values up to 250 samples: every partial sum stays below 2^24
    exact = samples.dtype == truth.dtype == torch.uint8 and count <= 250
    kind = torch.float32 if exact else torch.float64
    x, y = samples.to(kind), truth.to(kind)
    error = (x - y).abs().mean(0)
    if count == 1:
        return error
    ordered = _sorted(x)
    weights = 2.0 * torch.arange(1, count + 1, dtype=kind, device=x.device) - count - 1
    spread = torch.tensordot(weights, ordered, dims=1)
    return error - spread / (count * (count if estimator == "empirical" else count - 1))


def _sorted(values: Tensor) -> Tensor:
    """Ascending along the first axis; on a CPU numpy sorts across rows in a tenth of torch's time."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=0))
    return values.sort(dim=0).values


def crps_maps(
    samples: Num[Tensor, "s t c h w"], truth: Num[Tensor, "t c h w"], *, estimator: Estimator = "empirical"
) -> Float[Tensor, "t h w"]:
    """CRPS of every pixel, averaged over channels: where a forecast is wrong (RVD paper, figure 4).

    Frames are worked on one by one, so that memory is bounded by one frame of all samples.

    Args:
        samples: S independent forecasts of the same frames, 8-bit or in the units of the data.
        truth: what really followed.
        estimator: as in `crps`.

    Returns:
        In the units of the values, float64.

    Raises:
        ValueError: as `crps` does, or samples whose shape is not that of the truth.
    """
    if samples.shape[1:] != truth.shape:
        told = [" x ".join(map(str, shape)) for shape in (samples.shape[1:], truth.shape)]
        raise ValueError(f"samples of shape {told[0]} cannot be judged by a truth of {told[1]}.")
    frames = [crps(made, true, estimator=estimator) for made, true in zip(samples.unbind(1), truth)]
    return torch.stack([scores.to(torch.float64).mean(0) for scores in frames])


def crps_by_frame(
    samples: Num[Tensor, "s t c h w"], truth: Num[Tensor, "t c h w"], *, estimator: Estimator = "empirical"
) -> Float[Tensor, "t"]:
    """CRPS of every frame, averaged over its values (see `crps_maps`).

    Figure 3 of the RVD paper draws 1 / CRPS: invert the mean over clips of a frame, not each clip's value.

    Example:
        >>> samples = torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1, 1).expand(2, 3, 1, 4, 4)
        >>> crps_by_frame(samples, torch.ones(3, 1, 4, 4)).tolist()
        [0.5, 0.5, 0.5]
    """
    return crps_maps(samples, truth, estimator=estimator).mean((1, 2))


def hold(known: Sequence[bool]) -> list[int]:
    """Persistence as indices: for every frame the nearest given one before it, or else the first given one after.

    Example:
        >>> hold([False, True, False, False, True])
        [1, 1, 1, 1, 4]
    """
    source, held = list(known).index(True), []
    for i, given in enumerate(known):
        source = i if given else source
        held.append(source)
    return held


def scores(samples: Num[Tensor, "s t c h w"], truth: Num[Tensor, "t c h w"]) -> dict[str, Any]:
    """All figures of one forecast: means over its frames, and each frame by itself.

    Returns:
        `crps` (empirical) and `crps_fair` in the units of the values, `psnr` in decibels (of a sample, averaged over
        samples), and the same three as lists over frames in `per_frame`.
    """
    frames = {
        "crps": crps_by_frame(samples, truth),
        "crps_fair": crps_by_frame(samples, truth, estimator="fair"),
        "psnr": psnr(samples, truth).mean(0),
    }
    means = {name: round(values.mean().item(), 4) for name, values in frames.items()}
    return {**means, "per_frame": {name: [round(v, 4) for v in values.tolist()] for name, values in frames.items()}}
