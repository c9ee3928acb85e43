# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other programs: opened without running anything in them, and held against the names a network has.

What the tensors of one program mean is told by the `weights.py` of a system, which gives a `Checkpoint`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["ema", "raw"]  # averaged over the training, or as the optimiser left them

_OBJECTS = re.compile(r"Unsupported (global|class|operand)|not an allowed global", re.IGNORECASE)
_KEYS: dict[Kind, tuple[str, ...]] = {"ema": ("ema", "ema_state_dict"), "raw": ("model", "model_state_dict")}
_WRAPPER = "state_dict"  # tells nothing of the kind
_SPELT = {"ema": "averaged weights (ema)", "raw": "the weights as the optimiser left them (raw)"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file of another program holds, in the words of one of our systems: what one training has left."""

    config: Any  # the system's model settings
    parts: Mapping[str, Mapping[str, Tensor]]  # part -> name -> float32 weight
    stage: str  # of the system, which trains these parts
    needs: tuple[str, ...] = ()  # parts they were trained on top of, which other files hold
    step: int | None  # optimiser steps it has seen; None: the file does not tell
    weights: Kind


def read_file(path: Path, *, meant: str) -> Any:
    """What torch.save wrote into a file: tensors and plain values, on the CPU.

    Args:
        path: the file.
        meant: what to give instead of something else, such as `a model*.pt file`.

    Raises:
        ValueError: no such file, damaged, or with objects in it that only running code could restore.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not a file that is here"
        raise ValueError(f"{path} {what}; give {meant}.")
    with open(path, "rb") as file:
        head = file.read(512)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise ValueError(
            f"{path} is a web page, not a weight file: the download gave a page instead; download it anew."
        )
    if not head.startswith((b"PK", b"\x80")):
        raise ValueError(f"{path} is not a file that torch.save wrote; expected {meant}.")
    try:
        mapped = head.startswith(b"PK")  # read as it is used; the format of old cannot be
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # of a broken file the reader raises whatever it comes upon
        if isinstance(error, pickle.UnpicklingError) and _OBJECTS.search(str(error)):
            raise ValueError(
                f"{path} holds objects other than tensors and plain values, which could run code when loaded; "
                f"it is refused: save the state dict alone and try again."
            ) from None
        raise ValueError(f"{path} is damaged or cut short, or another kind of file: download it anew.") from None


def weights_by_name(
    content: Any, *, weights: Kind | None, first: Kind, where: str, meant: str
) -> tuple[dict[str, Tensor], Kind | None]:
    """The weights in what a file held, out of the wrappers such files come in.

    Args:
        content: as `read_file` gave it.
        weights: which of the two are wanted; None: `first`, if they are there.
        first: what such files are usually used with.
        where: the file, for messages.
        meant: see `read_file`.

    Returns:
        Tensors, without the `module.` that parallel training puts in front of every name; and which kind they are,
        None where the file does not tell.

    Raises:
        ValueError: no weights, or not those that are wanted.
    """
    kind: Kind | None = None
    for _ in range(2):
        if not isinstance(content, Mapping):
            break
        there = {one: content[key] for one in _KEYS for key in _KEYS[one] if isinstance(content.get(key), Mapping)}
        if there:
            order: tuple[Kind, ...] = (weights or first, "ema", "raw")
            taken = next(one for one in order if one in there)
            kind, content = taken, there[taken]
        elif isinstance(content.get(_WRAPPER), Mapping):
            content = content[_WRAPPER]
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds a {type(content).__name__}, expected tensors by name.")
    if {"state", "param_groups"} <= content.keys():
        raise ValueError(f"{where} is the state of an optimiser, not weights: give {meant}.")
    odd = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None or not content:
        raise ValueError(
            f"{where} does not hold weights by name ({'empty' if odd is None else f'{odd!r} is no tensor'}): give "
            f"{meant}."
        )
    check_kind(kind, wanted=weights, where=where)
    state = {str(key): value.detach().contiguous() for key, value in content.items()}
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state, kind


def check_kind(found: Kind | None, *, wanted: Kind | None, where: str) -> None:
    """Raise ValueError where a file is known to hold the other weights than those that are wanted."""
    if found is not None and wanted is not None and found != wanted:
        raise ValueError(f"{where} does not hold {_SPELT[wanted]}, only {_SPELT[found]}: ask for {found}.")


def check_channels(found: int, *, wanted: int, where: str) -> None:
    """Raise ValueError where a network reads clips of other channels than the experiment has."""
    if found != wanted:
        raise ValueError(
            f"{where} is for clips of {found} channel{'s' if found > 1 else ''}, the experiment has {wanted}: "
            f"set data.channels to {found}."
        )


def shape_of(state: Mapping[str, Tensor], name: str, *, axes: int, network: str, where: str) -> tuple[int, ...]:
    """The shape of a tensor that tells settings.

    Args:
        state: tensors by official name.
        name: which.
        axes: how many it has.
        network: whose weights are expected, for messages.
        where: the file, for messages.

    Raises:
        ValueError: there is none of this name, with so many axes, with anything in it.
    """
    if name not in state:
        raise ValueError(f"{where} has no tensor {name}: these are not the weights of {network}.")
    found = tuple(state[name].shape)
    if len(found) != axes or 0 in found:
        raise ValueError(f"{where}: {name} has shape {found}: these are not the weights of {network}.")
    return found


def check_names(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raise ValueError, naming the first difference, unless names and shapes are exactly those that are wanted."""
    for name, shape in wanted.items():
        if name not in state:
            raise ValueError(f"{where} has no tensor {name}, which the network of these settings needs.")
        if tuple(state[name].shape) != shape:
            found = tuple(state[name].shape)
            raise ValueError(f"{where}: {name} has shape {found}, the network of these settings needs {shape}.")
    extra = next((name for name in state if name not in wanted), None)
    if extra is not None:
        raise ValueError(f"{where} holds the tensor {extra}, which the network of these settings does not have.")
