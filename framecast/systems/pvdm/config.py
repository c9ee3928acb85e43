# SPDX-License-Identifier: Apache-2.0
"""PVDM's settings (no torch). Sources: the paper and the official code at 793172f; see README.md here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from framecast.experiment import Experiment, OptimiserConfig, SampleOptions, StageConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The video autoencoder: two trunks of space-time attention, and three projections onto planes between them."""

    width: int = 384  # of a token, everywhere
    latent_channels: int = 4  # of each of the three planes
    patch: int = 8  # side of the square of pixels that is a token; planes are so many times smaller than frames
    depth: int = 8  # layers of the encoder's trunk, and of the decoder's
    heads: int = 8  # of the trunks' attention
    head_width: int = 64  # a multiple of 4
    expansion: int = 4  # inner width of the trunks' feed-forward layers, times width
    plane_depth: int = 4  # layers of each projection
    plane_heads: int = 4
    plane_head_width: int = 48  # the official code takes width / 8
    plane_hidden: int = 512  # inner width of the projections' feed-forward layers


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The network that removes noise from the three latent planes, and its diffusion process."""

    width: int = 256  # channels of the first level, a multiple of `groups`; PVDM-L 256, PVDM-S 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level, times width; each further level halves planes
    res_blocks: int = 2  # residual blocks per level
    attention: tuple[int, ...] = (1, 2, 4)  # levels with attention within a plane, by down-sampling factor; the middle
    # always has it, and attention across planes follows every block of every level
    heads: int = 8  # of every attention
    head_width: int = 0  # channels of a head, in place of `heads`; 0: as many as `heads` leaves
    groups: int = 32  # of GroupNorm
    scale_shift: bool = True  # time embedding scales and shifts the normalised features; False: is added
    resample: Literal["residual", "convolution"] = (
        "residual"  # how planes are halved and doubled: by pooling and repetition in a residual block, or by a strided
        # convolution and repetition in front of one
    )
    dropout: float = 0.0
    conditional: bool = True  # also reads the latent of the clip before (zeros where there is none)
    schedule: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    noise_levels: int = 1000  # T


@dataclass(frozen=True, kw_only=True)
class PVDMConfig:
    """The two networks."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)


@dataclass(frozen=True, kw_only=True)
class AutoencoderStageConfig(StageConfig):
    """PVDM's first stage: phase A learns pixels, phase B, if there is one, also to deceive two discriminators."""

    pixel_weight: float = 4.0  # of the mean absolute error
    perceptual_weight: float = 4.0  # of LPIPS, of one frame of each clip
    adversarial_weight: float = 1.0  # of what the discriminators think
    matching_weight: float = 4.0  # of the distance in the discriminators' features
    vgg: str = "vgg16-397923af.pth"  # VGG-16 for LPIPS as torchvision has it: a path, or a file among the assets; where
    # there is none training goes on without LPIPS
    lin: str = ""  # LPIPS's own weights; empty: those that come with torchmetrics
    adversarial_from: int | None = None  # first optimiser step of phase B; from there on the autoencoder and the
    # discriminators learn in turn; null: there is none
    discriminator_width: int = 64  # channels of the discriminators' first stage
    discriminator_optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)


@dataclass(frozen=True, kw_only=True)
class DiffusionStageConfig(StageConfig):
    """PVDM's second stage: the denoiser learns latents of clips, alone and given the clip before."""

    clip_frames: int = 16  # frames of an encoded clip, those of the autoencoder; a training clip holds two
    conditional: float = 0.3  # share of clips that know the clip before them; with draw: none, their weight in the loss
    draw: Literal["step", "clip", "none"] = (
        "step"  # who is conditional: one draw for a whole step, one for each clip, or none, and every clip is both
    )
    cache: bool = False  # encode every training clip once and keep its two latents in memory


@dataclass(frozen=True, kw_only=True)
class PVDMStages:
    """All stages of the system, in the order of training."""

    autoencoder: AutoencoderStageConfig = field(default_factory=AutoencoderStageConfig)
    diffusion: DiffusionStageConfig = field(default_factory=DiffusionStageConfig)


@dataclass(frozen=True, kw_only=True)
class PVDMSampling(SampleOptions):
    """How clips are drawn, one after another."""

    sampler: Literal["ddim", "ddpm", "dpmpp_2m"] = "ddim"
    steps: int | str = "400/400"  # sampler steps per clip; "N/M": N for a clip without one before it, M for one with
    eta: float = 1.0  # ddim: share of fresh noise, 0 to 1
    guidance: float = 0.0  # w of classifier-free guidance towards the clip before; 0: none, and half of the work
    bound: float | None = 1.0  # clamp of the estimated latent, whose values are those of a tanh; null: none
    order: Literal["told", "drawn"] = (
        "told"  # of yt and xt in a clip from nothing, which a denoiser cannot tell apart where frames are square: told
        # exchanges them where the autoencoder then knows its own latent better; drawn leaves them, as published
    )
    condition: Literal["latent", "frames"] = (
        "latent"  # what a drawn clip tells the next one: its latent, or the latent of its decoded frames
    )


@dataclass(frozen=True, kw_only=True)
class PVDMExperiment(Experiment):
    """A whole PVDM run."""

    system: Literal["pvdm"] = "pvdm"
    model: PVDMConfig = field(default_factory=PVDMConfig)
    stages: PVDMStages = field(default_factory=PVDMStages)
    sample: PVDMSampling = field(default_factory=PVDMSampling)
