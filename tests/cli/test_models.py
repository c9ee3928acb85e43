"""Models handed on: to a folder, to a hub and back; checkpoints of other programs that become models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import framecast
from framecast.checkpoint import describe, load_system
from framecast.experiment import DataConfig
from framecast.systems import preset
from framecast.systems.pvdm.config import AutoencoderConfig, DenoiserConfig, PVDMConfig
from framecast.systems.pvdm.published import PRESETS
from framecast.systems.rvd.config import RVDConfig
from tests.cli.conftest import make_clip
from tests.parity.walk import FORWARD, error, folders
from tests.systems import official_pvdm
from tests.systems.official_rvd import official_file, official_state


def test_models_export_copies_what_is_needed_to_draw(cast, model_folder, tmp_path):
    ran = cast("models", "export", model_folder, "mine", "--json")
    assert ran.code == 0 and ran.json["out"] == "mine"
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {path.name for path in model_folder.iterdir()}
    assert describe("mine").digest == describe(model_folder).digest == ran.json["sha256"]
    assert cast("models", "export", model_folder, "mine").code == 1  # nothing is overwritten


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub in a folder, in place of the one on the net."""

    class Hub:
        def create_repo(self, name, *, exist_ok, private):
            assert exist_ok and private
            (tmp_path / "hub" / name).mkdir(parents=True)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            for name in allow_patterns:
                shutil.copy(Path(folder_path) / name, tmp_path / "hub" / repo_id)
            return f"hub:{repo_id}"

    def download(name, *, allow_patterns):
        if not (tmp_path / "hub" / name).is_dir():
            raise OSError("404 not found")
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_models_push_and_pull_exchange_a_model(cast, model_folder, hub):
    ran = cast("models", "push", model_folder, "group/tiny", "--json")
    assert ran.code == 0 and ran.json["address"] == "hub:group/tiny"
    ran = cast("models", "pull", "group/tiny", "--json")
    assert ran.code == 0 and ran.json["out"] == "models/tiny"
    assert describe("models/tiny").digest == describe(model_folder).digest
    assert cast("models", "pull", "group/tiny", "--json").json["out"] == "models/tiny-2"
    assert cast("models", "info", "group/tiny", "--json").json["sha256"] == describe(model_folder).digest


def test_model_the_hub_does_not_have_is_told_in_a_sentence(cast, hub):
    ran = cast("models", "pull", "group/other")
    assert ran.code == 1 and "could not be fetched from the hub" in ran.err and "404" in ran.err


TINY_RVD = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), noise_levels=20)


@pytest.fixture
def official(tmp_path):
    """A tiny checkpoint as the official RVD code writes them."""
    content = official_file(official_state(TINY_RVD, 1), step=4000)
    torch.save(content, tmp_path / "resnet-adam_1.pt")
    return content


