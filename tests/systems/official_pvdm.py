# SPDX-License-Identifier: Apache-2.0
"""Files as the official PVDM code writes them, made from our own networks: colour, 16x8 pixels, 4 frames."""

from dataclasses import replace

import torch
from torch import Tensor

from framecast.experiment import DataConfig
from framecast.systems.pvdm.autoencoder import Autoencoder
from framecast.systems.pvdm.config import AutoencoderConfig, DenoiserConfig, PVDMConfig, PVDMExperiment
from framecast.systems.pvdm.denoiser import Denoiser
from tests.formula import fill
from tests.systems.test_pvdm_autoencoder import official_state as of_autoencoder
from tests.systems.test_pvdm_denoiser import official as of_denoiser
from tests.tiny import pvdm

CONFIG = PVDMConfig(
    autoencoder=AutoencoderConfig(
        width=12, latent_channels=3, patch=4, depth=2, heads=2, head_width=8, expansion=2,
        plane_depth=1, plane_heads=2, plane_head_width=4, plane_hidden=10,
    ),
    denoiser=DenoiserConfig(width=8, multipliers=(1, 2), res_blocks=1, attention=(1,), heads=2, groups=4),
)  # fmt: skip
LATENT = 2 * 4 + 4 * (2 + 4)  # rows x columns + frames x (rows + columns)
HEADS = PVDMConfig(
    autoencoder=AutoencoderConfig(width=24, latent_channels=3, patch=4, depth=1, plane_depth=2, plane_heads=2),
    denoiser=DenoiserConfig(width=12, multipliers=(2,), attention=(), heads=2, groups=4),
)
TINY = pvdm()  # of clips of 4 frames
BASE = replace(TINY, data=DataConfig(channels=3, size=(8, 16)), model=HEADS)  # what no file tells, and the rest unlike


def autoencoder() -> Autoencoder:
    return fill(Autoencoder(CONFIG.autoencoder, channels=3, size=(8, 16), frames=4)).eval()  # type: ignore[return-value]


def denoiser() -> Denoiser:
    return fill(Denoiser(CONFIG.denoiser, channels=3, planes=(2, 4, 4))).eval()  # type: ignore[return-value]


def autoencoder_file() -> dict[str, Tensor]:
    """The content of `model_*.pth` of the first stage."""
    return {name: tensor.clone() for name, tensor in of_autoencoder(autoencoder()).items()}


def denoiser_file() -> dict[str, Tensor]:
    """The content of `model_*.pth` and `ema_model_*.pth` of the second stage."""
    state = {"zeros": torch.zeros(1, 3, LATENT), **of_denoiser(denoiser())}
    return {f"diffusion_model.{name}": tensor.clone() for name, tensor in state.items()}


def experiment(**changes: object) -> PVDMExperiment:
    """BASE with other settings of its data."""
    return replace(BASE, data=replace(BASE.data, **changes))  # type: ignore[arg-type]
