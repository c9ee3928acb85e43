"""The graph itself, where no reference figures are needed, and files of its weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from framecast.metrics.i3d import I3D, MaxPool, Unit, pad_same
from framecast.metrics.i3d_weights import load_i3d, prepared, units
from tests.metrics.formula_weights import formula_clip, hub_state, i3d_file, i3d_state

FIGURES = Path(__file__).parents[1] / "figures" / "networks.json"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return i3d_file(tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt")


def hollow(**changes):
    """A state dict of the right names and shapes that takes no room; `None` leaves a tensor out."""
    state = {name: torch.ones(()).expand(tensor.shape) for name, tensor in i3d_state().items()}
    state |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


# ---- the graph


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        network = I3D(eps=1e-3)
    assert sum(p.numel() for p in network.parameters()) == 12_697_264
    assert len(network.state_dict()) == 287


@pytest.mark.parametrize(("frames", "steps"), [(9, 1), (16, 1), (17, 2), (128, 15)])
def test_steps_left_of_a_clip(frames, steps):
    with torch.device("meta"):
        network, x = I3D(eps=1e-3), torch.empty(1, 3, frames, 224, 224)
    shapes = {name: tuple(y.shape) for name, y in network.endpoints(x)}
    assert shapes["logits_per_step"] == (1, 400, steps)
    assert shapes["Mixed_5c"][1:] == (1024, steps + 1, 7, 7)


def test_logits_are_averaged_over_the_steps(monkeypatch):
    steps = torch.rand(2, 400, 3)
    monkeypatch.setattr(I3D, "endpoints", lambda self, x: iter([("avg_pool", x), ("logits_per_step", steps)]))
    with torch.device("meta"):
        network, x = I3D(eps=1e-3), torch.empty(2, 3, 32, 224, 224)
    assert torch.equal(network(x), steps.mean(2))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "behind"),
    [(224, 7, 2, 2, 3), (45, 7, 2, 3, 3), (112, 3, 2, 0, 1), (9, 3, 2, 1, 1), (16, 3, 1, 1, 1), (7, 2, 2, 0, 1)],
)
def test_padding_is_tensorflows(size, kernel, stride, before, behind):
    x = torch.rand(1, 1, size, 1, 1)
    padded, both = pad_same(x, (kernel, 1, 1), (stride, 1, 1))
    padded = F.pad(padded, (0, 0, 0, 0, both[0], both[0]))
    assert torch.equal(padded, F.pad(x, (0, 0, 0, 0, before, behind))) and both[1:] == (0, 0)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (7, 2)])
def test_a_unit_is_convolution_batch_norm_and_relu(kernel, stride):
    torch.manual_seed(0)
    unit = Unit(3, 5, kernel, stride=stride, eps=1e-2).double()
    for tensor in (unit.bn.weight.data, unit.bn.bias.data, unit.bn.running_mean, unit.bn.running_var):
        tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 5, 8, 9, dtype=torch.float64)
    padded, both = pad_same(x, (kernel,) * 3, (stride,) * 3)
    plain = F.conv3d(padded, unit.conv3d.weight, stride=stride, padding=both)
    moments = (unit.bn.running_mean, unit.bn.running_var)
    plain = F.batch_norm(plain, *moments, unit.bn.weight, unit.bn.bias, training=False, eps=1e-2).relu()
    assert torch.allclose(unit(x), plain, atol=1e-12)


def test_pools_see_zeros_around():
    x = torch.zeros(1, 1, 1, 2, 2)
    x[..., 1, 1] = 5.0
    assert MaxPool((1, 3, 3), stride=(1, 2, 2))(x).item() == 5.0


# ---- files


def test_file_of_the_hub_is_known_and_gives_the_frozen_features(hub):
    network = load_i3d(hub)
    assert network.about["eps"] == 1e-5 and "all one" in network.about["eps_from"]
    assert network.frames == (9, None) and network.width == 400
    made = network.features(formula_clip(9, 40, 60)[None])[0]
    frozen = torch.tensor(json.loads(FIGURES.read_text())["i3d 9 frames of 40 x 60"], dtype=torch.float64)
    assert torch.allclose(made[::40], frozen, atol=1e-4 * made.std().item(), rtol=0)


def test_names_of_hassony2_lead_to_the_same_weights(hub, tmp_path):
    names = {}
    for name, (theirs, _) in units().items():
        names |= {f"{name}.conv3d": f"{theirs}.conv3d", f"{name}.bn": f"{theirs}.batch3d"}
    state = {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t for n, t in hub_state().items()}
    assert "mixed_3b.branch_1.0.batch3d.running_var" in state and "conv3d_0c_1x1.conv3d.bias" in state
    safetensors.torch.save_file(state, str(tmp_path / "model_rgb.safetensors"))
    network = load_i3d(tmp_path / "model_rgb.safetensors")
    assert network.about["names"] == "hassony2" and network.about["eps"] == 1e-3
    assert same_weights(network, load_i3d(hub))


def test_variables_of_tensorflow_lead_to_the_same_weights_and_need_an_epsilon(hub, tmp_path):
    variables, names = {}, units()
    ends = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for name, tensor in hub_state().items():
        unit, layer, last = name.rsplit(".", 2)
        place = f"RGB/inception_i3d/{names[unit][1]}"
        if layer == "conv3d":
            array = tensor.permute(2, 3, 4, 1, 0) if last == "weight" else tensor
            variables[f"{place}/conv_3d/{'w' if last == 'weight' else 'b'}:0"] = array.numpy()
        elif last != "weight":
            variables[f"{place}/batch_norm/{ends[last]}:0"] = tensor.numpy().reshape(1, 1, 1, 1, -1)
    np.savez(tmp_path / "i3d.npz", **variables)
    with pytest.raises(ValueError, match=r"does not tell which batch-norm epsilon .* --i3d-eps 1e-5 .* or --i3d-eps"):
        load_i3d(tmp_path / "i3d.npz")
    network = load_i3d(tmp_path / "i3d.npz", eps=1e-5)
    assert network.about["names"] == "tensorflow" and network.about["eps_from"] == "given"
    assert same_weights(network, load_i3d(hub))


def same_weights(one, other):
    a, b = (network.network.network.state_dict() for network in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_files_that_count_batches_have_the_larger_epsilon(tmp_path):
    torch.save(hollow(Conv3d_1a_7x7__bn__num_batches_tracked=torch.tensor(9)), tmp_path / "a.pt")
    assert load_i3d(tmp_path / "a.pt").about["eps"] == 1e-3


def test_a_file_that_does_not_tell_its_epsilon_is_asked_about(tmp_path):
    torch.save(hollow(Mixed_4d__b2b__bn__weight=torch.full((64,), 1.01)), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="does not tell which batch-norm epsilon"):
        load_i3d(tmp_path / "a.pt")
    assert load_i3d(tmp_path / "a.pt", eps=1e-3).about["eps"] == 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logits__conv3d__weight": torch.ones(157, 1024, 1, 1, 1)}, "tells 157 classes apart, as of Charades"),
        ({"logits__conv3d__weight": torch.ones(600, 1024, 1, 1, 1)}, "tells 600 classes apart, as of Kinetics-600"),
        ({"Conv3d_1a_7x7__conv3d__weight": torch.ones(64, 2, 7, 7, 7)}, "optical flow"),
        ({"Mixed_3b__b0__bn__bias": None}, "has no tensor Mixed_3b.b0.bn.bias"),
        ({"Mixed_3b__b0__bn__bias": torch.ones(9)}, r"has shape \(9,\), .* needs \(64,\)"),
        ({"Mixed_6a__b0__bn__bias": torch.ones(9)}, "holds the tensor Mixed_6a.b0.bn.bias"),
        ({"Conv3d_2b_1x1__bn__running_var": -torch.ones(64)}, "negative variances"),
    ],
)
def test_weights_of_other_networks_are_refused(changes, said, tmp_path):
    torch.save(hollow(**changes), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=said) as refused:
        load_i3d(tmp_path / "a.pt")
    assert "\n" not in str(refused.value)


def test_names_of_no_such_network_are_refused(tmp_path):
    torch.save({"features.0.weight": torch.ones(2)}, tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match=r"holds features.0.weight and the like: these are not the weights of I3D"):
        load_i3d(tmp_path / "alexnet.pth")


def test_key_tells_epsilon_and_resizing_apart(tmp_path):
    torch.save(hollow(), tmp_path / "a.pt")
    networks = [load_i3d(tmp_path / "a.pt", eps, how) for eps, how in ((None, "straight"), (1e-3, "straight"))]
    networks += [load_i3d(tmp_path / "a.pt", resize=how) for how in ("tf1", "short_side")]
    assert len({network.key for network in networks}) == 4
    assert len({network.sha256 for network in networks}) == 1


def test_frames_are_prepared_in_each_way():
    frames = torch.randint(0, 256, (2, 3, 40, 60)).float()
    made = {how: prepared(frames, how) for how in ("straight", "tf1", "short_side")}
    assert all(x.shape == (2, 3, 224, 224) and x.abs().max() <= 1 for x in made.values())
    assert not torch.allclose(made["straight"], made["tf1"], atol=0.01)
    assert not torch.allclose(made["straight"], made["short_side"], atol=0.01)
    square = frames[..., :40]
    assert torch.allclose(prepared(square, "straight"), prepared(square, "short_side"), atol=1e-5)


def test_unknown_ways_are_refused(tmp_path, unchecked):
    with pytest.raises(ValueError, match="it can be straight, tf1, short_side"):
        load_i3d(tmp_path / "a.pt", resize="bicubic")
    with pytest.raises(ValueError, match="eps is 5; batch norms of I3D have 1e-3 or 1e-5"):
        load_i3d(tmp_path / "a.pt", eps=5)


# ---- TorchScript


class Archive(torch.nn.Module):
    """Tells what it was called with: frame values, and the flags."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        told = torch.tensor([float(rescale), float(resize), float(return_features)])
        values = torch.stack([x.amin((1, 2, 3, 4)), x.amax((1, 2, 3, 4))], 1)
        sizes = torch.full((x.shape[0], 395), float(x.shape[4]))
        return torch.cat([told.expand(x.shape[0], 3), values, sizes], 1)


