# SPDX-License-Identifier: Apache-2.0
"""PVDM's experiments (no torch): the published ones, each value with its source, and small ones for two cores.

Sources: the paper with its tables 1, 2 and 4; code is the official repository, revision 793172f. Where they differ the
code's value stands. The paper's appendix, which holds the settings of PVDM-S, is known from notes of others only.
"""

from __future__ import annotations

from collections.abc import Callable

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
    decay=0.9999,  # code; never reached: after 850,000 steps the decay is 0.99974
    warmup=10.0,  # code
    every=25,  # code
)
SENSIBLE_EMA = EmaConfig(decay=0.9999, warmup=10.0, every=1)  # ours: as in most diffusion models, every step counts

# FVD of 16 and of 128 frames, table 1, sampler steps in the name; IS, table 2; R-FVD and PSNR, table 4
_PUBLISHED = {
    "ucf101-l": {"pvdm-ucf-fvd16": "343.6 (400/400), 398.9 (200/200)", "pvdm-ucf-is": "74.40 ± 1.25"},
}


def ucf101_256_l() -> PVDMExperiment:
    """PVDM-L on UCF-101, 256x256 in colour, clips of 16 frames. 62,064,399 and 528,273,412 parameters."""
    return PVDMExperiment(
        data=DataConfig(channels=3, size=256),  # paper, section 4.1; code: centre crop, resized to 256, stride 1
        model=PVDMConfig(
            autoencoder=AutoencoderConfig(),  # code, `configs/autoencoder/base.yaml`
            denoiser=DenoiserConfig(),  # code, `configs/latent-diffusion/base.yaml`
        ),
        stages=PVDMStages(
            autoencoder=AutoencoderStageConfig(
                clip_frames=16,  # paper; code
                batch=24,  # code: one clip on each of 8 devices, 3 micro-batches; paper: 24
                accumulate=3,  # code
                max_steps=87_000,  # phase A: 250,000 micro-batches of the code (issue 5); B: 12,000 (README: 8 to 14)
                adversarial_from=83_000,
                pixel_weight=4.0,  # code
                perceptual_weight=4.0,  # code
                adversarial_weight=1.0,  # code
                matching_weight=4.0,  # code; not in the paper
                optimiser=OptimiserConfig(
                    name="adamw",  # code; the paper says Adam
                    lr=1e-4,  # code
                    betas=(0.5, 0.9),  # code
                    weight_decay=0.01,  # code: PyTorch's default
                    clip_norm=0.0,  # code: none
                ),
                discriminator_optimiser=OptimiserConfig(
                    name="adamw",
                    lr=1e-4,
                    betas=(0.5, 0.9),
                    weight_decay=0.01,
                    clip_norm=1.0,  # code
                ),
                ema=EmaConfig(decay=0.0),  # code: none
                checkpoint_every=700,  # code: 2,000 micro-batches
            ),
            diffusion=DiffusionStageConfig(
                clip_frames=16,  # paper; code: pairs of them, 32 frames
                batch=64,  # code, README
                max_steps=850_000,  # code, README
                conditional=0.3,  # code
                draw="step",  # code; the paper's objective is draw: none
                optimiser=OptimiserConfig(
                    name="adamw",  # code
                    lr=1e-4,  # code
                    betas=(0.9, 0.999),  # code: PyTorch's default
                    weight_decay=0.01,  # code: PyTorch's default
                    clip_norm=0.0,  # code: none
                    warmup_steps=0,  # code: 10,000 are set and never used
                ),
                ema=PUBLISHED_EMA,
                checkpoint_every=10_000,  # code
            ),
        ),
        sample=PVDMSampling(sampler="ddim", steps="400/400", eta=1.0, guidance=0.0),  # table 1; code
        source=f"{SOURCE}; tables 1, 2 and 4",
        published=_PUBLISHED["ucf101-l"],
    )


def vortex32() -> PVDMExperiment:
    """Flow past a disc at 32x32 in grey: the recipe of the bundled `vortex-pvdm`. Ours, not published."""
    return PVDMExperiment(
        data=DataConfig(channels=1, size=32),
        model=PVDMConfig(
            autoencoder=AutoencoderConfig(
                width=96, patch=4, depth=3, heads=3, head_width=32, expansion=2,
                plane_depth=1, plane_heads=3, plane_head_width=32, plane_hidden=256,
            ),
            denoiser=DenoiserConfig(width=64, multipliers=(1, 2, 2), heads=4, groups=16, attention=(1, 2, 4)),
        ),
        stages=PVDMStages(
            autoencoder=AutoencoderStageConfig(
                batch=4,
                max_steps=6_000,
                perceptual_weight=0.0,  # VGG-16 knows pictures, not flows
                optimiser=OptimiserConfig(lr=2e-3, betas=(0.9, 0.99), warmup_steps=300, schedule="cosine"),
                ema=EmaConfig(decay=0.999),
                checkpoint_every=500,
                preview_every=2_000,
            ),
            diffusion=DiffusionStageConfig(
                batch=16,
                max_steps=6_000,
                precision="bf16",
                conditional=0.5,
                draw="clip",
                cache=True,
                optimiser=OptimiserConfig(lr=1e-3, warmup_steps=200, schedule="cosine"),
                ema=EmaConfig(decay=0.999),
                checkpoint_every=500,
                preview_every=2_000,
            ),
        ),
        sample=PVDMSampling(sampler="dpmpp_2m", steps="20/20"),
    )


PRESETS: dict[str, Callable[[], PVDMExperiment]] = {
    "ucf101-256-l": ucf101_256_l,
    "vortex32": vortex32,
}
