"""The demonstration from first to last step, with a tiny model and few flows."""

import dataclasses
import json
import re
import signal

import pytest

from framecast.checkpoint import PartInfo, build_system, save_model
from framecast.cli import demo
from framecast.cli.console import Training
from framecast.cli.demo import Shown
from framecast.experiment import DataConfig, VideoSpec, to_plain
from framecast.train import Stopped
from tests.cli.conftest import bundle
from tests.tiny import ramvid, video_vqvae


def tiny(size):
    """A model for frames of this size that works on 4 × 4 patches of them."""
    experiment = ramvid()
    model = dataclasses.replace(experiment.model, patch=size // 4)
    return dataclasses.replace(experiment, data=DataConfig(channels=1, size=size), model=model)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "preset", lambda name: tiny(16))
    few = {"TRAIN_FLOWS": 2, "TRAIN_FRAMES": 16, "CALIBRATION": 2}
    few["SHOWN_TRAINED"] = Shown("vortex16", (1, 2), infill=(0, 1, 3, 4), samples=3)
    for name, value in few.items():
        monkeypatch.setattr(demo, name, value)


@pytest.fixture
def bundled(monkeypatch, tmp_path_factory):
    """Untrained models in place of the bundled ones, and digits, which are made in no time, in place of flows."""
    folder = bundle(tmp_path_factory.mktemp("bundled"), "vortex-rvd")
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(folder, "vortex-ramvid"))
    monkeypatch.setattr(demo, "SHOWN", Shown("bouncing32", (2, 1), infill=(0, 5, 10, 15), samples=2))


def test_demo_ends_with_pictures_and_honest_numbers(cast, small, tmp_path):
    ran = cast("demo", "--train", "--max-steps", 2, "--device", "cpu")
    assert ran.code == 0, ran.err
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"strip.png", "forecast.mp4", "forecast.webp", "numbers.json", "unseen.npz", "predict", "infill"} <= names
    numbers = json.loads((tmp_path / "demo" / "numbers.json").read_text())
    assert numbers["windows"] == 2 and numbers["training"]["steps"] == 2
    simple = numbers["simple_forecasts"]
    assert {"persistence", "linear-extrapolation", "analog"} <= simple.keys()
    for told in (numbers["model"], *simple.values()):
        leads = told["crps_fair_by_lead"]
        assert len(leads) == 12 and told["crps_fair"] == pytest.approx(sum(leads) / 12, abs=2e-3)
    # two optimiser steps teach nothing, and the numbers say so
    assert numbers["model"]["crps_fair"] > simple["persistence"]["crps_fair"] > 0
    assert "persistence" in ran.out and "framecast predict demo/run demo/unseen.npz" in ran.out
    shown = ran.out.splitlines()[-3].split()
    assert cast(*shown[1:], "--steps", 2, "--format", "npz").code == 0  # the command it proposes works


