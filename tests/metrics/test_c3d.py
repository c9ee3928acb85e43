"""C3D from files: Chainer's, and TorchScript archives."""

import json

import numpy as np
import pytest
import torch

from framecast.metrics.c3d import C3D, load_c3d, mean_free
from tests.metrics.formula_weights import c3d_files, formula_clip, mean_clip
from tests.metrics.test_i3d import FIGURES


@pytest.fixture
def hollow(tmp_path):
    """Weights of the right names and shapes that take no room, and the mean clip."""
    with torch.device("meta"):
        wanted = C3D().state_dict()
    state = {name.replace(".", "/"): torch.zeros(()).expand(tensor.shape) for name, tensor in wanted.items()}
    torch.save(state, tmp_path / "c3d.pt")
    np.savez(tmp_path / "mean2.npz", mean=mean_clip())
    return state, tmp_path / "c3d.pt", tmp_path / "mean2.npz"


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        assert sum(p.numel() for p in C3D().parameters()) == 78_409_573


@pytest.mark.slow
def test_chainers_files_give_the_frozen_logits(tmp_path):
    network = load_c3d(*c3d_files(tmp_path))
    assert network.frames == (16, 16) and network.width == 101
    clip = formula_clip(16, 64, 64)[None]
    logits = network.network.network(mean_free(clip.float(), network.network.mean))
    frozen = torch.tensor(json.loads(FIGURES.read_text())["c3d 16 frames of 64 x 64"])
    assert torch.allclose(logits[0, ::10], frozen, atol=1e-4 * logits.std().item(), rtol=0)
    assert torch.allclose(network.features(clip), logits.double().softmax(1), atol=1e-4)


def test_probabilities_of_no_weights_are_equal(hollow):
    network = load_c3d(*hollow[1:])
    made = network.features(formula_clip(16, 20, 30)[None])
    assert torch.allclose(made, torch.full((1, 101), 1 / 101, dtype=torch.float64), atol=1e-7)


def test_pools_cover_all_and_begin_at_the_edge():
    x = torch.zeros(1, 3, 16, 112, 112)
    with torch.device("meta"):
        shapes = {name: tuple(y.shape[2:]) for name, y in C3D().endpoints(torch.empty_like(x, device="meta"))}
    assert shapes["pool1"] == (16, 56, 56) and shapes["pool4"] == (2, 7, 7) and shapes["pool5"] == (1, 4, 4)


def test_a_clip_is_blue_first_and_less_the_mean():
    clip = torch.zeros(1, 16, 3, 10, 20)
    clip[:, :, 0] = 255.0  # red
    made = mean_free(clip, torch.full((3, 16, 112, 112), 100.0))
    assert made.shape == (1, 3, 16, 112, 112)
    assert made[0, :, 0, 0, 0].tolist() == [-100, -100, 156]


def test_key_tells_mean_clips_apart(hollow, tmp_path):
    np.savez(tmp_path / "other.npz", mean=mean_clip() + 1)
    assert load_c3d(hollow[1], hollow[2]).key != load_c3d(hollow[1], tmp_path / "other.npz").key


def test_a_mean_is_needed_and_looked_at(hollow, tmp_path):
    with pytest.raises(ValueError, match=r"needs the mean clip .+ mean2\.npz too \(--c3d-mean FILE\)"):
        load_c3d(hollow[1])
    np.savez(tmp_path / "small.npz", mean=np.zeros((3, 16, 112, 112), np.float32))
    with pytest.raises(ValueError, match=r"mean has shape \(3, 16, 112, 112\), expected"):
        load_c3d(hollow[1], tmp_path / "small.npz")
    np.savez(tmp_path / "odd.npz", average=np.zeros(3))
    with pytest.raises(ValueError, match="has no array mean"):
        load_c3d(hollow[1], tmp_path / "odd.npz")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("fc8/W", torch.zeros(487, 4096), r"fc8/W has shape \(487, 4096\), C3D \(UCF-101\) needs \(101, 4096\)"),
        ("conv5b/b", None, "has no tensor conv5b/b"),
        ("conv6a/b", torch.zeros(3), "holds conv6a/b"),
    ],
)
def test_weights_of_other_networks_are_refused(hollow, name, tensor, said):
    state, path, mean = hollow
    state = {key: value for key, value in {**state, name: tensor}.items() if value is not None}
    torch.save(state, path)
    with pytest.raises(ValueError, match=said.replace("/", "[/.]")):
        load_c3d(path, mean)


class Archive(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return torch.softmax(x.amax((1, 2, 3, 4))[:, None] * torch.ones(1, 101), 1)


def test_an_archive_answers_with_probabilities_and_has_its_own_mean(hollow, tmp_path):
    torch.jit.script(Archive()).save(tmp_path / "c3d_ucf101.pt")
    network = load_c3d(tmp_path / "c3d_ucf101.pt")
    assert network.features(formula_clip(16, 8, 8)[None]).sum().item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="which has its own mean clip"):
        load_c3d(tmp_path / "c3d_ucf101.pt", hollow[2])


class Logits(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x.mean((1, 2, 3, 4))[:, None] * torch.ones(1, 101) + torch.arange(101)[None]


class Short(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x[:, 0, 0, 0]


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x @ torch.ones(7, 7)


class Nothing(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return torch.full((x.shape[0], 101), float("nan"))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Logits, r"answers with values from 0 to 100 that sum to 5\.05e\+03, not with probabilities"),
        (Short, r"another network: C3D .+16 frames, and this one answers with \(1, 32\), not \(1, 101\)"),
        (Flat, r"another network: C3D .+16 frames, and this one fails on such a clip"),
        (Nothing, r"answers with values that are not numbers"),
    ],
)
def test_an_archive_is_tried_when_it_is_loaded(tmp_path, network, said):
    torch.jit.script(network()).save(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=said) as refused:
        load_c3d(tmp_path / "other.pt")
    assert "other.pt" in str(refused.value) and "\n" not in str(refused.value)
