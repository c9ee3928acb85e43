# SPDX-License-Identifier: Apache-2.0
"""C3D (Tran et al., 2015) trained on UCF-101, whose class probabilities are what the video Inception Score is made of.

Architecture, preprocessing and names as in the repository pfnet-research/tgan2, whose files are Chainer's: one npz with
the weights, another with the mean clip that is subtracted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framecast.assets import sha256
from framecast.metrics.features import FeatureNetwork
from framecast.metrics.resize import resize
from framecast.nn.weight_file import read_weights, try_script

CLASSES, FRAMES, SIDE = 101, 16, 112
_MEANT = "C3D (UCF-101)"
_CROP = slice(8, 8 + SIDE)  # of the mean clip

# layer -> its inputs, its outputs; the pool after it in frames (all pools halve height and width)
_CONVOLUTIONS = {
    "conv1a": (3, 64, 1),
    "conv2a": (64, 128, 2),
    "conv3a": (128, 256, None),
    "conv3b": (256, 256, 2),
    "conv4a": (256, 512, None),
    "conv4b": (512, 512, 2),
    "conv5a": (512, 512, None),
    "conv5b": (512, 512, 2),
}
_PRODUCTS = {"fc6": (512 * 4 * 4, 4096), "fc7": (4096, 4096), "fc8": (4096, CLASSES)}


class C3D(nn.Module):
    """The network behind the subtraction of the mean; its tensors have Chainer's names, with a dot for the slash.

    Source: tgan2/models/c3d/c3d_ucf101.py of the repository named above.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, (width, out, _) in _CONVOLUTIONS.items():
            self.add_module(name, Convolution(width, out))
        for name, (width, out) in _PRODUCTS.items():
            self.add_module(name, Product(width, out))

    def endpoints(self, x: Float[Tensor, "n 3 16 112 112"]) -> Iterator[tuple[str, Tensor]]:
        """The output of every layer by name, pools too; of `fc8` before the softmax."""
        for name, (_, _, pooled) in _CONVOLUTIONS.items():
            x = self.get_submodule(name)(x)
            yield name, x
            if pooled is not None:
                size = (pooled, 2, 2)
                # OFFICIAL: Chainer's pools cover all, windows begin at 0; padding on both sides would shift them
                x = F.max_pool3d(x, size, size, ceil_mode=True)
                yield f"pool{name[4]}", x
        x = x.flatten(1)
        for name in _PRODUCTS:
            x = self.get_submodule(name)(x)
            x = x if name == "fc8" else x.relu_()
            yield name, x

    def forward(self, x: Float[Tensor, "n 3 16 112 112"]) -> Float[Tensor, "n 101"]:
        """Logits.

        Args:
            x: clips as `mean_free` makes them.
        """
        _, out = deque(self.endpoints(x), maxlen=1).pop()  # one layer's output is kept at a time
        return out


class Convolution(nn.Module):
    """3 × 3 × 3 over frames that keep their size, and ReLU."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(out, width, 3, 3, 3)), nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.W, self.b, padding=1).relu_()


class Product(nn.Module):
    """A layer in which everything is connected."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(out, width)), nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W, self.b)


def mean_free(
    clips: Float[Tensor, "n 16 3 h w"], mean: Float[Tensor, "3 16 112 112"]
) -> Float[Tensor, "n 3 16 112 112"]:
    """Clips of 0 to 255 at 112 × 112, blue first, less the mean clip.

    The official code takes x = v/127.5 - 1 and computes 128 x + 128 - mean, so a grey level v counts as v 128/127.5.
    """
    blue_first = (clips / 127.5 - 1).flip(2) * 128
    sized = resize(blue_first, SIDE, SIDE, convention="align_corners")  # Chainer's resize_images
    return sized.transpose(1, 2) + 128 - mean


