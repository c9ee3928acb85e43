# SPDX-License-Identifier: Apache-2.0
"""RVD: official files, told apart from everything else; the sizes of the published networks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framecast.checkpoint import fill
from framecast.experiment import DataConfig, VideoSpec, from_plain, to_plain
from framecast.systems import entry, preset, presets, resolve
from framecast.systems.rvd.config import ForecastStageConfig, RVDConfig, RVDExperiment, RVDSampling
from framecast.systems.rvd.network import ContextNetwork, Denoiser, TransformNetwork
from framecast.systems.rvd.rvd import RVD
from framecast.systems.rvd.weights import our_name, read_checkpoint
from tests.parity.walk import FORWARD, error, folders
from tests.recorded import Recorded
from tests.systems.official_rvd import official_file, official_state

CONFIG = RVDConfig(width=8, multipliers=(1, 2, 3), transform_multipliers=(1, 3), noise_levels=50)
BASE = RVDExperiment(data=DataConfig(channels=1))


@pytest.fixture(scope="module")
def state():
    return official_state(CONFIG, 1)


def saved(tmp_path, content, name="resnet_0.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def share(read, state):
    """1 where the weights that were read are those of an official state, 0.5 where they are half of them."""
    found = {f"{part}.{name}": tensor for part, some in read.parts.items() for name, tensor in some.items()}
    wanted = {our_name(name): tensor for name, tensor in state.items() if "_fn." in name}
    assert found.keys() == wanted.keys()
    return next(
        factor
        for factor in (1.0, 0.5)
        if all(torch.equal(found[k], (v * factor).float().reshape(found[k].shape)) for k, v in wanted.items())
    )


@pytest.mark.parametrize(("weights", "kind", "factor"), [(None, "raw", 1.0), ("raw", "raw", 1.0), ("ema", "ema", 0.5)])
def test_settings_step_and_the_asked_for_weights_are_read(tmp_path, state, weights, kind, factor):
    read = read_checkpoint(saved(tmp_path, official_file(state)), experiment=BASE, weights=weights)
    assert read.config == CONFIG
    assert (read.step, read.weights, share(read, state)) == (996_000, kind, factor)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"step": 7, "model": {f"module.{name}": torch.nn.Parameter(t) for name, t in s.items()}},
    ],
    ids=["plain", "wrapped", "parallel"],
)
def test_weights_are_read_from_other_containers(tmp_path, state, wrap):
    read = read_checkpoint(saved(tmp_path, wrap(state)), experiment=BASE)
    assert (read.config, read.weights, share(read, state)) == (CONFIG, "raw", 1.0)


def test_half_precision_tables_included_becomes_float32(tmp_path, state):
    half = {name: tensor.half() for name, tensor in state.items()}
    read = read_checkpoint(saved(tmp_path, official_file(half)), experiment=BASE)
    assert {t.dtype for part in read.parts.values() for t in part.values()} == {torch.float32}
    head = read.parts["denoiser"]["head.weight"]
    assert torch.equal(head, state["denoise_fn.final_conv.1.weight"].half().float())


@pytest.mark.parametrize(
    ("base", "prediction", "sigma"),
    [({"sigma": 2.0}, "none", 1.0), ({"prediction": "previous", "sigma": 2.0}, "previous", 2.0)],
    ids=["VD", "SimpleRVD"],
)
def test_file_without_a_transform_network_is_an_ablation(tmp_path, state, base, prediction, sigma):
    state = {name: t for name, t in state.items() if not name.startswith("transform_fn.")}
    experiment = replace(BASE, model=RVDConfig(transform_multipliers=CONFIG.transform_multipliers, **base))
    read = read_checkpoint(saved(tmp_path, official_file(state)), experiment=experiment)
    assert read.config == replace(CONFIG, prediction=prediction, sigma=sigma)
    assert set(read.parts) == {"context", "denoiser"} and share(read, state) == 1.0


def test_settings_that_no_file_tells_are_the_experiments(tmp_path, state):
    experiment = replace(BASE, model=RVDConfig(target="x_0", sigma=2.0, groups=4, patch=2, residual="none"))
    read = read_checkpoint(saved(tmp_path, official_file(state)), experiment=experiment)
    assert read.config == replace(CONFIG, target="x_0", sigma=2.0, groups=4)


def without(state, start):
    return {name: tensor for name, tensor in state.items() if not name.startswith(start)}


REFUSED = [
    (lambda s: {"state": {}, "param_groups": []}, "is the state of an optimiser, not weights: give a resnet"),
    (lambda s: {"step": 3, "optimizer": {"state": {}, "param_groups": []}}, "'step' is no tensor"),
    (lambda s: official_file(without(s, "denoise_fn.")), r"no tensor denoise_fn\.time_mlp\.3\.weight: .* RVD model"),
    (lambda s: official_file(without(s, "history_fn.")), r"no tensor history_fn\.downs\.0\.0\.block1.*RVD model"),
    (lambda s: official_file(without(s, "history_fn.downs.2.1.")), r"no tensor history_fn\.downs\.2\.1\.conv_gates\.0"),
    (lambda s: official_file(without(s, "transform_fn.downs")), r"no tensor transform_fn\.downs\.0\.0.* RVD model"),
    (lambda s: official_file(without(s, "betas")), "no tensor betas: .* RVD model"),
    (lambda s: official_file(without(s, "posterior_variance")), "no tensor posterior_variance, which"),
    (lambda s: official_file(s | {"denoise_fn.extra": torch.zeros(1)}), r"holds the tensor denoise_fn\.extra, which"),
    (
        lambda s: official_file(s | {"transform_fn.mu.bias": torch.zeros(4)}),
        r"transform_fn\.mu\.bias has shape \(4,\), the network of these settings needs \(1,\)",
    ),
    (
        lambda s: official_file(s | {"denoise_fn.mid_attn.fn.fn.to_qkv.weight": torch.zeros(192, 24)}),
        r"mid_attn\.fn\.fn\.to_qkv\.weight has shape \(192, 24\), .* needs \(192, 24, 1, 1\)",
    ),
    (
        lambda s: official_file(s | {"history_fn.downs.1.0.block1.block.0.weight": torch.zeros(20, 8, 3, 3)}),
        r"history_fn\.downs\.1\.0\.block1\.block\.0\.weight has shape \(20, 8, 3, 3\), .* needs \(16, 8, 3, 3\)",
    ),
    (lambda s: official_file(s | {"betas": torch.zeros(())}), r"betas has shape \(\): these are not the weights"),
    (
        lambda s: official_file(s | {"betas": torch.linspace(1e-4, 0.02, 50)}),
        "betas is .* at noise level .*, where the cosine schedule of 50 levels has .*: another schedule",
    ),
    (
        lambda s: official_file(s | {"sqrt_alphas_cumprod": s["sqrt_alphas_cumprod"] * (1 + 1e-5)}),
        "sqrt_alphas_cumprod is .*: another schedule",
    ),
    (
        lambda s: official_file(s | {"alphas_cumprod": torch.full((50,), torch.nan)}),
        "alphas_cumprod is nan at noise level 0.*another schedule, or a damaged file",
    ),
    (lambda s: official_file(s, step="last"), "step is 'last', where the official code keeps a whole number"),
    (lambda s: {}, "does not hold weights by name"),
    (lambda s: [1, 2], "holds a list"),
]


@pytest.mark.parametrize(("content", "sentence"), REFUSED)
def test_other_content_is_refused_in_a_sentence(tmp_path, state, content, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_checkpoint(saved(tmp_path, content(state)), experiment=BASE)
    assert len(str(caught.value).splitlines()) == 1 and "resnet_0.pt" in str(caught.value)


@pytest.mark.parametrize("missing", ["ema", "model"])
def test_asking_for_weights_that_are_not_there_is_refused(tmp_path, state, missing):
    content = {key: value for key, value in official_file(state).items() if key != missing}
    asked, there = ("ema", "raw") if missing == "ema" else ("raw", "ema")
    with pytest.raises(ValueError, match=f"does not hold .*{asked}.*, only .*{there}.*: ask for {there}"):
        read_checkpoint(saved(tmp_path, content), experiment=BASE, weights=asked)
    assert read_checkpoint(tmp_path / "resnet_0.pt", experiment=BASE).weights == there


def test_clips_of_other_channels_are_refused(tmp_path, state):
    experiment = replace(BASE, data=DataConfig(channels=3))
    with pytest.raises(ValueError, match=r"is for clips of 1 channel, the experiment has 3: set data\.channels to 1"):
        read_checkpoint(saved(tmp_path, official_file(state)), experiment=experiment)


def test_groups_that_the_width_does_not_hold_are_refused(tmp_path, state):
    experiment = replace(BASE, model=RVDConfig(groups=3))
    with pytest.raises(ValueError, match=r"resnet_0\.pt: width is 8, which is no multiple of groups, 3"):
        read_checkpoint(saved(tmp_path, official_file(state)), experiment=experiment)


def test_files_that_are_no_weights_are_refused_in_a_sentence(tmp_path, state):
    page, text, cut, unsafe = (tmp_path / name for name in ("page.pt", "text.pt", "cut.pt", "unsafe.pt"))
    page.write_text("\n<!DOCTYPE html><html>Google Drive: quota exceeded</html>")
    text.write_text("weights")
    whole = saved(tmp_path, official_file(state)).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    torch.save({"step": 1, "model": state, "ema": state, "experiment": BASE}, unsafe)
    for path, sentence in (
        (page, "is a web page"),
        (text, "is not a file that torch.save wrote"),
        (cut, "is damaged or cut short"),
        (unsafe, "could run code when loaded"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.pt", "is not a file"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            read_checkpoint(path, experiment=BASE)
        assert len(str(caught.value).splitlines()) == 1


# ---- weights of the official code itself


def built(read, tensors, channels) -> RVD:
    height, width = tensors["train/video"].shape[-2:]
    video = VideoSpec(channels=channels, height=height, width=width, clip_frames=len(tensors["train/video"]))
    system = RVD(read.config, video, RVDSampling(sampler="ddim", steps=2)).eval()
    for name, part in system.parts().items():
        fill(part, read.parts[name], where="file")
    return system


def official_loss(system: RVD, tensors, loss: str) -> torch.Tensor:
    clip, noise = (tensors[f"train/{name}"].transpose(0, 1).contiguous() for name in ("video", "noise"))
    settings = ForecastStageConfig(clip_frames=clip.shape[1], context=clip.shape[1] - noise.shape[1], loss=loss)
    valid = torch.ones(clip.shape[:2], dtype=torch.bool)
    rng = Recorded([noise], integers=[tensors["train/n"]])
    stage = system.stage("forecast", settings, None)
    with torch.no_grad():
        return stage.loss({"clip": clip, "valid": valid}, step=0, turn="forecast", rng=rng).total


@pytest.mark.parametrize("folder", folders("rvd"))
def test_official_files_load_and_compute_the_same(folder, tmp_path):
    weights, tensors = load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")
    told = json.loads((folder / "config.json").read_text())
    limit = max(FORWARD, told["suggested_atol"].get("losses", 0.0))
    model = RVDConfig(sigma=told["sigma"], target="eps" if told["pred_mode"] == "noise" else "x_0")
    experiment = RVDExperiment(model=model, data=DataConfig(channels=told["channels"]))
    path = saved(tmp_path, official_file(weights, step=4000))
    read = read_checkpoint(path, experiment=experiment)
    assert (read.step, read.weights, share(read, weights)) == (4000, "raw", 1.0)
    assert sum(t.numel() for part in read.parts.values() for t in part.values()) == told.get(
        "n_parameters", sum(t.numel() for name, t in weights.items() if "_fn." in name)
    )
    ours = official_loss(built(read, tensors, told["channels"]), tensors, told["loss_type"])
    modes = ("", "rvd/") if read.config.prediction == "network" else ("", "vd/")
    (wanted,) = [tensors[f"{mode}train/loss"] for mode in modes if f"{mode}train/loss" in tensors]
    assert error(ours[None], wanted) <= limit
    assert share(read_checkpoint(path, experiment=experiment, weights="ema"), weights) == 0.5

    if "vd/train/loss" in tensors:
        path = saved(tmp_path, official_file(without(weights, "transform_fn.")))
        system = built(read_checkpoint(path, experiment=experiment), tensors, told["channels"])
        assert system.config.prediction == "none"
        assert error(official_loss(system, tensors, told["loss_type"])[None], tensors["vd/train/loss"]) <= limit


# ---- published networks

COUNTS = {  # denoiser, context network, transform network: measured on the official modules
    "bair64": (18_744_291, 13_750_032, 5_117_091, 37_611_414),
    "kth64": (18_743_233, 13_749_072, 5_115_265, 37_607_570),
    "cityscapes128": (18_951_683, 12_991_296, 11_670_723, 43_613_702),
    "simulation128": (18_950_273, 12_990_016, 11_668_289, 43_608_578),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_networks_have_the_official_numbers_of_parameters(name):
    experiment = preset(f"rvd/{name}")
    with torch.device("meta"):
        parts = [kind(experiment.model, channels=experiment.data.channels) for kind in
                 (Denoiser, ContextNetwork, TransformNetwork)]  # fmt: skip
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert (*counts, sum(counts)) == COUNTS[name]


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("rvd/")])
def test_presets_survive_plain_values(name):
    experiment = preset(name)
    assert from_plain(resolve(entry("rvd").experiment), to_plain(experiment)) == experiment
    assert Path(name).parent.name == experiment.system
