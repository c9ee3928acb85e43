"""evaluate and samplers from the command line: what they cost, what they write, what they refuse."""

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import bundle
from tests.evaluate.flows import write_flows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_flows(tmp_path_factory.mktemp("set"))


def test_evaluate_writes_its_figures_with_the_simple_forecasts_beside(cast, folder, tmp_path):
    ran = cast("evaluate", "persistence", "--data", folder, "--windows", 3)
    assert ran.code == 0, ran.err
    assert "smoke-lbm-partial" in ran.out and "differs: 3 windows instead of 128" in ran.out
    assert "persistence minus this" in ran.out and "rf3d-v1" in ran.out and "(floor)" in ran.out
    told = json.loads((tmp_path / "out" / "smoke-lbm-persistence" / "result.json").read_text())
    names = [forecast["name"] for forecast in told["cases"][0]["forecasts"]]
    assert names[0] == "persistence" and names.count("persistence") == 1 and "analog" in names
    assert told["settings"]["cases"][0]["known"] == [0, 1, 2, 3] and told["machine"] and told["data"]["sha256"]
    again = cast("evaluate", "persistence", "--data", folder, "--windows", 2, "--json").json
    assert again["out"].endswith("-2") and again["protocol"] == "smoke-lbm-partial"


def test_a_dry_run_tells_the_cost_and_writes_nothing(cast, folder, tmp_path, monkeypatch, tmp_path_factory):
    ran = cast("evaluate", "persistence", "--data", folder, "--dry-run", "--json")
    assert (
        ran.json["network_calls"] == 0 and ran.json["cases"][0] == "4 → 12, beside the truth: 128 windows × 8 samples"
    )
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(tmp_path_factory.mktemp("bundled")))
    ran = cast("evaluate", "vortex-ramvid", "--data", folder, "--dry-run", "--json", "--steps", 5)
    assert ran.json["network_calls"] == (128 + 512) * 5
    ran = cast("samplers", "vortex-ramvid", "--data", folder, "--dry-run")
    # 16 × 4 × 3 × (5 + 10 + 20 + 50) + 8 × 4 × 2 × (100 + 250) + 8 × 2 × 1000
    assert ran.code == 0 and "54720 sampler steps" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_stopped_evaluation_goes_on(cast, folder, tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(tmp_path_factory.mktemp("bundled")))
    from framecast.evaluate.samples import Computed

    real, done = Computed.samples, []

    def stops(self, case, window, clip, count):
        if self.name == "vortex-ramvid":
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(window)
        return real(self, case, window, clip, count)

    words = ["evaluate", "vortex-ramvid", "--data", folder, "--windows", 3, "--samples", 2]
    monkeypatch.setattr(Computed, "samples", stops)
    ran = cast(*words)
    assert ran.code == 130 and "the same command goes on" in ran.err
    out = tmp_path / "out" / "smoke-lbm-vortex-ramvid"
    kept = {path: path.stat().st_mtime_ns for path in (out / "samples").rglob("*.npz")}
    assert len(kept) == 2
    monkeypatch.setattr(Computed, "samples", real)
    ran = cast(*words, "--json")
    assert ran.code == 0 and ran.json["out"] == "out/smoke-lbm-vortex-ramvid", ran.err
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    assert cast(*words, "--json").json["out"].endswith("-2")  # it is finished, and stays as it is
    ran = cast(*words, "--out", out, "--seed", 1)
    assert ran.code == 1 and "holds a finished result" in ran.err
    stopped = tmp_path / "mine"
    monkeypatch.setattr(Computed, "samples", stops)
    done.clear()
    assert cast(*words, "--out", stopped).code == 130
    ran = cast(*words, "--out", stopped, "--seed", 1)
    assert ran.code == 1 and "model.seed: 0 there, 1 here" in ran.err


def test_samples_that_an_evaluation_kept_are_judged_alike(cast, folder, tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(tmp_path_factory.mktemp("bundled")))
    words = ["--data", folder, "--windows", 2, "--samples", 2, "--json"]
    drawn = cast("evaluate", "vortex-ramvid", *words).json
    stored = cast("evaluate", "out/smoke-lbm-vortex-ramvid/samples", *words).json
    assert stored["model"]["name"] == "vortex-ramvid" and stored["model"]["stored"].endswith("samples")
    figures = [told["cases"][0]["forecasts"][0]["scores"] for told in (drawn, stored)]
    assert figures[0] == figures[1]


