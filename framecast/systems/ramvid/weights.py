# SPDX-License-Identifier: Apache-2.0
"""Reads weight files of the official RaMViD code (revision d048025) and proves that they fit a network.

The files are plain state dicts: `model*.pt`, `ema_*.pt`; `opt*.pt` beside them holds an optimiser. From names and
shapes follow width, blocks, multipliers, attention, learned variance, scale-shift and classes; heads, groups, schedule,
noise levels and frames do not show in a file and come from an experiment. Nothing in a file is executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framecast.systems.ramvid.config import RaMViDConfig, RaMViDExperiment
from framecast.systems.ramvid.network import UNet3D

WRAPPERS = ("ema", "ema_state_dict", "state_dict", "model_state_dict", "model")  # the weights to sample with first


def read_checkpoint(path: Path, *, experiment: RaMViDExperiment) -> tuple[RaMViDConfig, dict[str, Tensor]]:
    """The model settings and float32 weights of an official checkpoint file.

    Args:
        path: a `model*.pt` or `ema_*.pt` file.
        experiment: supplies what a file cannot tell: heads, groups, schedule, noise levels, patch, and the channels of
            the clips; a preset such as `ramvid/bair64`.

    Returns:
        Settings in which everything the file tells has replaced the experiment's, and weights that load into
        `UNet3D` built from them.

    Raises:
        ValueError: not such a file, or weights that do not fit; the first difference is named.
    """
    path = Path(path)
    state = _plain(_load(path), path)
    config = infer(state, base=experiment.model, where=str(path))
    channels = state["input_blocks.0.0.weight"].shape[1] // config.patch**2
    if channels != experiment.data.channels:
        raise ValueError(
            f"{path} is for clips of {channels} channels, the experiment has {experiment.data.channels}: "
            f"set data.channels to {channels}."
        )
    verify(state, config, channels=channels, where=str(path))
    return config, state


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
    for name, tensor in wanted.items():
        if name not in state:
            raise ValueError(f"{where} has no tensor {name}, which the network of these settings needs.")
        if state[name].shape != tensor.shape:
            found, needed = (tuple(t.shape) for t in (state[name], tensor))
            raise ValueError(f"{where}: {name} has shape {found}, the network of these settings needs {needed}.")
    extra = next((name for name in state if name not in wanted), None)
    if extra is not None:
        raise ValueError(f"{where} holds the tensor {extra}, which the network of these settings does not have.")


def _load(path: Path) -> Any:
    """The file's content, nothing in it executed."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not a file that is here"
        raise ValueError(f"{path} {what}; give a model*.pt or ema_*.pt file.")
    with open(path, "rb") as file:
        head = file.read(512)
    if head.lstrip()[:1] == b"<":
        raise ValueError(
            f"{path} is a web page, not a weight file: the download gave a page instead; download it anew."
        )
    if not head.startswith((b"PK", b"\x80")):
        raise ValueError(f"{path} is not a file that torch.save wrote; expected a model*.pt or ema_*.pt file.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds objects other than tensors and plain values, which could run code when loaded; "
            f"it is refused: save the state dict alone and try again."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise ValueError(f"{path} is damaged or cut short, or another kind of file: download it anew.") from None


def _plain(content: Any, path: Path) -> dict[str, Tensor]:
    """Tensors by official name, out of the wrappers such files come in."""
    for _ in range(2):
        if isinstance(content, Mapping):
            inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
            content = content if inner is None else inner
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected tensors by name.")
    if {"state", "param_groups"} <= content.keys():
        raise ValueError(f"{path} is the state of an optimiser, not weights: take the model*.pt or ema_*.pt beside it.")
    odd = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None or not content:
        raise ValueError(
            f"{path} does not hold weights by name ({'empty' if odd is None else f'{odd!r} is no tensor'})."
        )
    state = {str(key): value.detach().to(torch.float32).contiguous() for key, value in content.items()}
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state