def test_models_import_writes_every_part_of_a_system(cast, official):
    ran = cast(
        "models", "import", "resnet-adam_1.pt", "--preset", "rvd/kth64", "--data.size", "8,12",
        "--sample.steps", "3", "--out", "mine",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    info = describe("mine")
    assert set(info.parts) == {"context", "transform", "denoiser"} and info.missing == []
    assert {(part.step, part.weights, part.stage) for part in info.parts.values()} == {(4000, "raw", "forecast")}
    assert (info.video.height, info.video.width, info.model["multipliers"]) == (8, 12, [1, 2])
    assert "(raw, 4,000 steps)" in ran.out and "unlike rvd/kth64: width 8 (not 48)" in ran.out
    weight = load_system("mine").parts()["denoiser"].state_dict()["head.bias"]
    assert torch.equal(weight, official["model"]["denoise_fn.final_conv.1.bias"])


def test_models_import_takes_the_weights_that_are_asked_for(cast, official):
    words = ("models", "import", "resnet-adam_1.pt", "--preset", "rvd/kth64", "--sample.steps", "20", "--weights")
    ran = cast(*words, "ema", "--json")
    assert ran.code == 0, ran.err
    told = ran.json
    assert (told["weights"], told["step"], told["out"]) == ("ema", 4000, "models/resnet-adam_1")
    parts = load_system(told["out"]).parts()
    assert told["tensors"] == sum(len(part.state_dict()) for part in parts.values()) == len(official["model"]) - 12
    weight = parts["transform"].state_dict()["head.weight"]
    assert torch.equal(weight, official["ema"]["transform_fn.mu.weight"])
    assert cast(*words, "best").code == 2


def test_imported_model_forecasts(cast, official, clip):
    at = ("--preset", "rvd/kth64", "--data.size", "8", "--sample.steps", "4", "--out", "mine")
    assert cast("models", "import", "resnet-adam_1.pt", *at).code == 0
    ran = cast("predict", "mine", clip, "--horizon", "3", "--json")
    assert ran.code == 0, ran.err
    assert Path(ran.json["results"][0]["out"]).is_dir()


def test_models_import_refuses_sampling_that_the_model_cannot_do(cast, official, tmp_path):
    ran = cast("models", "import", "resnet-adam_1.pt", "--preset", "rvd/kth64")  # 1600 steps, 20 noise levels
    assert ran.code == 1 and "1600" in ran.err and "20" in ran.err
    assert not (tmp_path / "models").exists()


# ---- a model whose parts lie in two files


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    """Both tiny files as the official PVDM code writes them, and a preset of what they do not tell."""
    monkeypatch.setitem(PRESETS, "theirs", lambda: replace(official_pvdm.BASE, data=DataConfig(size=(8, 16))))
    torch.save(official_pvdm.autoencoder_file(), tmp_path / "model_250000.pth")
    torch.save(official_pvdm.denoiser_file(), tmp_path / "ema_model_850000.pth")


THEIRS = ("--preset", "pvdm/theirs")


@pytest.mark.parametrize("files", [("model_250000", "ema_model_850000"), ("ema_model_850000", "model_250000")])
def test_models_import_joins_the_parts_of_several_files(cast, two_files, files):
    ran = cast("models", "import", *(f"{file}.pth" for file in files), *THEIRS, "--out", "mine")
    assert ran.code == 0, ran.err
    info = describe("mine")
    told = {name: (part.stage, part.step, part.weights) for name, part in info.parts.items()}
    assert told == {"autoencoder": ("autoencoder", 0, "raw"), "denoiser": ("diffusion", 850_000, "ema")}
    assert info.parts["denoiser"].needs == {"autoencoder": info.parts["autoencoder"].sha256}
    assert info.provenance["imported_from"] == ", ".join(f"{file}.pth" for file in files)
    assert "autoencoder.width 12 (not 24)" in ran.out and "latent_channels" not in ran.out
    assert "(ema, 850,000 steps)" in ran.out and "(raw, steps not told)" in ran.out
    assert "next: framecast predict mine CLIP" in ran.out
    parts = load_system("mine").parts()
    for name, network in (("autoencoder", official_pvdm.autoencoder()), ("denoiser", official_pvdm.denoiser())):
        own = network.state_dict()
        assert all(torch.equal(weight, own[key]) for key, weight in parts[name].state_dict().items())


def test_model_of_two_files_predicts_and_generates(cast, two_files, tmp_path):
    files = ("model_250000.pth", "ema_model_850000.pth")
    told = cast("models", "import", *files, *THEIRS, "--json").json
    assert (told["out"], told["parts"], told["missing"]) == ("models/model_250000", ["autoencoder", "denoiser"], [])
    assert (told["step"], told["weights"]) == (None, None)  # which are each file's own
    clip = make_clip(tmp_path / "clip.npz", frames=4, channels=3, size=(8, 16))
    ran = cast("predict", told["out"], clip, "--horizon", "6", "--json")
    assert ran.code == 0, ran.err
    assert framecast.load(told["out"], device="cpu").generate(n=1, frames=8).video.shape == (1, 8, 3, 8, 16)


def write_eight(folder):
    for i in range(8):
        make_clip(folder / f"clip{i}.npz", frames=10 + i, channels=3, size=(8, 16))
    return str(folder)


def test_autoencoder_alone_is_a_model_whose_denoiser_can_be_trained(cast, two_files, tmp_path):
    ran = cast("models", "import", "model_250000.pth", *THEIRS, "--out", "mine")
    assert ran.code == 0, ran.err
    assert describe("mine").missing == ["denoiser"] and not (tmp_path / "mine" / "denoiser.safetensors").exists()
    network = load_system("mine", require=["autoencoder"]).parts()["autoencoder"]
    assert torch.equal(network.state_dict()["to_pixels.bias"], official_pvdm.autoencoder().to_pixels.bias)
    line = ran.out.splitlines()[-1]
    assert line.startswith("next: framecast reconstruct mine CLIP; to draw, import the file of denoiser with this one")
    words = line.partition("or train it: framecast ")[2].replace("DIR", write_eight(tmp_path / "clips")).split()
    ran = cast(*words, "--max-steps", "1", "--device", "cpu", "--out", "run")
    assert ran.code == 0, ran.err
    assert describe("run").missing == []


def test_denoiser_alone_says_that_its_autoencoder_is_missing(cast, two_files):
    ran = cast("models", "import", "ema_model_850000.pth", *THEIRS, "--out", "mine")
    assert ran.code == 0, ran.err
    assert describe("mine").missing == ["autoencoder"]
    line = ran.out.splitlines()[-1]
    assert line.startswith("next: give the file of autoencoder too, without which denoiser draws nothing: framecast ")
    words = line.partition("nothing: framecast ")[2].replace("FILE", "model_250000.pth").split()
    assert cast(*words, "--out", "whole").code == 0
    assert describe("whole").missing == []


def test_denoiser_is_never_joined_with_an_autoencoder_that_it_does_not_know(cast, two_files, tmp_path, monkeypatch):
    assert cast("models", "import", "ema_model_850000.pth", *THEIRS, "--out", "mine").code == 0
    assert describe("mine").parts["denoiser"].needs == {"autoencoder": ""}
    known = replace(official_pvdm.BASE.model, denoiser=official_pvdm.CONFIG.denoiser)
    monkeypatch.setitem(PRESETS, "known", lambda: replace(official_pvdm.experiment(), model=known))
    words = ("--stage", "autoencoder", "--from", "mine", "--max-steps", "1", "--device", "cpu", "--out", "run")
    ran = cast("train", "pvdm/known", "--data", write_eight(tmp_path / "clips"), *words)
    assert ran.code == 0, ran.err
    assert describe("run").missing == ["denoiser"]


def test_two_files_with_the_same_part_are_refused(cast, two_files, tmp_path):
    shutil.copy("ema_model_850000.pth", "model_840000.pth")
    ran = cast("models", "import", "ema_model_850000.pth", "model_840000.pth", *THEIRS)
    assert ran.code == 1
    assert "ema_model_850000.pth and model_840000.pth both hold the part denoiser: give one of them." in ran.err
    assert not (tmp_path / "models").exists()


# ---- weights of the official code itself


@pytest.fixture
def imported(cast, monkeypatch):
    """Weights of a folder through a file and the command: the part that is read back, and what was said."""

    def through(folder, name, start, experiment):
        monkeypatch.setitem(PRESETS, "theirs", lambda: experiment)
        state = load_file(folder / "weights.safetensors")
        torch.save({f"{start}{key}": tensor for key, tensor in state.items()}, name)
        ran = cast("models", "import", name, *THEIRS, "--out", "mine")
        assert ran.code == 0, ran.err
        (part,) = (name for name, info in describe("mine").parts.items() if info)
        return load_system("mine", require=[part]).parts()[part], ran.out

    return through


def theirs(model, *, size, frames):
    """The released model's experiment but for this."""
    released = preset("pvdm/ucf101-256-l")
    first = replace(released.stages.autoencoder, clip_frames=frames)
    data, stages = replace(released.data, size=size), replace(released.stages, autoencoder=first)
    return replace(released, data=data, model=model, stages=stages)


SLIM = DenoiserConfig(width=32, multipliers=(1,), attention=())


@pytest.mark.parametrize("folder", folders("pvdm-ae"))
def test_official_autoencoder_is_imported_and_computes_the_same(imported, folder):
    told = json.loads((folder / "config.json").read_text())
    model = PVDMConfig(
        autoencoder=AutoencoderConfig(plane_heads=told.get("override", {}).get("proj_heads", 4)), denoiser=SLIM
    )
    experiment = theirs(model, size=told["resolution"], frames=told["timesteps"] // told["splits"])
    network, _ = imported(folder, "model_250000.pth", "module.", experiment)
    tensors = load_file(folder / "io.safetensors")
    with torch.no_grad():
        latent = network.encode(tensors["clip"].transpose(1, 2))
        assert error(latent.flat(), tensors["latent_flat"]) <= FORWARD
        assert error(network.decode(latent).flatten(0, 1), tensors["reconstruction"]) <= FORWARD


@pytest.mark.parametrize("folder", folders("pvdm-ddpm"))
def test_official_denoiser_is_imported_and_computes_the_same(imported, folder):
    told = json.loads((folder / "config.json").read_text())
    unet = told["unet_config"]
    heads = {"heads": max(unet.get("num_heads", -1), 1), "head_width": max(unet.get("num_head_channels", -1), 0)}
    small = AutoencoderConfig(width=8, depth=1, plane_depth=1, latent_channels=unet["in_channels"])
    model = PVDMConfig(autoencoder=small, denoiser=DenoiserConfig(noise_levels=told["timesteps"], **heads))
    experiment = theirs(model, size=8 * told["plane_side"], frames=told["plane_frames"])
    network, said = imported(folder, "ema_model_850000.pth", "", experiment)
    assert f"unlike pvdm/theirs: denoiser.width {unet['model_channels']} (not 256)" in said
    tensors = load_file(folder / "io.safetensors")
    given = tensors["unet.cond"] if network.config.conditional else None
    with torch.no_grad():
        for kind, condition in (("cond", given), ("null", None)):
            if (name := f"unet.out_{kind}") in tensors:
                assert error(network(tensors["unet.x"], tensors["unet.t"], condition), tensors[name]) <= FORWARD


def test_models_import_says_where_nothing_was_published(cast):
    ran = cast("models", "import", "weights.pt", "--preset", "video_vqvae/tiny64")
    assert ran.code == 1 and "no trained weights of video_vqvae were ever published" in ran.err
    assert "framecast train video_vqvae/tiny64" in ran.err