class Probabilities(nn.Module):
    """C3D on 8-bit clips."""

    mean: Tensor

    def __init__(self, network: C3D, mean: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(mean_free(clips.to(torch.float32), self.mean)).softmax(-1)


class Scripted(nn.Module):
    """A TorchScript C3D on 8-bit clips; it resizes by itself and answers with probabilities."""

    def __init__(self, module: torch.jit.ScriptModule):
        super().__init__()
        self.module = module

    def forward(self, clips: Tensor) -> Tensor:
        return self.module(clips.to(torch.float32).transpose(1, 2).contiguous())


def load_c3d(path: Path | str, mean: Path | str | None = None) -> FeatureNetwork:
    """The class probabilities of clips of 16 frames, from a file of weights.

    Args:
        path: Chainer's npz (`conv3d_deepnetA_ucf.npz`), or a TorchScript archive such as StyleGAN-V's
            (`c3d_ucf101.pt`).
        mean: the npz with the mean clip (`mean2.npz`); an archive has its own.

    Returns:
        A network whose features are probabilities, (N, 101).

    Raises:
        ValueError: not such files, weights of another network, or no mean.
    """
    path = Path(path)
    content = read_weights(path, meant=_MEANT)
    if isinstance(content, torch.jit.ScriptModule):
        if mean is not None:
            raise ValueError(f"{path} is a TorchScript archive, which has its own mean clip: leave {mean} out.")
        scripted = Scripted(content)
        _check_script(path, scripted)
        return _features(path, scripted, {"names": "torchscript", "mean": "inside the archive"})
    state = {name.replace("/", "."): tensor for name, tensor in content.items()}
    with torch.device("meta"):
        network = C3D()
    _check(state, network, where=str(path))
    if mean is None:
        raise ValueError(
            f"{path} needs the mean clip that is subtracted from what it sees: give mean2.npz too (--c3d-mean FILE)."
        )
    network.load_state_dict(state, assign=True)
    cube = _read_mean(Path(mean))
    return _features(path, Probabilities(network, cube), {"names": "chainer", "mean": sha256(Path(mean))})


def _features(path: Path, network: nn.Module, about: dict[str, Any]) -> FeatureNetwork:
    return FeatureNetwork(
        name="c3d",
        sha256=sha256(path),
        about={"feature": "UCF-101 class probabilities", **about},
        frames=(FRAMES, FRAMES),
        width=CLASSES,
        network=network.requires_grad_(False).eval(),
    )


def _check_script(path: Path, network: Scripted) -> None:
    made = try_script(path, network, frames=FRAMES, width=CLASSES, meant=_MEANT, takes="takes clips of 16 frames")
    if not bool((made >= 0).all()) or abs(made.sum().item() - 1) > 1e-3:
        low, high, total = made.min().item(), made.max().item(), made.sum().item()
        raise ValueError(
            f"{path} answers with values from {low:.3g} to {high:.3g} that sum to {total:.3g}, not with probabilities: "
            f"{_MEANT} ends in a softmax."
        )


def _check(state: dict[str, Tensor], network: C3D, *, where: str) -> None:
    for name, wanted in network.state_dict().items():
        theirs = name.replace(".", "/")
        if name not in state:
            raise ValueError(f"{where} has no tensor {theirs}, which {_MEANT} needs: it is a file of another network.")
        if state[name].shape != wanted.shape:
            found, needed = tuple(state[name].shape), tuple(wanted.shape)
            raise ValueError(f"{where}: {theirs} has shape {found}, {_MEANT} needs {needed}.")
    extra = next((name for name in state if name not in network.state_dict()), None)
    if extra is not None:
        raise ValueError(f"{where} holds {extra}, which {_MEANT} does not have.")


def _read_mean(path: Path) -> Tensor:
    content = read_weights(path, meant="the mean clip of C3D (mean2.npz)")
    cube = content.get("mean") if isinstance(content, dict) else None
    if cube is None:
        raise ValueError(f"{path} has no array mean: expected the mean clip of C3D (mean2.npz).")
    if cube.ndim != 4 or cube.shape[:2] != (3, FRAMES) or min(cube.shape[2:]) < _CROP.stop:
        raise ValueError(
            f"{path}: mean has shape {tuple(cube.shape)}, expected 3 × 16 × 128 × 128 (colour, frame, height, width)."
        )
    return cube[:, :, _CROP, _CROP].to(torch.float32).contiguous()
