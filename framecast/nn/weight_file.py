# SPDX-License-Identifier: Apache-2.0
"""Files of weights that others wrote, told apart by what is in them: torch, TorchScript, npz, safetensors.

Nothing in a file is run, save a TorchScript archive, whose code can compute but not reach Python. What is no such file
(a web page, a file cut short, objects) is refused in one sentence.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

_OBJECTS = re.compile(r"Unsupported (global|class|operand)|not an allowed global", re.IGNORECASE)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "params")


def read_weights(path: Path, *, meant: str) -> dict[str, Tensor] | torch.jit.ScriptModule:
    """The tensors of a file by name, or the module of a TorchScript archive, on the CPU.

    Args:
        path: the file.
        meant: what the file should be, for sentences, such as `the I3D network`.

    Returns:
        Floating point tensors as float32; `module.` before every name and one wrapper such as `state_dict` are taken
        off. Or a TorchScript module in evaluation mode.

    Raises:
        ValueError: it is missing, no such file, damaged, or holds objects or values that are not numbers.
    """
    path = Path(path)
    kind = _kind(path, meant)
    try:
        content = _READ[kind](path)
    except MemoryError:
        raise
    except Exception as error:  # of a broken file readers raise whatever they come upon
        if isinstance(error, pickle.UnpicklingError) and _OBJECTS.search(str(error)):
            raise ValueError(
                f"{path} holds objects other than tensors and plain values, which could run code when loaded; it is "
                "refused: save the tensors alone (a state dict) and try again."
            ) from None
        raise ValueError(f"{path} is damaged or cut short: download it anew.") from None
    if isinstance(content, torch.jit.ScriptModule):
        return content
    return _plain(content, path)


def _kind(path: Path, meant: str) -> str:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not there"
        raise ValueError(f"{path} {what}; give the file of weights of {meant}.")
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty: download the weights of {meant} anew.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:  # its length, then JSON
        return "safetensors"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise ValueError(
            f"{path} is a web page, not the weights of {meant}: the download gave a page instead; download it anew."
        )
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} only points to the weights of {meant} (Git LFS): fetch the file itself, git lfs pull."
        )
    if head.startswith(b"PK\x03\x04"):
        return "archive"
    if head.startswith(b"\x80"):
        return "torch"
    raise ValueError(
        f"{path} is not a file of weights of {meant}: it was written by none of torch.save, TorchScript, numpy.savez "
        "and safetensors."
    )


def _read_archive(path: Path) -> Any:
    """What numpy, torch or TorchScript put into a zip file."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return _read_npz(path)
    return _read_script(path) if any(name.endswith("/constants.pkl") for name in names) else _read_torch(path)


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}


def _read_script(path: Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way to read these archives
        return torch.jit.load(str(path), map_location="cpu").eval()


def try_script(
    path: Path, network: Callable[[Tensor], Any], *, frames: int, width: int, meant: str, takes: str
) -> Tensor:
    """What a TorchScript archive answers to a dark clip: nothing else tells what it is.

    Args:
        path: of the archive, for sentences.
        network: takes 8-bit clips (N, T, 3, H, W).
        frames: of the clip.
        width: values that it must answer with.
        meant: what the file should be.
        takes: what such a network takes, for sentences.

    Raises:
        ValueError: it cannot take such a clip, or answers with something else.
    """
    refused = f"{path} is a TorchScript archive of another network: {meant} {takes}"
    try:
        with torch.no_grad():
            made = network(torch.zeros(1, frames, 3, 32, 32, dtype=torch.uint8))
    except Exception:  # an archive fails in the words of whatever is in it
        raise ValueError(f"{refused}, and this one fails on such a clip.") from None
    found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
    if found != (1, width):
        raise ValueError(f"{refused}, and this one answers with {found}, not (1, {width}).")
    if not bool(torch.isfinite(made).all()):
        raise ValueError(f"{path} answers with values that are not numbers: it is damaged; download it anew.")
    return made


_READ: dict[str, Callable[[Path], Any]] = {
    "archive": _read_archive,
    "torch": _read_torch,
    "safetensors": lambda path: safetensors.torch.load_file(str(path)),
}


def _plain(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected tensors by name.")
    odd = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None or not content:
        raise ValueError(f"{path} does not hold tensors by name ({'empty' if odd is None else f'{odd!r} is none'}).")
    state = {str(key): value.detach() for key, value in content.items()}
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        state[key] = value.to(torch.float32)
        if value.numel() and not all(bool(torch.isfinite(bound)) for bound in state[key].aminmax()):
            raise ValueError(f"{path}: {key} holds values that are not numbers (nan or infinity): download it anew.")
    return state
