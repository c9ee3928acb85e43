"""Models handed on: to a folder, to a hub and back."""

import shutil
from pathlib import Path

import pytest
import torch

from framecast.checkpoint import describe, load_system
from framecast.systems.rvd.config import RVDConfig
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
