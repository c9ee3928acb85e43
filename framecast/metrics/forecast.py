# SPDX-License-Identifier: Apache-2.0
"""How good drawn futures are when the truth is known: CRPS and PSNR, in the units of the values given.

RVD's paper, appendix A, sums over the 256 grey levels; on 8-bit values that sum is the empirical estimator exactly, so
nothing here loops over levels. For figures "in 8-bit units" quantise both sides with `eight_bit` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from framecast.metrics.image import psnr


def eight_bit(values: Num[Tensor, "*shape"], *, value_range: tuple[float, float]) -> UInt8[Tensor, "*shape"]:
    """Values of a range as grey levels 0 to 255, rounded to nearest; uint8 stays as it is.

    Example:
        >>> eight_bit(torch.tensor([-1.0, 0.0, 1.0]), value_range=(-1.0, 1.0)).tolist()
        [0, 128, 255]
    """
    if values.dtype == torch.uint8:
        return values
    low, high = value_range
    return ((values - low) * (255.0 / (high - low))).clamp(0, 255).round().to(torch.uint8)


def crps(
    samples: Num[Tensor, "s *shape"],
    truth: Num[Tensor, "*shape"],
    *,
    estimator: Literal["empirical", "fair"] = "empirical",
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
    kind = torch.float64 if torch.float64 in (samples.dtype, truth.dtype) else torch.float32
    x, y = samples.to(kind), truth.to(kind)
    error = (x - y).abs().mean(0)
    if count == 1:
        return error
    ordered = x.sort(dim=0).values
    weights = 2.0 * torch.arange(1, count + 1, dtype=kind, device=x.device) - count - 1
    spread = torch.tensordot(weights, ordered, dims=1)
    return error - spread / (count * (count if estimator == "empirical" else count - 1))


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
        "crps": crps(samples, truth).mean((1, 2, 3)),
        "crps_fair": crps(samples, truth, estimator="fair").mean((1, 2, 3)),
        "psnr": psnr(samples, truth).mean(0),
    }
    means = {name: round(values.mean().item(), 4) for name, values in frames.items()}
    return {**means, "per_frame": {name: [round(v, 4) for v in values.tolist()] for name, values in frames.items()}}