def test_demo_takes_the_next_free_folder_and_fits_into_the_time_given(cast, small, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SHOWN_TRAINED", Shown("bouncing32", (1, 1), infill=(0, 4), samples=2))
    monkeypatch.setattr(demo, "preset", lambda name: tiny(32))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").touch()
    ran = cast("demo", "--train", "--minutes", 0.001, "--json", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.json["out"] == "demo-2"
    assert ran.json["training"]["steps"] >= 2
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["mine.txt"]


def test_demo_interrupted_in_training_says_how_to_go_on(cast, small, tmp_path, monkeypatch):
    def interrupt(self, step, *_):
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Training, "step", interrupt)
    ran = cast("demo", "--train", "--max-steps", 5, "--device", "cpu")
    assert ran.code == 130 and "bug" not in ran.err
    last = ran.err.splitlines()[-1]
    assert re.fullmatch(
        r"Stopped. Checkpoint step_0000000\d written; continue with: framecast train --resume demo/run", last
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cast(*last.split()[-4:][1:], "--dry-run").code == 0  # the command it names works


def test_demo_interrupted_while_it_measures_leaves_no_run_to_go_on_with(cast, small, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise Stopped(tmp_path / "gone", tmp_path / "gone" / "checkpoints" / "step_00000001")

    monkeypatch.setattr("framecast.train.run.run", interrupted)
    ran = cast("demo", "--train", "--minutes", 1, "--device", "cpu")
    assert ran.code == 130 and ran.err.endswith("Stopped.\n")


def test_demo_forecasts_at_once_with_the_bundled_model(cast, bundled, tmp_path):
    ran = cast("demo", "--device", "cpu")
    assert ran.code == 0, ran.err
    out = tmp_path / "demo"
    names = {path.name for path in out.iterdir()}
    pictures = {"strip.png", "forecast.mp4", "forecast.webp", "crps_map.png"}
    assert pictures | {"numbers.json", "unseen.npz", "predict", "infill", "interpolate"} == names
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["windows"] == 2 and numbers["training"] is None and numbers["record"]["model"] == "vortex-rvd"
    assert "analog" not in numbers["simple_forecasts"]  # there are no training clips to look in
    filled = json.loads((out / "infill" / "result.json").read_text())
    assert filled["known_frames"] == [0, 5, 10, 15] and filled["model"] == "vortex-ramvid"
    shown = ran.out.splitlines()[-3].split()
    assert shown[1:3] == ["predict", "vortex-rvd"]
    for line in ran.out.splitlines()[-3:-1]:  # the commands it proposes work
        assert cast(*line.split()[1:], "--steps", 2, "--format", "npz").code == 0


def test_demo_refuses_a_length_of_a_training_not_asked_for(cast):
    ran = cast("demo", "--minutes", 1)
    assert ran.code == 2 and "add --train" in ran.err


def test_demo_refuses_two_lengths(cast):
    ran = cast("demo", "--train", "--minutes", 1, "--max-steps", 5)
    assert ran.code == 2 and "give one" in ran.err


def stand_in(folder, name, experiment, model, *, of, frames=16):
    """An untrained model of 32 × 32 grey pixels that says it was trained on clips of a set."""
    video = VideoSpec(channels=1, height=32, width=32, clip_frames=frames)
    system = build_system(experiment.system, model, video, to_plain(experiment.sample))
    parts = {part: PartInfo(stage=part, step=1, weights="raw") for part in system.parts()}
    save_model(folder / name, system, parts=parts, provenance={"appearance": {"set": of}})


@pytest.fixture
def side_by_side(monkeypatch, tmp_path):
    """A model of the last system and one of the first, of digits, which are made in no time, beside one of flows."""
    folder = tmp_path / "bundled"
    of_patches = {**to_plain(ramvid().model), "patch": 8}
    stand_in(folder, "a-flow-ramvid", ramvid(), of_patches, of="vortex32")
    stand_in(folder, "digits-ramvid", ramvid(), of_patches, of="bouncing32")
    model = to_plain(video_vqvae().model)
    model = {**model, "tokenizer": {**model["tokenizer"], "first_kernel": (4, 16, 16)}}
    stand_in(folder, "a-digits-vqvae", video_vqvae(), model, of="bouncing32", frames=12)
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", folder)
    monkeypatch.setattr(demo, "SHOWN", Shown("bouncing32", (2, 1), infill=(0, 5), context=2, samples=2))


def test_demo_of_all_has_a_row_for_each_system_that_has_a_model_for_these_clips(cast, side_by_side, tmp_path):
    ran = cast("demo", "--all", "--json", "--device", "cpu")
    assert ran.code == 0, ran.err
    told = ran.json
    names = ["digits-ramvid", "a-digits-vqvae"]  # in the order of the table of systems; not the one of flows
    assert list(told["models"]) == names and [told["models"][n]["system"] for n in names] == ["ramvid", "video_vqvae"]
    assert told["without_model"] == ["rvd", "pvdm"] and ran.err.count("has no row") == 2
    files = {"strip.png", "forecast.mp4", "forecast.webp", "numbers.json", "unseen.npz"}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == files | set(names)
    known = [json.loads((tmp_path / "demo" / n / "result.json").read_text())["known_frames"] for n in names]
    assert (
        known == [[0, 1, 2, 3]] * 2 and told["context"] == 4
    )  # as many as the one that needs most, though 2 are shown


def test_demo_of_all_tells_the_seconds_of_models_alone(cast, side_by_side):
    lines = cast("demo", "--all", "--device", "cpu").out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[:4]}
    assert lines[0].endswith("seconds") and len(rows["digits-ramvid"]) == len(rows["a-digits-vqvae"]) == 9
    assert len(rows["persistence"]) == 8
    assert any("1 window of flows never seen" in line for line in lines)


def test_demo_of_all_shows_bundled_models_only(cast):
    ran = cast("demo", "--all", "--train")
    assert ran.code == 2 and "give one" in ran.err
