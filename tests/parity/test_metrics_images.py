"""CRPS, PSNR, SSIM and LPIPS against stored reference values; every key of these groups must have been compared."""

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from framecast.metrics.forecast import crps, crps_by_frame, crps_maps
from framecast.metrics.hash_fill import filled, uniform
from framecast.metrics.image import psnr, psnr_clip, ssim
from framecast.nn.perceptual import LPIPS, load_lpips
from tests.parity.walk import FORWARD, error, folders

CLOSED, BYTES, DOUBLE = 1e-12, 1e-6, 1e-9  # float64; float32 sums of 8-bit values; float64 networks
SSIM = {"gauss11_channel": "gauss11", "gauss11_luma": "gauss11_luma", "uniform7_channel": "uniform7"}
NOT_OURS = {"ssim.torchmetrics_gauss11"}  # kept for the record: it averages over padded borders

FOLDERS = pytest.mark.parametrize("folder", folders("metrics"))


class Group:
    """Tensors whose names begin with one of some words, and which of them have been compared."""

    def __init__(self, folder, *words):
        found = load_file(folder / "basic.safetensors")
        self.tensors = {key: value for key, value in found.items() if key.partition(".")[0] in words}
        self.seen = NOT_OURS & set(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return self.tensors[name]

    def close(self, name: str, ours: Tensor, limit: float) -> None:
        theirs = self[name]
        assert error(ours.reshape(theirs.shape), theirs) <= limit, name

    def cases(self, what: str) -> list[str]:
        """The names that come before `.what`."""
        return sorted(key.removesuffix(f".{what}") for key in self.tensors if key.endswith(f".{what}"))

    def close_those_stored(self, case: str, ours: dict[str, Tensor], limit: float) -> None:
        stored = [name for name in ours if f"{case}.{name}" in self.tensors]
        assert stored, case
        for name in stored:
            self.close(f"{case}.{name}", ours[name], limit)

    def finish(self, but_for: tuple[str, ...] = ()) -> None:
        missed = [key for key in self.tensors if key not in self.seen and not key.startswith(but_for)]
        assert self.tensors
        assert not missed, f"not compared: {missed}"


def channels_first(frames: Tensor) -> Tensor:
    return frames.movedim(-1, -3).contiguous()


@FOLDERS
def test_crps_of_bytes_agrees(folder):
    group = Group(folder, "crps")
    for case in group.cases("obs_u8"):
        truth, samples = group[f"{case}.obs_u8"], group[f"{case}.ens_u8"]
        frames = channels_first(samples), channels_first(truth)
        means = [crps_by_frame(*frames, estimator=name).mean() for name in ("empirical", "fair")]
        ours = {
            "empirical": crps(samples, truth),
            "sum8bit": crps(samples, truth),
            "fair": crps(samples, truth, estimator="fair"),
            "single_member": crps(samples[:1], truth),
            "mean": torch.stack(means),
            "per_frame_empirical": crps_by_frame(*frames),
            "map_empirical": crps_maps(*frames),
        }
        group.close_those_stored(case, ours, BYTES)
    group.finish(but_for=tuple(f"{case}." for case in group.cases("ens")))


@FOLDERS
def test_crps_of_real_values_agrees(folder):
    group = Group(folder, "crps")
    assert group.cases("ens")
    for case in group.cases("ens"):
        samples, truth = group[f"{case}.ens"].movedim(-1, 0).contiguous(), group[f"{case}.obs"]
        ours = {name: crps(samples, truth, estimator=name) for name in ("empirical", "fair")}
        group.close_those_stored(case, ours, CLOSED)
        assert {key for key in group.tensors if key.startswith(f"{case}.")} <= group.seen


@FOLDERS
def test_psnr_and_ssim_agree(folder):
    group = Group(folder, "img", "psnr", "ssim")
    a, b = (channels_first(group[f"img.{name}"]) for name in "ab")
    ours = {"per_frame": psnr(a, b), "mean_of_frames": psnr(a, b).mean(), "of_clip_mse": psnr_clip(a, b)}
    group.close_those_stored("psnr", ours, CLOSED)
    group.close_those_stored("ssim", {name: ssim(a, b, variant=v) for name, v in SSIM.items()}, CLOSED)
    group.finish()


def formula_backbone(net: str) -> dict[str, Tensor]:
    """Weights under torchvision's names; VGG's are hashed with a prefix."""
    prefix = "vgg." if net == "vgg" else ""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LPIPS(net).features.state_dict(prefix="features.").items()}
    return {name: filled(prefix + name, shape) for name, shape in shapes.items()}


