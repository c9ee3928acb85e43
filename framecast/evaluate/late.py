# SPDX-License-Identifier: Apache-2.0
"""What a forecast is like long after anybody could know where things are: variance, power by scale, period.

From lead `LATE` on the frames of a sample are described by themselves and set beside the same of the truth, so that a
phase that was lost costs nothing, and blur, noise, growth and standstill show. No paper has such figures.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import UInt8
from torch import Tensor

from framecast.metrics.field import period, spectrum_by_frame, variance_by_frame

LATE = 100  # leads count from 1, the first frame that is not given
_FEWEST = 32  # late frames of which anything is said
_TINY = 1e-6  # squared 8-bit levels; less is nothing


def late(made: UInt8[Tensor, "s t c h w"], truth: UInt8[Tensor, "t c h w"]) -> dict[str, Tensor]:
    """Figures of the late frames of some samples; all frames are unknown ones, from lead 1 on.

    Everything is the mean over late frames and samples beside that of the truth:

    - `late_variance`: ratio of the variances in space;
    - `late_spectrum`: exp of the mean over wave numbers of |log ratio of powers|: 1, or 1.2 for 20 % off;
    - `late_power_2_4`, `late_power_4_8`, …: ratio of the power of waves of 2 to 4, 4 to 8, … pixels;
    - `late_period`: median over samples of the ratio of periods, nan where nothing recurs; `late_recurring`: the share
      of samples that recur, nan where the truth does not;
    - `drift_fine`: by frame, ratio of the power of waves of 2 to 4 pixels.

    Args:
        made: samples.
        truth: what followed.

    Returns:
        One value each, `drift_fine` one per frame; nothing where the forecast ends too early for a period.

    Example:
        >>> waves = torch.arange(8.0) * 0.8 - torch.arange(140)[:, None] * 0.7
        >>> film = (128 + 90 * waves.sin()).to(torch.uint8)[:, None, None].expand(-1, 1, 8, 8)
        >>> figures = late(film[None], film)
        >>> figures["late_variance"].item(), figures["late_spectrum"].item(), figures["late_period"].item()
        (1.0, 1.0, 1.0)
    """
    begin = LATE - 1
    if len(truth) < begin + _FEWEST:
        return {}
    powers = torch.stack([spectrum_by_frame(sample) for sample in made]).mean(0)  # (frames, rings)
    wanted, octaves = spectrum_by_frame(truth), _octaves(powers.shape[-1])
    variances = (variance_by_frame(frames).mean() for frames in (made[:, begin:], truth[begin:]))
    spectra = _ratio(powers[begin:].mean(0), wanted[begin:].mean(0))
    told = {"late_variance": _ratio(*variances), "late_spectrum": spectra.log().abs().mean().exp()}
    for shortest, rings in octaves.items():
        within = (power[begin:, rings].sum(1).mean() for power in (powers, wanted))
        told[f"late_power_{shortest}_{2 * shortest}"] = _ratio(*within)
    true = period(truth[begin:])
    periods = torch.tensor([period(sample[begin:]) for sample in made], dtype=torch.float64) / true
    told["late_period"] = periods.nanquantile(0.5)
    told["late_recurring"] = periods.isfinite().double().mean() if math.isfinite(true) else torch.tensor(math.nan)
    fine = (power[:, octaves[2]].sum(1) for power in (powers, wanted))
    return {name: value.reshape(1) for name, value in told.items()} | {"drift_fine": _ratio(*fine)}


def _octaves(rings: int) -> dict[int, slice]:
    """Rings of each octave, by its shortest wave in pixels; ring k = 1, 2, … holds waves of 2 rings / k pixels."""
    found, last, shortest = {}, rings, 2
    while last:
        first = -(-rings // shortest)
        found[shortest] = slice(first - 1, last)
        last, shortest = first - 1, 2 * shortest
    return found


def _ratio(made: Tensor, wanted: Tensor) -> Tensor:
    return made.clamp(min=_TINY) / wanted.clamp(min=_TINY)
