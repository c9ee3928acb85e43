# SPDX-License-Identifier: Apache-2.0
"""RaMViD's experiments (no torch): the published ones, each value with its source, and small ones for two cores.

Sources: A and B are the two versions of the paper (B, the anonymous one, has the appendices); code is the official
repository, revision d048025, with its README's commands. Not stated anywhere, hence code defaults: optimiser, clipping,
average of weights, precision, number of sampling steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from framecast.experiment import DataConfig, EmaConfig, OptimiserConfig
from framecast.systems.ramvid.config import (
    DiffusionStageConfig,
    RaMViDConfig,
    RaMViDExperiment,
    RaMViDSampling,
    RaMViDStages,
)

SOURCE = "Höppe et al., Diffusion Models for Video Prediction and Infilling; official code d048025"

OPTIMISER = OptimiserConfig(
    name="adamw",  # code: train_util.py; papers silent
    lr=2e-5,  # B, appendix A; README (code default 1e-4)
    betas=(0.9, 0.999),  # code default
    eps=1e-8,  # code default
    weight_decay=0.0,  # code default
    clip_norm=1.0,  # code default; papers silent
)
EMA = EmaConfig(
    decay=0.9999,  # code default; papers silent
    warmup=0.0,  # code: none
)


def bair64(unconditional_rate: float = 0.25) -> RaMViDExperiment:
    """BAIR robot pushing, 64x64, 20 frames.

    Published FVD of 1 -> 15 frames (table 1) for p_U of 0, 0.25, 0.5, 0.75: 86.41, 84.20, 85.03, 86.05; infilling
    {0, 15} (B, table 3): 85.68, 85.02, 87.04, 87.85. 235,071,875 parameters (B, table 1: 235M).
    """
    fvd = {0.0: ("86.41", "85.68"), 0.25: ("84.20", "85.02"), 0.5: ("85.03", "87.04"), 0.75: ("86.05", "87.85")}
    predicted, filled = fvd[unconditional_rate]
    return RaMViDExperiment(
        data=DataConfig(channels=3, size=64),  # A, 3.1: 64x64; code: resized, centre crop, native frame rate
        model=RaMViDConfig(
            width=128,  # code default; confirmed by the 235M of B, table 1
            multipliers=(1, 2, 3, 4),  # code, for 64 pixels
            res_blocks=2,  # A, 3.1
            attention=(4, 8),  # code default: at 16 and 8 pixels
            heads=4,  # code default
            groups=32,  # code
            scale_shift=True,  # code default; confirmed by the parameter count
            schedule="linear",  # A, 3.1
            noise_levels=1000,  # A, 3.1
            time_frames=0,  # README: scale_time_dim 0; A, 3.1: time is not encoded
        ),
        stages=RaMViDStages(
            diffusion=DiffusionStageConfig(
                clip_frames=20,  # A, 3.2
                batch=32,  # A, 3.2; issue 4 of the official repository: 4 on each of 8 devices
                accumulate=2,  # B, appendix A: micro-batches of 2, on 8 devices
                max_steps=250_000,  # A, 3.2
                precision="32",  # code default
                max_known=4,  # A, 3.1: K
                unconditional_rate=unconditional_rate,  # A, table 1; README: 0.25
                optimiser=OPTIMISER,
                ema=EMA,
                checkpoint_every=2_000,  # code default
            )
        ),
        sample=RaMViDSampling(
            sampler="ddpm",  # code default
            steps=1000,  # code default; not stated in the papers
            window=16,  # code default of video_sample; A, 3.2: 1 -> 15
        ),
        source=f"{SOURCE}; A section 3.2, B appendix A",
        published={"ramvid-bair-pred": f"FVD {predicted}", "ramvid-bair-infill": f"FVD {filled}"},
    )


def kinetics64(unconditional_rate: float = 0.25) -> RaMViDExperiment:
    """Kinetics-600, 64x64, 16 frames.

    Published FVD of 5 -> 11 frames (A, table 3) for p_U of 0, 0.25, 0.5, 0.75: 18.69, 16.46, 17.61, 27.64; completion
    (table 4) of {0, 1, 14, 15}: 10.68, 10.85, 10.86, 17.33, and of {0, 5, 10, 15}: 6.28, 4.91, 5.90, 7.29.
    308,343,427 parameters (B, table 2: 308M).
    """
    fvd = {
        0.0: ("18.69", "10.68", "6.28"),
        0.25: ("16.46", "10.85", "4.91"),
        0.5: ("17.61", "10.86", "5.90"),
        0.75: ("27.64", "17.33", "7.29"),
    }
    predicted, ends, even = fvd[unconditional_rate]
    bair = bair64()
    return replace(
        bair,
        model=replace(bair.model, res_blocks=3),  # A, 3.1
        stages=RaMViDStages(
            diffusion=replace(
                bair.stages.diffusion,
                clip_frames=16,  # A, 3.3
                batch=64,  # A, 3.3; issue 4: 8 on each of 8 devices
                accumulate=4,  # B, appendix A: micro-batches of 2, on 8 devices
                max_steps=500_000,  # A, 3.3
                unconditional_rate=unconditional_rate,  # A, table 3; README: 0.25
            )
        ),
        sample=replace(bair.sample, window=0),  # sampled at the length of training
        source=f"{SOURCE}; A section 3.3, B appendix A",
        published={
            "ramvid-k600-pred": f"FVD {predicted}",
            "ramvid-k600-infill-ends": f"FVD {ends}",
            "ramvid-k600-upsample": f"FVD {even}",
        },
    )


def ucf64(unconditional_rate: float = 0.75) -> RaMViDExperiment:
    """UCF-101, 64x64, 16 frames, for unconditional generation.

    Published Inception Score (table 5) for p_U of 0.5 and 0.75: 20.84 +- 0.08 and 21.71 +- 0.21.
    """
    score = {0.5: "20.84 +- 0.08", 0.75: "21.71 +- 0.21"}
    kinetics = kinetics64()
    return replace(
        kinetics,  # A, 3.4 and B, appendix D: the setting of Kinetics-600
        stages=RaMViDStages(
            diffusion=replace(
                kinetics.stages.diffusion,
                max_steps=450_000,  # B, appendix D
                unconditional_rate=unconditional_rate,  # table 5; README: 0.75
            )
        ),
        source=f"{SOURCE}; B appendix D",
        published={"ramvid-ucf-uncond": f"IS {score[unconditional_rate]}"},
    )


def vortex16() -> RaMViDExperiment:
    """Flow past a disc at 16x16 in grey, 8 frames: sized for two minutes on two cores. Ours, not published."""
    return RaMViDExperiment(
        data=DataConfig(channels=1, size=16),
        model=RaMViDConfig(
            width=24,
            multipliers=(1, 2),
            res_blocks=1,
            attention=(2,),
            groups=8,
            patch=2,  # a quarter of the positions
            schedule="cosine",  # small frames are drowned early by the linear one
            target="v",  # 300 steps on a real clip: prediction error 0.6 of that of eps, infilling 0.4
        ),
        stages=RaMViDStages(
            diffusion=DiffusionStageConfig(
                clip_frames=8,
                batch=16,
                max_steps=900,
                optimiser=OptimiserConfig(lr=1e-3, warmup_steps=50, schedule="cosine"),
                ema=EmaConfig(decay=0.995),
                checkpoint_every=300,
            )
        ),
        sample=RaMViDSampling(sampler="ddim", steps=20),
    )


def vortex32() -> RaMViDExperiment:
    """Flow past a disc at 32x32 in grey, 16 frames: the recipe of the bundled `vortex-ramvid`. Ours, not published.

    70 minutes on one to two cores that compute in bfloat16; about twice as long in float32.
    """
    small = vortex16()
    return replace(
        small,
        data=DataConfig(channels=1, size=32),
        model=replace(small.model, width=32, multipliers=(1, 2, 3), attention=(4,)),
        stages=RaMViDStages(
            diffusion=DiffusionStageConfig(
                clip_frames=16,
                batch=4,  # by trials of 150 s: 4 learns as fast as 8, and patch 4 at width 64 slower
                max_steps=14_000,
                precision="bf16",
                max_known=8,  # every second frame too, as interpolation needs
                unconditional_rate=0.15,
                optimiser=OptimiserConfig(lr=1e-3, warmup_steps=200, schedule="cosine"),
                ema=EmaConfig(decay=0.999),
                checkpoint_every=500,
                preview_every=2_500,
            )
        ),
        # by the sampler study (docs/models/vortex-ramvid.md): no worse than any longer chain tried
        sample=RaMViDSampling(sampler="dpmpp_2m", steps=10),
    )


def tiny32() -> RaMViDExperiment:
    """Any real video at 32x32 in colour, 8 frames: half an hour on two cores. Ours, not published."""
    small = vortex16()
    return replace(
        small,
        data=DataConfig(channels=3, size=32),
        model=replace(small.model, width=48, multipliers=(1, 2, 2), attention=(4,)),
        stages=RaMViDStages(
            diffusion=DiffusionStageConfig(
                clip_frames=8,
                batch=4,
                max_steps=1_700,
                optimiser=OptimiserConfig(lr=5e-4, warmup_steps=200, schedule="cosine"),
                ema=EmaConfig(decay=0.995),
                preview_every=500,
            )
        ),
        sample=RaMViDSampling(sampler="ddim", steps=50),
    )


PRESETS: dict[str, Callable[[], RaMViDExperiment]] = {
    "bair64": bair64,
    "bair64-pu0": partial(bair64, 0.0),
    "bair64-pu50": partial(bair64, 0.5),
    "bair64-pu75": partial(bair64, 0.75),
    "kinetics64": kinetics64,
    "kinetics64-pu0": partial(kinetics64, 0.0),
    "kinetics64-pu50": partial(kinetics64, 0.5),
    "kinetics64-pu75": partial(kinetics64, 0.75),
    "ucf64": ucf64,
    "ucf64-pu50": partial(ucf64, 0.5),
    "vortex16": vortex16,
    "vortex32": vortex32,
    "tiny32": tiny32,
}