def formula_lin(net: str, k: int, width: int) -> Tensor:
    return torch.from_numpy(((uniform(f"lin{k}.{net}", width) + 1) / 2).astype("float32"))


def pictures(size: str) -> tuple[Tensor, Tensor]:
    """Two pairs in float64."""
    height, width = map(int, size.split("x"))
    shape = (2, 3, height, width)
    first, second = (
        torch.from_numpy(uniform(f"lpips.in{i}.{size}", 6 * height * width).astype("float32")).reshape(shape).double()
        for i in (0, 1)
    )
    return first, 0.5 * first + 0.5 * second


def sized(stored: dict[str, Tensor], net: str) -> list[str]:
    return sorted({key.split(".")[1] for key in stored if key.startswith(f"{net}.")})


def test_every_lpips_figure_is_of_a_known_kind():
    pattern = r"(alex|vgg)\.\d+x\d+\.(baseline\.value|feat[0-4]\.norm|(real|formula)_lin\.(value|per_layer))"
    for parameter in folders("metrics"):
        folder = parameter.values[0]
        if folder is None:
            pytest.skip("no reference values")
        stored = load_file(folder / "lpips_formula.safetensors")
        assert stored
        assert [key for key in stored if not re.fullmatch(pattern, key)] == []


@FOLDERS
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_agrees(folder, net, tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics", reason="the published weights of LPIPS come with torchmetrics")
    stored = load_file(folder / "lpips_formula.safetensors")
    torch.save(formula_backbone(net), tmp_path / "backbone.pth")
    real, plain, formula = load_lpips(net, tmp_path / "backbone.pth").double(), LPIPS(net).double(), LPIPS(net).double()
    for k in range(5):
        lin = formula.get_buffer(f"lin{k}")
        lin.copy_(formula_lin(net, k, len(lin)))
    assert sized(stored, net)
    compared = set()
    for size in sized(stored, net):
        a, b = pictures(size)
        # the features, most of the work, are computed once and shared
        maps = {id(x): real.features_of(x) for x in (a, b)}
        ours = {f"feat{k}.norm": f.norm() for k, f in enumerate(maps[id(a)])}
        with monkeypatch.context() as patch:
            patch.setattr(LPIPS, "features_of", lambda self, x, maps=maps: maps[id(x)])
            ours |= {"real_lin.per_layer": real.by_layer(a, b), "formula_lin.per_layer": formula.by_layer(a, b)}
            ours |= {"real_lin.value": real(a, b), "formula_lin.value": formula(a, b), "baseline.value": plain(a, b)}
        for name, value in ours.items():
            theirs = stored.get(f"{net}.{size}.{name}")
            compared.add(f"{net}.{size}.{name}")
            if theirs is not None:
                assert error(value.reshape(theirs.shape), theirs) <= DOUBLE, f"{net}.{size}.{name}"
    assert {key for key in stored if key.startswith(f"{net}.")} <= compared


@FOLDERS
def test_lpips_agrees_in_single_precision(folder, tmp_path):
    pytest.importorskip("torchmetrics", reason="the published weights of LPIPS come with torchmetrics")
    stored = load_file(folder / "lpips_formula.safetensors")
    for net in ("alex", "vgg"):
        torch.save(formula_backbone(net), tmp_path / f"{net}.pth")
        network = load_lpips(net, tmp_path / f"{net}.pth")
        for size in sized(stored, net)[:1]:
            a, b = (x.float() for x in pictures(size))
            assert error(network(a, b), stored[f"{net}.{size}.real_lin.value"]) <= FORWARD
