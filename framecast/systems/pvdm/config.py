# SPDX-License-Identifier: Apache-2.0
"""PVDM's settings (no torch). Sources: the paper and the official code at 793172f; see README.md here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
