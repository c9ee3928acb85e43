# SPDX-License-Identifier: Apache-2.0
"""Reads weight files of the official RaMViD code (revision d048025) and proves that they fit a network.

The files are plain state dicts: `model*.pt`, `ema_*.pt`; `opt*.pt` beside them holds an optimiser. From names and
shapes follow width, blocks, multipliers, attention, learned variance, scale-shift and classes; heads, groups, schedule,
noise levels and frames do not show in a file and come from an experiment. Nothing in a file is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from framecast.foreign import (
    Checkpoint,
    Kind,
    check_channels,
    check_kind,
    check_names,
    read_file,
    weights_by_name,
)
from framecast.systems.ramvid.config import RaMViDConfig, RaMViDExperiment
from framecast.systems.ramvid.network import UNet3D

FILES = "a model*.pt or ema_*.pt file"


def read_checkpoint(path: Path, *, experiment: RaMViDExperiment, weights: Kind | None = None) -> Checkpoint:
    """What an official checkpoint file holds: settings, weights of the part `diffusion`, steps.

    Args:
        path: a `model*.pt` or `ema_*.pt` file.
        experiment: supplies what a file cannot tell: heads, groups, schedule, noise levels, patch, and the channels of
            the clips; a preset such as `ramvid/bair64`.
        weights: refuse the other kind; where a file holds both, which to take. None: averaged ones if it has them.

    Returns:
        Settings in which everything the file tells has replaced the experiment's, and weights that load into
        `UNet3D` built from them.

    Raises:
        ValueError: not such a file, or weights that do not fit; the first difference is named.
    """
    path = Path(path)
    where = str(path)
    content = read_file(path, meant=FILES)
    state, kind = weights_by_name(content, weights=weights, first="ema", where=where, meant=FILES)
    step, named = _told(path.stem)
    check_kind(kind or named, wanted=weights, where=where)
    config = infer(state, base=experiment.model, where=where)
    channels = state["input_blocks.0.0.weight"].shape[1] // config.patch**2
    check_channels(channels, wanted=experiment.data.channels, where=where)
    verify(state, config, channels=channels, where=where)
    part = {name: tensor.to(torch.float32) for name, tensor in state.items()}
    return Checkpoint(
        config=config,
        parts={"diffusion": part},
        stage="diffusion",
        step=step,
        weights=kind or named or weights or "raw",
    )


def infer(state: Mapping[str, Tensor], *, base: RaMViDConfig, where: str) -> RaMViDConfig:
    """The settings that names and shapes tell; the rest as in `base`.

    Args:
        state: weights by official name.
        base: where the rest comes from.
        where: the file, for messages.

    Raises:
        ValueError: names that no RaMViD network has.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"{where} has no tensor {name}: these are not the weights of a RaMViD network.")
        found = tuple(state[name].shape)
        if len(found) < 2 or 0 in found:
            raise ValueError(f"{where}: {name} has shape {found}: these are not the weights of a RaMViD network.")
        return found

    width, inside = shape("input_blocks.0.0.weight")[:2]
    multipliers, attention, blocks = [0], [], [0]  # per level; blocks counts residual blocks
    at = 1
    while any(name.startswith(f"input_blocks.{at}.") for name in state):
        if f"input_blocks.{at}.0.op.weight" in state:  # down-sampling: a new level begins
            multipliers.append(0)
            blocks.append(0)
        else:
            multipliers[-1] = shape(f"input_blocks.{at}.0.out_layers.3.weight")[0] // width
            blocks[-1] += 1
            if f"input_blocks.{at}.1.qkv.weight" in state and 2 ** (len(blocks) - 1) not in attention:
                attention.append(2 ** (len(blocks) - 1))
        at += 1
    embedded, features = (shape(f"input_blocks.1.0.{layer}.weight")[0] for layer in ("emb_layers.1", "out_layers.3"))
    return replace(
        base,
        width=width,
        multipliers=tuple(multipliers),
        res_blocks=blocks[0],
        attention=tuple(attention),
        scale_shift=embedded == 2 * features,
        learned_variance=shape("out.2.weight")[0] == 2 * inside,
        classes=shape("label_emb.weight")[0] if "label_emb.weight" in state else 0,
    )


def verify(state: Mapping[str, Tensor], config: RaMViDConfig, *, channels: int, where: str) -> None:
    """Raise ValueError, naming the first difference, unless the weights have exactly the network's names and shapes."""
    with torch.device("meta"):
        wanted = UNet3D(config, channels=channels).state_dict()
    check_names(state, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, where=where)


def _told(name: str) -> tuple[int | None, Kind | None]:
    """Steps and kind of weights that the name of an official file tells.

    Example:
        >>> _told("ema_0.9999_250000"), _told("best")
        ((250001, 'ema'), (None, None))
    """
    steps = re.findall(r"\d{6,}", name)  # OFFICIAL: the file of step n holds n + 1 updates
    kinds: dict[str, Kind] = {"ema": "ema", "model": "raw"}
    return int(steps[-1]) + 1 if steps else None, next((k for head, k in kinds.items() if name.startswith(head)), None)
