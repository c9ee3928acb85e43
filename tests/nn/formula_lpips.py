# SPDX-License-Identifier: Apache-2.0
"""Files like those that LPIPS reads, with weights from the formula."""

from pathlib import Path

import torch
from torch import Tensor

from framecast.metrics.hash_fill import filled, uniform
from framecast.nn.perceptual import LPIPS, Net

WIDTHS = {"alex": [64, 192, 384, 256, 256], "vgg": [64, 128, 256, 512, 512]}


def backbone(net: Net) -> dict[str, Tensor]:
    """Formula weights as torchvision names them, with a classifier that is not used."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LPIPS(net).features.state_dict(prefix="features.").items()}
    return {name: filled(name, shape) for name, shape in shapes.items()} | {"classifier.1.weight": torch.zeros(4, 4)}


def lins(net: Net) -> dict[str, Tensor]:
    """The weights from people's judgements, none below 0."""
    told = {f"lin{k}": width for k, width in enumerate(WIDTHS[net])}
    return {
        f"{name}.model.1.weight": torch.from_numpy((uniform(f"{name}.{net}", width) + 1) / 2).reshape(1, -1, 1, 1)
        for name, width in told.items()
    }


def write_files(folder: Path, net: Net) -> tuple[Path, Path]:
    """Backbone and judgements."""
    files = folder / f"{net}.pth", folder / f"{net}-lin.pth"
    for file, state in zip(files, (backbone(net), lins(net)), strict=True):
        torch.save(state, file)
    return files
