# SPDX-License-Identifier: Apache-2.0
"""LPIPS v0.1: the distance of two pictures in the features of AlexNet or VGG-16, weighted as people judged.

Zhang, Isola, Efros, Shechtman and Wang (2018), section 3. The features come from a file of the user's, as torchvision
names its tensors; the small weights learned from people's judgements come with torchmetrics. Nothing is bundled, and
without a file there is no distance. The value depends on the size of the pictures, which must be told beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from framecast.assets import sha256
from framecast.nn.weight_file import read_weights

Net = Literal["alex", "vgg"]

# ImageNet's mean and standard deviation of red, green, blue, moved to [-1, 1]
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-10  # beside the length of a feature vector
_AT_ONCE = 2**18  # pixels of a batch; bounds memory at about 0.3 GB


@dataclass(frozen=True)
class _Backbone:
    name: str
    layers: tuple[tuple[int, ...], ...]  # convolution and ReLU: in, out, kernel, stride, padding; pool: kernel, stride
    taps: tuple[int, ...]  # layers after which features are taken, counted as in torchvision
    shortest: int  # side in pixels that leaves something of the last features
    files: tuple[str, ...]  # of torchvision; the digits begin the file's sha256

    def built(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for first, second, *others in self.layers:
            if not others:
                layers.append(nn.MaxPool2d(first, second))
                continue
            kernel, stride, padding = others
            layers += [nn.Conv2d(first, second, kernel, stride, padding), nn.ReLU()]
        return nn.Sequential(*layers)


def _three(inside: int, outside: int) -> tuple[int, ...]:
    return (inside, outside, 3, 1, 1)


_BACKBONES = {
    "alex": _Backbone(
        "AlexNet",
        ((3, 64, 11, 4, 2), (3, 2), (64, 192, 5, 1, 2), (3, 2), _three(192, 384), _three(384, 256), _three(256, 256)),
        taps=(1, 4, 7, 9, 11),
        shortest=31,
        files=("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth"),
    ),
    "vgg": _Backbone(
        "VGG-16",
        (
            *(_three(3, 64), _three(64, 64), (2, 2)),
            *(_three(64, 128), _three(128, 128), (2, 2)),
            *(_three(128, 256), _three(256, 256), _three(256, 256), (2, 2)),
            *(_three(256, 512), _three(512, 512), _three(512, 512), (2, 2)),
            *(_three(512, 512), _three(512, 512), _three(512, 512)),
        ),
        taps=(3, 8, 15, 22, 29),
        shortest=16,
        files=("vgg16-397923af.pth",),
    ),
}
# OFFICIAL: lpips/weights/v0.1 of richzhang/PerceptualSimilarity
_LIN_MD5 = {"alex": "9642209e2b57a85d20f86d812320f9e6", "vgg": "d507d7349b931f0638a25a48a722f98a"}


class LPIPS(nn.Module):
    """The distance as a network, with gradients in both pictures; its own weights never learn.

    d(a, b) = sum_l mean_hw sum_c w_lc (f_lc(a) - f_lc(b))^2, with f_l the features of layer l brought to length 1 at
    each place. As built, the features are random and all w_lc are 1 (the distance without people's judgements);
    `load_lpips` fills both.

    Args:
        net: `alex` for evaluation, `vgg` for losses (PVDM).

    Raises:
        ValueError: an unknown net.

    Example:
        >>> network, a = LPIPS("alex"), torch.zeros(1, 3, 32, 32)
        >>> network(a, a).item()
        0.0
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net):
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"net is {net!r}; LPIPS can be of {' or '.join(get_args(Net))}.")
        self.net = net
        self.files: dict[str, str] = {}  # what was loaded: sha256 of `backbone` and `lin`
        self.taps = _BACKBONES[net].taps
        self.features = _BACKBONES[net].built()
        for k, tap in enumerate(self.taps):
            self.register_buffer(f"lin{k}", torch.ones(self.get_parameter(f"features.{tap - 1}.bias").shape))
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @property
    def shortest(self) -> int:
        """Least height and width in pixels of pictures that it can compare."""
        return _BACKBONES[self.net].shortest

    @property
    def sha256(self) -> str:
        """Of the backbone's file; empty where none was loaded."""
        return self.files.get("backbone", "")

    @property
    def about(self) -> dict[str, Any]:
        """Plain values for records: net, version, hashes, and which of torchvision's files the backbone is."""
        known = [name for name in _BACKBONES[self.net].files if self.sha256[:8] == Path(name).stem[-8:]]
        return {
            "net": self.net,
            "version": "0.1",
            **self.files,
            "file": known[0] if known else "not one of torchvision's",
        }

    @property
    def key(self) -> str:
        """16 hex digits that change with anything that determines the distance."""
        return hashlib.sha256(repr(["lpips 0.1", self.net, sorted(self.files.items())]).encode()).hexdigest()[:16]

    def features_of(self, x: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c h2 w2"]]:
        """The five feature maps of pictures in [-1, 1], before they are brought to length 1."""
        x, found = (x - self.shift) / self.scale, []
        for before, tap in pairwise((-1, *self.taps)):
            x = self.features[before + 1 : tap + 1](x)
            found.append(x)
        return found

    def by_layer(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "5 n"]:
        """The five terms of the distance; their sum is the distance."""
        terms = []
        for k, (f, g) in enumerate(zip(self.features_of(a), self.features_of(b))):
            gap = (_unit(f) - _unit(g)).square()
            terms.append(torch.einsum("nchw,c->nhw", gap, self.get_buffer(f"lin{k}")).mean((1, 2)))
        return torch.stack(terms)

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "n"]:
        """Distances of pictures in [-1, 1]; `b` holds as many as `a`, or one that all are compared with."""
        return self.by_layer(a, b).sum(0)

    @torch.no_grad()
    def distance(self, a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "m c h w"]) -> Float[Tensor, "n"]:
        """Distances of 8-bit pictures, 0 for equal ones, larger for more different ones.

        Args:
            a: pictures of 1 or 3 channels, red first; grey ones are repeated three times. They may lie on any device.
            b: as many, or one that all are compared with (its features are then computed once per batch).

        Returns:
            float64 on the CPU.

        Raises:
            ValueError: no weights were loaded, or these are not such pictures, or they are too small.
        """
        self._check(a, b)
        at_once = max(1, _AT_ONCE // (a.shape[-2] * a.shape[-1]))
        made = [self(self._scaled(x), self._scaled(y)) for x, y in _batches(a, b, at_once)]
        return torch.cat(made).to("cpu", torch.float64) if made else torch.zeros(0, dtype=torch.float64)

    def _scaled(self, frames: Tensor) -> Tensor:
        return (frames.to(self.shift.device, self.shift.dtype) / 127.5 - 1).expand(-1, 3, -1, -1)

    def _check(self, a: Tensor, b: Tensor) -> None:
        if not self.files:
            raise ValueError("LPIPS without a file of weights means nothing: give one (load_lpips).")
        if a.shape[1:] != b.shape[1:] or len(b) not in (1, len(a)):
            raise ValueError(f"pictures of shape {tuple(a.shape)} cannot be compared with {tuple(b.shape)} one by one.")
        if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS takes 8-bit pictures of 1 or 3 channels; these are {a.dtype} with {a.shape[1]}.")
        if min(a.shape[-2:]) < self.shortest:
            raise ValueError(
                f"LPIPS ({self.net}) needs pictures of {self.shortest} x {self.shortest} pixels at least; these are "
                f"{a.shape[-2]} x {a.shape[-1]}."
            )


def _unit(features: Tensor) -> Tensor:
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + _TINY)


