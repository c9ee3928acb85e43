# SPDX-License-Identifier: Apache-2.0
"""RVD's settings (no torch). Sources: the paper and the official code at 309fbe0; see README.md here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from framecast.experiment import Experiment, SampleOptions, StageConfig


@dataclass(frozen=True, kw_only=True)
class RVDConfig:
    """The two recurrent networks, the denoiser and its diffusion process."""

    width: int = 48  # channels of the first level ("channel dim"), a multiple of `groups`
    multipliers: tuple[int, ...] = (1, 2, 4, 8)  # channels of each level of context network and denoiser, times width
    transform_multipliers: tuple[int, ...] = (1, 2, 2, 4)  # the same of the transform network; both begin with 1
    groups: int = 8  # of GroupNorm
    prediction: Literal["network", "previous", "none"] = (
        "network"  # mu, what a frame is expected to be: the transform network's, the frame before (SimpleRVD), 0 (VD)
    )
    residual: Literal["diffusion", "none"] = "diffusion"  # none: mu is the forecast, a deterministic one
    sigma: float = 1.0  # scale of the residual: frame = mu + sigma * residual, Eq. 5
    target: Literal["eps", "x_0", "v"] = "eps"  # what the denoiser predicts
    patch: int = 1  # space-to-depth factor in front of and behind every network; 1 as published
    schedule: Literal["linear", "scaled_linear", "cosine"] = "cosine"
    noise_levels: int = 1600  # N


@dataclass(frozen=True, kw_only=True)
class ForecastStageConfig(StageConfig):
    """RVD's only stage, `forecast`: all its networks learn together."""

    clip_frames: int = 8  # frames of a training clip: 2 + 6, as published
    context: int = 2  # frames in front of the first target
    past_noise: float = 0.0  # standard deviation of noise on the frames that are read (black -1, white 1); published: 0
    loss: Literal["l1", "l2"] = "l1"  # error of what the denoiser predicts (of mu, where there is no denoiser)


@dataclass(frozen=True, kw_only=True)
class RVDStages:
    """All stages of the system."""

    forecast: ForecastStageConfig = field(default_factory=ForecastStageConfig)


@dataclass(frozen=True, kw_only=True)
class RVDSampling(SampleOptions):
    """How the frames to come are drawn, one after another."""

    sampler: Literal["ddpm", "ddim", "dpmpp_2m", "mean"] = "ddpm"  # mean: frames are mu, without a residual
    steps: int | str = 1600  # sampler steps per frame: n, or "a,b,c" per equal section of the levels, or "ddimN"
    eta: float = 0.0  # ddim: share of fresh noise, 0 to 1
    bound: Literal["range"] | float | None = (
        "range"  # clamp of the estimated residual, either way: all it can be (2 / sigma, or 1 without prediction),
        # a number, or null for none
    )
    window: int = 0  # frames drawn before they are handed out; 0: the model's clip_frames


@dataclass(frozen=True, kw_only=True)
class RVDExperiment(Experiment):
    """A whole RVD run."""

    system: Literal["rvd"] = "rvd"
    model: RVDConfig = field(default_factory=RVDConfig)
    stages: RVDStages = field(default_factory=RVDStages)
    sample: RVDSampling = field(default_factory=RVDSampling)
