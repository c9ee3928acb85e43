# SPDX-License-Identifier: Apache-2.0
"""RaMViD's settings (no torch). Sources: papers A and B, the official code at d048025; see README.md here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from framecast.experiment import Experiment, SampleOptions, StageConfig


@dataclass(frozen=True, kw_only=True)
class RaMViDConfig:
    """The 3D U-Net and its diffusion process."""

    width: int = 128  # channels of the first level, a multiple of `groups`
    multipliers: tuple[int, ...] = (
        1,
        2,
        3,
        4,
    )  # channels of each level, times width; each further level halves the size
    res_blocks: int = 2  # residual blocks per level
    attention: tuple[int, ...] = (4, 8)  # levels with attention, by down-sampling factor; the middle always has it
    heads: int = 4  # attention heads on the way down and in the middle
    heads_up: int = 0  # on the way up; 0: the same
    groups: int = 32  # of GroupNorm
    scale_shift: bool = True  # time embedding scales and shifts the normalised features; False: is added
    dropout: float = 0.0
    learned_variance: bool = False  # twice the output channels: noise and the position in the log-variance range
    variance: Literal["large", "small"] = (
        "large"  # fixed reverse variance when it is not learned: beta, or the posterior's
    )
    target: Literal["eps", "x_0", "v"] = "eps"  # what the network predicts
    time_frames: int = 0  # clip length for which time is resampled too (`scale_time_dim`); 0: time is never resampled
    classes: int = 0  # class labels (foreign weights only); 0: none
    patch: int = 1  # space-to-depth factor before the stem and after the head; 1 as published
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    noise_levels: int = 1000  # S


@dataclass(frozen=True, kw_only=True)
class DiffusionStageConfig(StageConfig):
    """RaMViD's only stage, `diffusion`."""

    max_known: int = 4  # K: most known frames drawn in training, at least 1 and below clip_frames
    unconditional_rate: float = 0.25  # p_U: share of clips without any known frame
    known_range: tuple[int, int] | None = None  # first and last position a known frame may take; None: the whole clip
    loss_over: Literal["unknown", "all"] = "unknown"  # frames in the loss (`exclude_conditional`)
    noise_level_draw: Literal["uniform", "harmonic"] = (
        "uniform"  # harmonic: with probability 1 / (t + 1), weighted back
    )


@dataclass(frozen=True, kw_only=True)
class RaMViDStages:
    """All stages of the system."""

    diffusion: DiffusionStageConfig = field(default_factory=DiffusionStageConfig)


@dataclass(frozen=True, kw_only=True)
class RaMViDSampling(SampleOptions):
    """How the unknown frames are drawn."""

    sampler: Literal["ddpm", "ddim", "dpmpp_2m"] = "ddpm"
    steps: int | str = (
        100  # sampler steps: n, or "a,b,c" per equal section of the noise levels, or "ddimN" (ramvid.md 4)
    )
    eta: float = 0.0  # ddim: share of fresh noise, 0 to 1
    clip: bool = True  # clamp the estimate of the clean clip to -1 to 1
    resample: int = 1  # ddpm: visits of every noise level, re-noised in between (RePaint-like)
    conditioning: Literal["clean", "replacement"] = "clean"  # known frames go in clean, or as draws of q(x_t | x_0)
    overlap: int = 4  # finished frames that a later window of a long video sees
    window: int = 0  # frames of a window; 0: the model's clip_frames
    label: int | None = None  # class to draw, for networks with classes


@dataclass(frozen=True, kw_only=True)
class RaMViDExperiment(Experiment):
    """A whole RaMViD run."""

    system: Literal["ramvid"] = "ramvid"
    model: RaMViDConfig = field(default_factory=RaMViDConfig)
    stages: RaMViDStages = field(default_factory=RaMViDStages)
    sample: RaMViDSampling = field(default_factory=RaMViDSampling)