class Other(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x.mean((2, 3, 4))


class Short(torch.nn.Module):
    """Has the words of the published archive, and other features."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return x.mean((2, 3, 4))


@pytest.fixture
def archive(tmp_path):
    torch.jit.script(Archive()).save(tmp_path / "i3d_torchscript.pt")
    return tmp_path / "i3d_torchscript.pt"


def test_an_archive_resizes_and_scales_by_itself(archive):
    network = load_i3d(archive)
    assert network.about["names"] == "torchscript" and network.about["eps"] == "inside the archive"
    made = network.features(formula_clip(9, 40, 60).clamp(3, 250)[None])[0]
    assert made[:6].tolist() == [1, 1, 1, 3, 250, 60]


def test_an_archive_is_given_prepared_frames_where_other_resizing_is_wanted(archive):
    made = load_i3d(archive, resize="short_side").features(torch.full((1, 9, 3, 40, 60), 255, dtype=torch.uint8))[0]
    assert made[:6].tolist() == [0, 0, 1, 1, 1, 224]


def test_archives_of_other_networks_are_refused(archive, tmp_path):
    torch.jit.script(Other()).save(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="a TorchScript archive of another network"):
        load_i3d(tmp_path / "other.pt")
    torch.jit.script(Short()).save(tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"short\.pt is a .+ and this one answers with \(1, 3\), not \(1, 400\)"):
        load_i3d(tmp_path / "short.pt")
    with pytest.raises(ValueError, match="whose epsilon is fixed inside"):
        load_i3d(archive, eps=1e-3)