def test_protocols_are_listed_and_a_record_is_told(cast):
    ran = cast("evaluate", "--protocol", "list")
    assert ran.code == 0 and "pvdm-fvd128-sky" in ran.out and "smoke-lbm" in ran.out
    ran = cast("evaluate", "persistence", "--protocol", "pvdm-efficiency")
    assert ran.code == 0 and "This protocol is a record" in ran.out and "published" in ran.out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["evaluate"], 2, "name a MODEL, or list the protocols with --protocol list."),
        (["evaluate", "persistence", "--i3d-eps", "1e-3"], 2, "--i3d-eps goes with --i3d FILE."),
        (["evaluate", "persistence", "--i3d", "nothing.pt"], 1, "nothing.pt"),
        (
            ["evaluate", "persistence", "--protocol", "smoke"],
            1,
            "there is no protocol 'smoke'. Did you mean smoke-lbm?",
        ),
        (["samplers", "persistence"], 1, "persistence has no sampler"),
    ],
)
def test_bad_words_are_refused_in_a_sentence(cast, folder, words, code, says):
    ran = cast(*words, "--data", folder)
    assert ran.code == code and says in ran.err and "bug" not in ran.err


def test_a_missing_set_is_told_with_the_command_that_makes_it(cast):
    ran = cast("evaluate", "persistence")
    assert ran.code == 1 and "framecast data simulate vortex32 data/vortex32" in ran.err


def test_a_stopped_study_says_that_it_goes_on(cast, folder, tmp_path_factory, monkeypatch):
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(tmp_path_factory.mktemp("bundled")))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("framecast.evaluate.samplers.judge", stopped)
    ran = cast("samplers", "vortex-ramvid", "--data", folder)
    assert ran.code == 130 and "the same command goes on" in ran.err


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(folder, tmp_path, tmp_path_factory):
    model = bundle(tmp_path_factory.mktemp("models")) / "vortex-ramvid"
    words = [sys.executable, "-m", "framecast", "evaluate", str(model), "--data", str(folder), "--windows", "5"]
    words += ["--samples", "2", "--device", "cpu"]
    told = []
    for number in ("1", "2"):
        out = tmp_path / number
        ran = subprocess.run(
            [*words, "--out", str(out), "--devices", number], capture_output=True, text=True, timeout=300
        )
        assert ran.returncode == 0, ran.stderr
        told.append(json.loads((out / "result.json").read_text())["cases"][0]["forecasts"][0]["scores"])
        assert len(list((out / "samples").rglob("*.npz"))) == 5
    assert told[0] == told[1]


def test_clips_that_somebody_drew_from_nothing_are_judged(cast, folder, tmp_path):
    import numpy as np

    clips = np.random.default_rng(0).integers(0, 256, (12, 16, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "drawn.npz", arr_0=clips)
    for split in ("train", "test"):
        (tmp_path / "ucf" / split).mkdir(parents=True)
        for i in range(7):
            np.save(tmp_path / "ucf" / split / f"{i}.npy", clips[i])
    ran = cast("evaluate", "drawn.npz", "--protocol", "pvdm-fvd16-ucf", "--data", "ucf", "--json")
    assert ran.code == 0, ran.err
    (told,) = ran.json["cases"][0]["forecasts"]
    assert told["sets"]["rf3d-v1 motion"]["n_fake"] == 12 and told["sets"]["rf3d-v1 motion"]["n_real"] == 7
    assert "sets of 12 drawn clips instead of 2048" in ran.json["deviations"]
    assert any(line.startswith("clips of 3 × 32 × 32 instead of 3 × 256 × 256") for line in ran.json["deviations"])
    assert "how the stored samples were drawn is not known" in ran.json["model_deviations"]
    ran = cast("evaluate", "drawn.npz", "--protocol", "ramvid-ucf-uncond", "--data", "ucf")
    assert ran.code == 0 and "no C3D weights were given" in ran.out, ran.err


def test_the_analog_looks_things_up_in_the_training_clips_of_the_set(cast, folder):
    told = cast("evaluate", "analog-8", "--data", folder, "--windows", 2, "--json").json
    mine, *others = told["cases"][0]["forecasts"]
    assert (
        mine["name"] == "analog-8" and mine["samples"] == 8 and told["model"]["sample"]["reference"].endswith("train")
    )
    assert "analog" in [other["name"] for other in others] and "analog-8" not in [other["name"] for other in others]
