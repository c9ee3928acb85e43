# SPDX-License-Identifier: Apache-2.0
"""Scores of the samples of one window against what really followed, by the groups of metrics that a protocol names.

Both sides are quantised to 8 bits first, whatever the data's units, so that figures of different data compare; CRPS is
also given in the units of float data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from framecast.draws import mix
from framecast.evaluate.late import LATE, late
from framecast.metrics.ensemble import best_of, diversity, mode_coverage, ranks, spread_skill
from framecast.metrics.forecast import crps_by_frame, eight_bit
from framecast.metrics.image import psnr, psnr_clip, ssim
from framecast.nn.perceptual import LPIPS
from framecast.video import Clip

Better = Literal["lower", "higher", "none"]


@dataclass(frozen=True)
class Metric:
    """How a figure is called and read."""

    label: str
    unit: str
    better: Better
    how: str = ""  # it is defined, in a few words
    everywhere: bool = True  # whether every window has it


_LATE = f"from lead {LATE} on"
METRICS: dict[str, Metric] = {
    "crps_fair": Metric("fair CRPS", "8-bit levels", "lower", "unbiased in the number of samples"),
    "crps": Metric("CRPS", "8-bit levels", "lower", "of the step distribution, as in the RVD paper"),
    "crps_fair_data": Metric("fair CRPS", "data units", "lower"),
    "psnr": Metric("PSNR of a sample", "dB", "higher", "per frame, at most 100 dB (equal frames); mean over samples"),
    "psnr_of_mean": Metric("PSNR of the mean forecast", "dB", "higher", "per frame"),
    "psnr_clip": Metric("PSNR of a clip", "dB", "higher", "from the squared error of the whole clip"),
    "ssim": Metric("SSIM", "", "higher", "Gaussian 11x11, per channel, valid positions; mean over samples"),
    "lpips_alex": Metric("LPIPS (AlexNet)", "", "lower", "v0.1, mean over samples"),
    "lpips_vgg": Metric("LPIPS (VGG-16)", "", "lower", "v0.1, mean over samples"),
    "diversity": Metric("diversity", "8-bit levels", "none", "mean distance (root mean square) of two samples"),
    "spread": Metric("spread", "8-bit levels", "none", "standard deviation of the samples, corrected for their number"),
    "skill": Metric("error of the mean", "8-bit levels", "lower", "root mean square, of the mean forecast"),
    "mode_coverage": Metric(
        "mode coverage", "", "higher", "true futures found, over what true draws find; of at most half as many samples"
    ),
    "drift_mean": Metric("drift of the mean", "8-bit levels", "none", "mean level of samples minus that of the truth"),
    "drift_variance": Metric("drift of the variance", "", "none", "variance in space over that of the truth"),
    "drift_fine": Metric("drift of the finest scale", "", "none", "power of waves of 2 to 4 pixels over the truth's"),
    "late_variance": Metric(f"variance {_LATE}", "", "none", "over that of the truth"),
    "late_spectrum": Metric(
        f"spectrum {_LATE}", "", "lower", "factor by which the power of a scale is off, 1 where none is; geometric mean"
    ),
    "late_period": Metric(
        f"period {_LATE}", "", "none", "over that of the truth; median of the samples that recur", everywhere=False
    ),
    "late_recurring": Metric(
        f"share of samples that recur {_LATE}", "", "higher", "where the truth does", everywhere=False
    ),
}


def metric(name: str) -> Metric:
    """How the metric of this name is called; names of best-of-N carry their N, those of scales the scale."""
    if name.startswith("best_of_"):
        count, what = name.removeprefix("best_of_").split("_", 1)
        base = METRICS[what]
        return Metric(f"{base.label.removesuffix(' of a sample')}, best of {count}", base.unit, base.better,
                      "of the sample with the best clip mean; it sees the truth")  # fmt: skip
    if name.startswith("late_power_"):
        waves = "–".join(name.removeprefix("late_power_").split("_"))
        return Metric(f"power at {waves} pixels {_LATE}", "", "none", "of waves so long, over that of the truth")
    return METRICS[name]


@dataclass(frozen=True)
class Scored:
    """Figures of one window."""

    values: dict[str, np.ndarray]  # metric -> (unknown frames,), or (1,) where it is of the whole window
    ranks: np.ndarray | None = None  # counts of the truth's rank among the samples, (S + 1,)
    squares: dict[str, np.ndarray] = field(default_factory=dict)  # spread and skill before the root, per frame


def score(
    video: Tensor,
    truth: Clip,
    known: Sequence[int],
    groups: Sequence[str],
    *,
    lpips: LPIPS | None = None,
    futures: Callable[[], Tensor] | None = None,
    window: str = "",
    quantise: Literal["round", "truncate"] = "round",
) -> Scored:
    """All figures of one window.

    Args:
        video: samples (S, T, C, H, W) in the truth's dtype and units.
        truth: the window.
        known: frames that were given; the others are scored.
        groups: of metrics, see `evaluate.protocols.METRIC_GROUPS`; those of sets of clips are passed over.
        lpips: for the group lpips; None leaves it out.
        futures: gives true futures (n, unknown frames, C, H, W) uint8, for the group modes.
        window: its name; ties of ranks are broken by it.
        quantise: how values that are no bytes become levels, on both sides.
    """
    assert truth.value_range is not None
    drawn = [i for i in range(len(truth)) if i not in set(known)]
    made = eight_bit(video[:, drawn], value_range=truth.value_range, how=quantise)
    wanted = eight_bit(truth.frames[drawn], value_range=truth.value_range, how=quantise)
    told: dict[str, Tensor] = {}
    rank, squares = None, {}
    if "crps" in groups:
        told["crps_fair"] = crps_by_frame(made, wanted, estimator="fair")
        told["crps"] = crps_by_frame(made, wanted, estimator="empirical")
        if video.is_floating_point():
            told["crps_fair_data"] = crps_by_frame(video[:, drawn], truth.frames[drawn], estimator="fair")
    each = _of_samples(made, wanted, groups, lpips)
    told |= {name: values.mean(0) for name, values in each.items()}
    if "psnr" in groups:
        told["psnr_of_mean"] = psnr(made.double().mean(0), wanted)
    if "psnr_clip" in groups:
        told["psnr_clip"] = psnr_clip(made, wanted).mean().reshape(1)
    if "best_of" in groups and len(made) > 1:
        for name, values in each.items():
            larger = METRICS[name].better == "higher"
            told[f"best_of_{len(made)}_{name}"] = best_of(values, larger=larger)
    if "ensemble" in groups and len(made) > 1:
        variance, error = spread_skill(made, wanted)
        squares = {"spread": variance.double().numpy(), "skill": error.double().numpy()}
        told |= {"diversity": diversity(made), "spread": variance.sqrt(), "skill": error.sqrt()}
        rank = ranks(made, wanted, seed=mix("ranks", window)).numpy()
    if "modes" in groups and futures is not None and len(made) > 1:
        true = futures()
        told["mode_coverage"] = torch.tensor([mode_coverage(made[: len(true) // 2], true)])
    if "drift" in groups:
        told |= _drift(made.double(), wanted.double())
    if "late" in groups:
        told |= late(made, wanted)
    return Scored({name: values.double().numpy() for name, values in told.items()}, rank, squares)


def _of_samples(made: Tensor, wanted: Tensor, groups: Sequence[str], lpips: LPIPS | None) -> Mapping[str, Tensor]:
    """Metrics of single samples, (S, frames) each."""
    each: dict[str, Tensor] = {}
    if "psnr" in groups:
        each["psnr"] = psnr(made, wanted)
    if "ssim" in groups:
        each["ssim"] = ssim(made, wanted)
    if "lpips" in groups and lpips is not None:
        frames = [lpips.distance(made[:, t], wanted[t : t + 1]) for t in range(len(wanted))]
        each[f"lpips_{lpips.net}"] = torch.stack(frames, dim=1)
    return each


def _drift(made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """How far the level and the contrast of late frames wander off."""
    space = (-3, -2, -1)
    share = made.var(space, unbiased=False).mean(0) / wanted.var(space, unbiased=False).clamp(min=1e-6)
    return {"drift_mean": made.mean(space).mean(0) - wanted.mean(space), "drift_variance": share}
