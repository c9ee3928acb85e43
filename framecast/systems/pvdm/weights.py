# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoint files of the official PVDM code (revision 793172f), which keeps its two networks in two files.

Both are plain state dicts: `model_*.pth` of the first stage is the autoencoder, `model_*.pth` and `ema_model_*.pth` of
the second are the denoiser, `net_init.pth` and `net_meta.pth` beside them too. Tensors tell which a file is, and sizes;
heads, groups and the process do not show and come from an experiment. Nothing in a file is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from framecast.experiment import size_of
from framecast.foreign import Checkpoint, Kind, check_channels, check_kind, read_file, weights_by_name
from framecast.systems.pvdm.autoencoder import Autoencoder, check_size
from framecast.systems.pvdm.config import PVDMExperiment
from framecast.systems.pvdm.denoiser import Denoiser, Planes, plane_sizes
from framecast.systems.pvdm.weights_autoencoder import PERCEPTUAL, autoencoder_weights, infer_autoencoder
from framecast.systems.pvdm.weights_denoiser import WRAPPER, ZEROS, infer, read_denoiser

FILES = "the autoencoder's model_*.pth or the denoiser's ema_model_*.pth of the official code"

# what the networks have and the other systems' have not
_AUTOENCODER = ("to_pixel.", "xy_quant_attn.", "encoder.to_patch_embedding.")
_DENOISER = ("mid_attn.", "input_attns.", "output_attns.")
_JUDGES = ("discriminator_2d.", "discriminator_3d.", PERCEPTUAL)


def read_checkpoint(path: Path, *, experiment: PVDMExperiment, weights: Kind | None = None) -> Checkpoint:
    """What an official checkpoint file holds: the autoencoder or the denoiser, and its settings.

    Args:
        path: a `.pth` file.
        experiment: supplies what a file cannot tell: heads, groups, schedule, noise levels; the clips' channels, size
            and frames, which must be those the file was trained with; for a denoiser also the autoencoder whose latents
            it knows. A preset such as `pvdm/ucf101-256-l`.
        weights: refuse a denoiser of the other kind; of the autoencoder the official code keeps no average.

    Returns:
        Settings in which everything the file tells has replaced the experiment's, and weights that load into the
        network built from them.

    Raises:
        ValueError: not such a file, weights that do not fit (the first difference is named), or other clips.
    """
    path = Path(path)
    where = str(path)
    content = read_file(path, meant=FILES)
    state, kind = weights_by_name(content, weights=weights, first="ema", where=where, meant=FILES)
    names = [name.removeprefix(WRAPPER) for name in state]
    if any(name.startswith(_JUDGES) for name in names):
        raise ValueError(f"{where} holds discriminators and the loss, which draw nothing: give {FILES}.")
    if any(name.startswith(_AUTOENCODER) for name in names):
        return _autoencoder(state, experiment=experiment, kind=kind, where=where)
    if any(name.startswith(_DENOISER) for name in names):
        step, named = _told(path.stem)
        check_kind(kind or named, wanted=weights, where=where)
        kind = kind or named or weights or "raw"
        return _denoiser(state, experiment=experiment, kind=kind, step=step, where=where)
    raise ValueError(
        f"{where} holds neither a PVDM autoencoder nor a PVDM denoiser (its first tensor is {names[0]}): give {FILES}."
    )


def _autoencoder(
    state: Mapping[str, Tensor], *, experiment: PVDMExperiment, kind: Kind | None, where: str
) -> Checkpoint:
    config, channels, size, frames = infer_autoencoder(state, base=experiment.model.autoencoder, where=where)
    check_channels(channels, wanted=experiment.data.channels, where=where)
    if size != (wanted := size_of(experiment.data.size)):
        setting = str(size[0]) if size[0] == size[1] else f"{size[0]},{size[1]}"
        raise ValueError(
            f"{where} is for frames of {_pixels(size)} pixels, the experiment has {_pixels(wanted)}: set data.size to "
            f"{setting}."
        )
    if frames != (clip := experiment.stages.autoencoder.clip_frames):
        raise ValueError(
            f"{where} is for clips of {frames} frames, the experiment has {clip}: set stages.autoencoder.clip_frames "
            f"to {frames}."
        )
    try:
        with torch.device("meta"):
            network = Autoencoder(config, channels=channels, size=size, frames=frames)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    part = autoencoder_weights(state, network, where=where)
    return Checkpoint(
        config=replace(experiment.model, autoencoder=config),
        parts={"autoencoder": part},
        stage="autoencoder",
        step=None,  # names count micro-batches, and anew in phase B
        weights=kind or "raw",
    )


def _denoiser(
    state: Mapping[str, Tensor], *, experiment: PVDMExperiment, kind: Kind, step: int | None, where: str
) -> Checkpoint:
    config, channels = infer(state, base=experiment.model.denoiser, where=where)
    autoencoder = experiment.model.autoencoder
    if channels != autoencoder.latent_channels:
        raise ValueError(
            f"{where} is for latents of {channels} channels, those of the experiment have "
            f"{autoencoder.latent_channels}: set model.autoencoder.latent_channels to {channels}."
        )
    size, frames = size_of(experiment.data.size), experiment.stages.autoencoder.clip_frames
    check_size(autoencoder, size, frames=frames)
    planes = (size[0] // autoencoder.patch, size[1] // autoencoder.patch, frames)
    _check_zeros(state, planes, channels=channels, clip=f"{frames} frames of {_pixels(size)} pixels", where=where)
    try:
        with torch.device("meta"):
            network = Denoiser(config, channels=channels, planes=planes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    part = read_denoiser(state, network, where=where)
    return Checkpoint(
        config=replace(experiment.model, denoiser=config),
        parts={"denoiser": part},
        stage="diffusion",
        needs=("autoencoder",),
        step=step,
        weights=kind,
    )


def _check_zeros(state: Mapping[str, Tensor], planes: Planes, *, channels: int, clip: str, where: str) -> None:
    """Raise ValueError where the condition of a first clip shows that the latents were others."""
    zeros = next((tensor for name, tensor in state.items() if name.removeprefix(WRAPPER) == ZEROS), None)
    if zeros is None:
        return
    if zeros.ndim != 3 or zeros.shape[:2] != (1, channels) or bool(zeros.any()):
        raise ValueError(
            f"{where}: {ZEROS}, of shape {tuple(zeros.shape)}, is not one latent of {channels} channels without values."
        )
    length = sum(rows * columns for rows, columns in plane_sizes(planes))
    if zeros.shape[2] != length:
        raise ValueError(
            f"{where} is for latents of length {zeros.shape[2]}, but {clip} give a length of {length}: set data.size, "
            "stages.autoencoder.clip_frames and model.autoencoder.patch to those of its autoencoder."
        )


def _told(name: str) -> tuple[int | None, Kind | None]:
    """Steps and kind of weights that the name of a denoiser's file tells.

    Example:
        >>> _told("ema_model_850000"), _told("net_init"), _told("best")
        ((850000, 'ema'), (0, 'raw'), (None, None))
    """
    found = re.fullmatch(r"(ema_)?model_(\d+)", name)
    if found:
        return int(found[2]), "ema" if found[1] else "raw"
    if name.startswith("net_"):
        return (0 if name == "net_init" else None), "raw"
    return None, "ema" if name.startswith("ema_") else "raw" if name.startswith("model_") else None


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
