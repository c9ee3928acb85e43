"""Folders of reference tensors: where they are, what kind each is, and how far ours may be from them.

A folder holds `config.json`, `io.safetensors`, `weights.safetensors` and a README.md whose table names every tensor.
Only this file and the helpers beside it speak the fixtures' axes (N, C, T, H, W) and masks (1 = unknown).
"""

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(os.environ.get("FRAMECAST_PARITY", Path(__file__).parents[3] / "shared" / "parity"))
KINDS = ["ramvid-shapes", "rvd-shapes", "pvdm-shapes", "ramvid", "rvd", "pvdm-ae", "pvdm-ddpm", "pvdm-gan"]
KINDS += ["vqvae-ema", "metrics"]

SCHEDULE, FORWARD, GRADIENT, TRAJECTORY = 1e-12, 1e-5, 1e-4, 5e-4  # largest relative errors


def kind_of(folder: Path) -> str | None:
    """The longest kind that the folder's name begins with."""
    fitting = [kind for kind in KINDS if folder.name.startswith(kind)]
    return max(fitting, key=len, default=None)


def all_folders() -> list[Path]:
    return sorted(path for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []


def folders(kind: str) -> list[Any]:
    """Parameters for pytest: the folders of one kind, or one skipped entry that says why there are none."""
    found = [pytest.param(path, id=path.name) for path in all_folders() if kind_of(path) == kind]
    reason = f"no folder {kind}* in {ROOT}; set FRAMECAST_PARITY to the reference tensors"
    return found or [pytest.param(None, id=kind, marks=pytest.mark.skip(reason=reason))]


def error(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| / max|b|; the absolute error where b is 0 throughout."""
    assert tuple(ours.shape) == tuple(theirs.shape), f"shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    if not theirs.numel():
        return 0.0
    gap = (ours.detach().double() - theirs.double()).abs().max().item()
    return gap / (theirs.double().abs().max().item() or 1.0)


def described(readme: str) -> set[str]:
    """Names in a README's table of tensors; of rows "`a`, `b`, `...` (12)" those that are spelled out."""
    found = set(re.findall(r"^\| (\S+) \| (?:(?:float|int|uint|bool)\d*|\([\d, ]*\) \|)", readme, flags=re.MULTILINE))
    for row in re.findall(r"^\| (`.+`) \(\d+\) \|", readme, flags=re.MULTILINE):
        found |= set(re.findall(r"`([^`]+)`", row)) - {"..."}
    return found


@cache
def _tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


class Case:
    """One folder; remembers which tensors were looked at and what was too far off."""

    def __init__(self, folder: Path):
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors = _tensors(folder / "io.safetensors")
        self.weights = {k: v.float() for k, v in _tensors(folder / "weights.safetensors").items()}
        readme = (folder / "README.md").read_text()
        self.described = described(readme)
        self.seen: set[str] = set()
        self.errors: dict[str, float] = {}
        self.too_far: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return self.tensors[name]

    def close(self, name: str, ours: Tensor, limit: float) -> None:
        """Compare with the tensor `name`."""
        self.errors[name] = error(ours, self[name])
        if not self.errors[name] <= limit:
            self.too_far.append(f"{name}: error {self.errors[name]:.2e}, allowed {limit:.0e}")

    def equal(self, name: str, ours: Tensor) -> None:
        self.close(name, ours, 0.0)

    def finish(self) -> None:
        """Fail on anything too far off, on tensors that are promised and missing, and on those nothing looked at."""
        assert not self.too_far, "\n".join(self.too_far)
        assert self.described and self.described <= set(self.tensors), self.described - set(self.tensors)
        assert not set(self.tensors) - self.seen, f"not compared: {sorted(set(self.tensors) - self.seen)}"


def video(tensor: Tensor) -> Tensor:
    """..., C, T, H, W to ..., T, C, H, W, or back."""
    return tensor.transpose(-4, -3).contiguous()


def known_of(mask: Tensor) -> Tensor:
    """1 = unknown to True = known."""
    return mask == 0


def rows(values: Any) -> Tensor:
    return torch.as_tensor(values)