def _batches(a: Tensor, b: Tensor, at_once: int) -> list[tuple[Tensor, Tensor]]:
    parts = a.split(at_once) if len(a) else ()
    return list(zip(parts, b.split(at_once) if len(b) == len(a) else [b] * len(parts)))


def load_lpips(net: Net, backbone: Path, lin: Path | None = None) -> LPIPS:
    """LPIPS with weights from files, in evaluation mode on the CPU.

    Args:
        net: `alex` or `vgg`.
        backbone: AlexNet's or VGG-16's weights for ImageNet as torchvision names them (`alexnet-owt-7be5be79.pth`,
            `vgg16-397923af.pth`); the classifier in it is not used.
        lin: the weights from people's judgements; None takes the published ones that come with torchmetrics.

    Raises:
        ValueError: a file that is missing, damaged or of another network, or torchmetrics is not installed.

    Source: richzhang/PerceptualSimilarity, lpips v0.1.
    """
    network = LPIPS(net)
    state = read_weights(Path(backbone), meant=f"{_BACKBONES[net].name} (torchvision)")
    given = {name: value for name, value in _tensors(state, backbone).items() if name.startswith("features.")}
    _check_backbone(given, net, backbone)
    lin = _published_lin(net) if lin is None else Path(lin)
    weights = _tensors(read_weights(lin, meant=f"LPIPS ({net})"), lin)
    for k in range(len(network.taps)):
        name, wanted = f"lin{k}.model.1.weight", network.get_buffer(f"lin{k}")
        if name not in weights or weights[name].shape != (1, len(wanted), 1, 1):
            raise ValueError(f"{lin} does not hold {name} of {len(wanted)} values: it is not LPIPS's file for {net}.")
        given[f"lin{k}"] = weights[name].flatten()
    network.load_state_dict(given)
    network.files = {"backbone": sha256(Path(backbone)), "lin": sha256(lin)}
    return network


def _tensors(content: Mapping[str, Tensor] | nn.Module, path: Path) -> Mapping[str, Tensor]:
    if isinstance(content, nn.Module):
        raise ValueError(f"{path} is a TorchScript archive; LPIPS takes the tensors by name, as torchvision has them.")
    return content


def _check_backbone(state: Mapping[str, Tensor], net: Net, path: Path) -> None:
    """Names and shapes must be exactly the network's; where they are another's, it is named."""
    told = {other: _difference(state, other) for other in get_args(Net)}
    if told[net] is None:
        return
    name = _BACKBONES[net].name
    another = next((other for other, difference in told.items() if difference is None), None)
    if another is not None:
        raise ValueError(
            f"{path} holds {_BACKBONES[another].name}, and the protocol, or the call, asks for LPIPS with "
            f"{name}: give {name}'s file, such as {_BACKBONES[net].files[0]}."
        )
    raise ValueError(f"{path} does not hold torchvision's {name}: {told[net]}.")


def _difference(state: Mapping[str, Tensor], net: str) -> str | None:
    with torch.device("meta"):
        features = _BACKBONES[net].built().state_dict(prefix="features.")
    wanted = {name: tuple(value.shape) for name, value in features.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name, shape in wanted.items():
        if found.get(name) != shape:
            return f"{name} {'is missing' if name not in found else f'has shape {found[name]}, expected {shape}'}"
    extra = sorted(found.keys() - wanted.keys())
    return f"{extra[0]} is not in that network" if extra else None


def _published_lin(net: Net) -> Path:
    found = find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise ValueError(
            "LPIPS needs weights that come with torchmetrics, which is not installed: pip install framecast[metrics]."
        )
    path = Path(found.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    if not path.is_file() or hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != _LIN_MD5[net]:
        raise ValueError(
            f"{path} is not the published file of LPIPS v0.1 for {net}: install torchmetrics anew, or give that file."
        )
    return path
