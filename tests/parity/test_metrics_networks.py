"""I3D, C3D and resizing agree with the reference figures, every key of them, whatever cases a folder holds."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from framecast.metrics.c3d import C3D, mean_free
from framecast.metrics.hash_fill import filled, uniform
from framecast.metrics.i3d import I3D
from framecast.metrics.i3d_weights import load_i3d, prepared, units
from framecast.metrics.resize import resize
from tests.metrics.formula_weights import c3d_state, formula_clip, i3d_state, mean_clip
from tests.parity.walk import folders

EXACT, SINGLE = 1e-9, 1e-4  # of float64 and of float32, relative to the spread of the reference


class Figures:
    """Tensors of a file under one prefix; remembers which were compared."""

    def __init__(self, path: Path, prefix: str = ""):
        self.tensors = {name: t for name, t in load_file(path).items() if name.startswith(prefix)}
        self.left = set(self.tensors)

    def close(self, name: str, ours: Tensor, limit: float) -> None:
        """Compare with the tensor `name`, and with its figures `name`.stats where they are there."""
        if f"{name}.stats" in self.tensors:
            theirs, found = self.tensors[f"{name}.stats"], stats(ours)
            self.left.discard(f"{name}.stats")
            spread, norm = theirs[1], theirs[4]
            assert abs(found[4] - norm) <= limit * norm, name
            rest = [*range(4), *range(5, len(theirs))]
            assert (found - theirs)[rest].abs().max() <= limit * spread, name
        if name in self.tensors:
            theirs = self.tensors[name]
            self.left.discard(name)
            assert tuple(ours.shape) == tuple(theirs.shape), name
            assert (ours.double() - theirs).abs().max() <= limit * theirs.std(correction=0), name

    def finish(self) -> None:
        assert not self.left, f"not compared: {sorted(self.left)}"


def stats(x: Tensor) -> Tensor:
    """Mean, spread, least, largest, norm, and 16 elements spread evenly."""
    flat = x.detach().double().flatten()
    picked = flat[[k * (len(flat) - 1) // 15 for k in range(16)]]
    return torch.cat([torch.stack([flat.mean(), flat.std(correction=0), flat.min(), flat.max(), flat.norm()]), picked])


def i3d(eps: float) -> I3D:
    with torch.device("meta"):
        network = I3D(eps=eps)
    network.load_state_dict({name: tensor.double() for name, tensor in i3d_state().items()}, assign=True)
    return network.requires_grad_(False)


@pytest.mark.parametrize("folder", folders("metrics"))
def test_i3d_of_small_odd_clips(folder):
    figures = Figures(folder / "i3d_formula.safetensors", "small.")
    x = torch.from_numpy(uniform("i3d.small.input", 2 * 3 * 7 * 45 * 51)).float().double().reshape(2, 3, 7, 45, 51)
    for name, y in i3d(1e-3).endpoints(x):
        figures.close(f"small.{name}", y, EXACT)
        if name == "Mixed_5c":  # too small for what follows
            break
    figures.finish()


@pytest.mark.parametrize("folder", folders("metrics"))
def test_i3d_of_whole_clips(folder, tmp_path):
    figures = Figures(folder / "i3d_formula.safetensors", "clip")
    cases = {re.match(r"clip(\d+)\.eps([^.]+(?:\.\d+)?)\.", name) for name in figures.tensors}
    found = sorted({(int(case[1]), case[2]) for case in cases if case})
    assert found
    torch.save(i3d_state(), tmp_path / "i3d.pt")
    for frames, eps in found:
        clip = formula_clip(frames, 64, 64)[None]
        x = prepared(clip.double(), "straight").transpose(1, 2)
        figures.close(f"clip{frames}.input", x, EXACT)
        for name, y in i3d(float(eps)).endpoints(x):
            outer = name in ("avg_pool", "logits_per_step")
            figures.close(f"clip{frames}.eps{eps}.{name}", y[0] if outer else y, EXACT)
        figures.close(f"clip{frames}.eps{eps}.logits_mean", y[0].mean(-1), EXACT)
    figures.finish()
    frames, eps = found[0]  # in float32, as it is used
    features = load_i3d(tmp_path / "i3d.pt", eps=float(eps)).features(formula_clip(frames, 64, 64)[None])
    figures.close(f"clip{frames}.eps{eps}.logits_mean", features[0], SINGLE)


@pytest.mark.parametrize("folder", folders("metrics"))
def test_every_name_in_the_i3d_file_is_compared(folder):
    names = Figures(folder / "i3d_formula.safetensors").left
    assert all(name.startswith(("small.", "clip")) for name in names)


@pytest.mark.parametrize("folder", folders("metrics"))
def test_i3d_units_and_their_names(folder):
    listed = json.loads((folder / "i3d_units.json").read_text())["units"]
    assert {unit["piergiaj"]: (unit["hassony2"], unit["tf"]) for unit in listed} == units()
    network = I3D(eps=1e-3)
    for unit in listed:
        ours = network.get_submodule(unit["piergiaj"])
        kernel = [unit["out_channels"], unit["in_channels"], *unit["kernel"]]
        assert list(ours.conv3d.weight.shape) == kernel, unit
        assert hasattr(ours, "bn") == unit["batch_norm"]
        assert unit["stride"] == list(getattr(ours, "stride", (1, 1, 1)))


@pytest.mark.parametrize("folder", folders("metrics"))
def test_c3d(folder):
    figures = Figures(folder / "c3d_formula.safetensors")
    with torch.device("meta"):
        network = C3D()
    network.load_state_dict({name.replace("/", "."): t for name, t in c3d_state().items()}, assign=True)
    mean = torch.from_numpy(mean_clip())[:, :, 8:120, 8:120]
    clip = formula_clip(16, 64, 64)[None]
    figures.close("pre", mean_free(clip.double(), mean.double()), EXACT)
    with torch.no_grad():
        for name, y in network.endpoints(mean_free(clip.float(), mean)):
            figures.close(name, y[0], SINGLE)
    figures.close("log_softmax", y[0].double().log_softmax(0), SINGLE)
    figures.finish()


@pytest.mark.parametrize("folder", folders("metrics"))
def test_resizing(folder):
    figures = Figures(folder / "basic.safetensors", "resize.")
    frame = figures.tensors["resize.input"]
    figures.left.remove("resize.input")
    for name in sorted(figures.left):
        convention, height, width = re.fullmatch(r"resize\.(\w+)_(\d+)x(\d+)", name).groups()
        convention = {"tf1_legacy": "tf1"}.get(convention, convention)
        figures.close(name, resize(frame, int(height), int(width), convention=convention), EXACT)
    figures.finish()


def test_formula_is_the_stated_one():
    begin = filled("Conv3d_1a_7x7.conv3d.weight", (64, 3, 7, 7, 7)).flatten()[:4]
    assert torch.allclose(begin, torch.tensor([-0.06192003, -0.04575945, 0.02554758, -0.02372549]), atol=1e-8)
