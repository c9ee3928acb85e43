# SPDX-License-Identifier: Apache-2.0
"""PVDM's experiments (no torch): the published ones, each value with its source, and small ones for two cores.

Sources: the paper with its tables 1, 2 and 4; code is the official repository, revision 793172f. Where they differ the
code's value stands. The paper's appendix, with the settings of PVDM-S, is known from other people's notes only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from framecast.experiment import DataConfig, EmaConfig, OptimiserConfig
from framecast.systems.pvdm.config import (
    AutoencoderConfig,
    AutoencoderStageConfig,
    DenoiserConfig,
    DiffusionStageConfig,
    PVDMConfig,
    PVDMExperiment,
    PVDMSampling,
    PVDMStages,
)

SOURCE = "Yu, Sohn, Kim, Shin, Video Probabilistic Diffusion Models in Projected Latent Space; official code 793172f"

PUBLISHED_EMA = EmaConfig(
    decay=0.9999,  # code; never reached: after 850,000 steps it is 0.99974
    warmup=10.0,  # code
    every=25,  # code; the first copy is taken at step 25 there, at step 1 here
)
SENSIBLE_EMA = replace(PUBLISHED_EMA, every=1)  # ours: as most diffusion models do, every step counts

# FVD of 16 and of 128 frames (table 1), IS (table 2); R-FVD and PSNR of both splits are the autoencoder's (table 4)
_TABLES = {
    "ucf-l": {
        "pvdm-fvd16-ucf": "FVD 343.6 by 400/400 steps, 398.9 by 200/200",
        "pvdm-fvd128-ucf": "FVD 648.4 by 400/400 steps, 639.7 by 200/200",
        "pvdm-is-ucf": "IS 74.40 ± 1.25",
    },
    "ucf-s": {"pvdm-fvd16-ucf": "FVD 457.4 by 100/20 steps", "pvdm-fvd128-ucf": "FVD 902.2 by 100/20 steps"},
    "sky-l": {
        "pvdm-fvd16-sky": "FVD 55.41 by 400/400 steps, 61.70 by 200/200",
        "pvdm-fvd128-sky": "FVD 125.2 by 400/400 steps, 137.2 by 200/200",
    },
    "sky-s": {"pvdm-fvd16-sky": "FVD 71.46 by 100/20 steps", "pvdm-fvd128-sky": "FVD 159.9 by 100/20 steps"},
}
_TABLE_4 = {
    "ucf": {"pvdm-recon-ucf-train": "R-FVD 25.87, PSNR 27.34", "pvdm-recon-ucf-test": "R-FVD 32.26, PSNR 26.99"},
    "sky": {"pvdm-recon-sky-train": "R-FVD 7.37, PSNR 34.33", "pvdm-recon-sky-test": "R-FVD 36.52, PSNR 32.68"},
}


def _published(data: str, size: str) -> dict[str, str]:
    return _TABLES[f"{data}-{size}"] | _TABLE_4[data]


def ucf101_256_l() -> PVDMExperiment:
    """PVDM-L on UCF-101, 256x256 in colour, clips of 16 frames. 62,064,399 and 528,273,412 parameters."""
    adversaries = OptimiserConfig(
        name="adamw",  # code; the paper says Adam
        lr=1e-4,  # code
        betas=(0.5, 0.9),  # code
        weight_decay=0.01,  # code: PyTorch's default
        clip_norm=1.0,  # code, of each discriminator by itself
    )
    return PVDMExperiment(
        data=DataConfig(
            channels=3,
            size=256,  # paper, section 4.1; code: centre crop, resized
            stride=1,  # code
        ),
        model=PVDMConfig(
            autoencoder=AutoencoderConfig(),  # code, `configs/autoencoder/base.yaml` and what is fixed beside it
            denoiser=DenoiserConfig(),  # code, `configs/latent-diffusion/base.yaml`
        ),
        stages=PVDMStages(
            autoencoder=AutoencoderStageConfig(
                clip_frames=16,  # paper; code
                batch=24,  # code: a clip on each of 8 devices in 3 micro-batches
                accumulate=3,  # code
                max_steps=87_000,  # phase A for 250,000 micro-batches, phase B for 12,000: the authors' advice
                adversarial_from=83_000,
                pixel_weight=4.0,  # code; by others' notes the paper's weights have the same ratios
                perceptual_weight=4.0,  # code
                adversarial_weight=1.0,  # code
                matching_weight=4.0,  # code; not in the paper
                optimiser=replace(adversaries, clip_norm=0.0),  # code: the autoencoder's gradients are not clipped
                discriminator_optimiser=adversaries,
                ema=EmaConfig(decay=0.0),  # code: none
                checkpoint_every=700,  # code: 2,000 micro-batches
            ),
            diffusion=DiffusionStageConfig(
                clip_frames=16,  # paper; code: two of them, 32 frames
                batch=64,  # code
                max_steps=850_000,  # code
                conditional=0.3,  # code
                draw="step",  # code; the paper's objective is draw: none
                optimiser=OptimiserConfig(
                    name="adamw",  # code
                    lr=1e-4,  # code
                    betas=(0.9, 0.999),  # code: PyTorch's default
                    weight_decay=0.01,  # code: PyTorch's default
                    clip_norm=0.0,  # code: none
                    warmup_steps=0,  # code: 10,000 are asked for and never made
                ),
                ema=PUBLISHED_EMA,
                checkpoint_every=10_000,  # code
            ),
        ),
        sample=PVDMSampling(
            sampler="ddim",  # code, section 4.1 of the paper
            steps="400/400",  # table 1
            eta=1.0,  # code
            guidance=0.0,  # code
        ),
        source=f"{SOURCE}; tables 1, 2 and 4",
        published=_published("ucf", "l"),
    )


def smaller(large: PVDMExperiment, data: str) -> PVDMExperiment:
    """PVDM-S: half the width of the denoiser, 132,163,588 parameters."""
    return replace(
        large,
        model=replace(large.model, denoiser=replace(large.model.denoiser, width=128)),  # others' notes of appendix D
        stages=replace(large.stages, diffusion=replace(large.stages.diffusion, max_steps=400_000)),  # the same notes
        sample=replace(large.sample, steps="100/20"),  # table 1
        published=_published(data, "s"),
    )


def sky_256_l() -> PVDMExperiment:
    """PVDM-L on SkyTimelapse; steps of the second stage are not stated, those of UCF-101 stand."""
    ucf = ucf101_256_l()
    diffusion = replace(ucf.stages.diffusion, conditional=0.2)  # code
    return replace(ucf, stages=replace(ucf.stages, diffusion=diffusion), published=_published("sky", "l"))


def ucf101_256_s() -> PVDMExperiment:
    """PVDM-S on UCF-101."""
    return smaller(ucf101_256_l(), "ucf")


def sky_256_s() -> PVDMExperiment:
    """PVDM-S on SkyTimelapse."""
    return smaller(sky_256_l(), "sky")


def vortex32() -> PVDMExperiment:
    """Flow past a disc at 32x32 in grey: the recipe of the bundled `vortex-pvdm`. Ours, not published.

    An hour and a half on one core.
    """
    return PVDMExperiment(
        data=DataConfig(channels=1, size=32),
        model=PVDMConfig(
            autoencoder=AutoencoderConfig(
                width=96, patch=4, depth=3, heads=3, head_width=32, expansion=2,
                plane_depth=1, plane_heads=3, plane_head_width=32, plane_hidden=256,
            ),
            denoiser=DenoiserConfig(
                width=64, multipliers=(1, 2), res_blocks=1, attention=(2,), heads=2, groups=16
            ),
        ),
        stages=PVDMStages(
            autoencoder=AutoencoderStageConfig(
                batch=4,
                max_steps=3_600,
                perceptual_weight=0.0,  # VGG-16 knows pictures, not flows
                optimiser=OptimiserConfig(lr=2e-3, betas=(0.9, 0.99), warmup_steps=300, schedule="cosine"),
                ema=EmaConfig(decay=0.999),
                checkpoint_every=500,
                preview_every=2_000,
            ),
            diffusion=DiffusionStageConfig(
                batch=16,
                max_steps=5_500,
                conditional=0.5,  # forecasts matter as much as clips from nothing
                draw="clip",
                cache=True,
                optimiser=OptimiserConfig(lr=1e-3, warmup_steps=200, schedule="cosine"),
                ema=EmaConfig(decay=0.999),
                checkpoint_every=500,
                preview_every=2_000,
            ),
        ),
        sample=PVDMSampling(sampler="dpmpp_2m", steps=20),
    )  # fmt: skip


def tiny32() -> PVDMExperiment:
    """Real video at 32x32 in colour, to begin with: half an hour on two cores for both stages. Ours, not published."""
    flows = vortex32()
    stages = replace(
        flows.stages,
        autoencoder=replace(flows.stages.autoencoder, max_steps=3_000, perceptual_weight=1.0),  # where VGG-16 is there
        diffusion=replace(flows.stages.diffusion, max_steps=2_000),
    )
    return replace(flows, data=DataConfig(channels=3, size=32), stages=stages)


PRESETS: dict[str, Callable[[], PVDMExperiment]] = {
    "ucf101-256-l": ucf101_256_l,
    "ucf101-256-s": ucf101_256_s,
    "sky-256-l": sky_256_l,
    "sky-256-s": sky_256_s,
    "vortex32": vortex32,
    "tiny32": tiny32,
}
