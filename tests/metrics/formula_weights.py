"""Files like the published ones, with weights from the formula: what loaders and protocols are tested with."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from framecast.metrics.c3d import C3D
from framecast.metrics.hash_fill import filled, uniform
from framecast.metrics.i3d import I3D


@cache
def i3d_state() -> dict[str, Tensor]:
    """All 287 tensors by the names of `I3D`; not to be changed."""
    with torch.device("meta"):
        wanted = I3D(eps=1e-3).state_dict()
    return {name: filled(name, tuple(tensor.shape)) for name, tensor in wanted.items()}


@cache
def hub_state() -> dict[str, Tensor]:
    """As conversions of the TF-Hub module are: scales all one, nothing counts batches."""
    return {name: torch.ones_like(t) if name.endswith(".bn.weight") else t for name, t in i3d_state().items()}


def i3d_file(path: Path) -> Path:
    """A file that loads without being asked for its epsilon, which is 1e-5."""
    torch.save(hub_state(), path)
    return path


@cache
def c3d_state() -> dict[str, Tensor]:
    """By Chainer's names; 314 MB, and a few seconds."""
    with torch.device("meta"):
        wanted = C3D().state_dict()
    names = {name.replace(".", "/"): tuple(tensor.shape) for name, tensor in wanted.items()}
    return {name: filled(name, shape) for name, shape in names.items()}


def c3d_files(folder: Path) -> tuple[Path, Path]:
    """The weights and the mean clip."""
    weights, mean = folder / "conv3d_deepnetA_ucf.npz", folder / "mean2.npz"
    np.savez(weights, **{name: tensor.numpy() for name, tensor in c3d_state().items()})
    np.savez(mean, mean=mean_clip())
    return weights, mean


def mean_clip() -> np.ndarray:
    return (100 + 20 * uniform("mean", 3 * 16 * 128 * 128)).astype(np.float32).reshape(3, 16, 128, 128)


def formula_clip(frames: int, height: int, width: int) -> Tensor:
    """uint8 (T, 3, H, W)."""
    t, h, w, c = torch.meshgrid(*map(torch.arange, (frames, height, width, 3)), indexing="ij")
    values = 37 * t + 5 * h + 11 * w + 71 * c + h * w * (t + 1) // 16
    return (values % 256).to(torch.uint8).permute(0, 3, 1, 2).contiguous()
