"""The sampler study on a tiny network: its cases, its going on, its refusals."""

import json

import pytest

import framecast
from framecast.checkpoint import PartInfo, build_system, save_model
from framecast.evaluate import samplers
from framecast.evaluate.samplers import Case, report, study
from framecast.evaluate.windows import Windows
from framecast.experiment import VideoSpec, to_plain
from framecast.video import Clip
from tests.evaluate.flows import wave
from tests.tiny import ramvid

NAMES = [f"f{i}" for i in range(16)]
CUT = Windows([Clip(wave(i, 5)[..., :8, :8].clone(), None, (-1.0, 1.0)) for i in range(16)], NAMES, NAMES)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    experiment = ramvid()
    video = VideoSpec(channels=1, height=8, width=8, clip_frames=5, value_range=(-1.0, 1.0))
    system = build_system("ramvid", to_plain(experiment.model), video, to_plain(experiment.sample))
    parts = {name: PartInfo(stage="diffusion", step=1, weights="raw") for name in system.parts()}
    return save_model(tmp_path_factory.mktemp("models") / "tiny", system, parts=parts, provenance={})


@pytest.fixture
def short(monkeypatch):
    """The same study with fewer steps."""
    monkeypatch.setattr(samplers, "SAMPLERS", ("ddpm", "ddim"))
    monkeypatch.setattr(samplers, "SHORT", (1, 2))
    monkeypatch.setattr(samplers, "LONG", (3,))
    monkeypatch.setattr(samplers, "LONGEST", 4)


def run(model_folder, cases):
    model = framecast.load(model_folder, device="cpu")
    calls = []
    rows = study(model, CUT, (0, 1), folder=cases, progress=lambda done, total: calls.append((done, total)))
    return rows, calls


def test_study_runs_its_cases_and_goes_on_where_it_stopped(model_folder, tmp_path, short):
    rows, calls = run(model_folder, tmp_path)
    cases = [row.case for row in rows]
    assert cases[:4] == [Case(s, n, 16, 4) for s in ("ddpm", "ddim") for n in (1, 2)]
    assert cases[4:] == [Case("ddpm", 3, 8, 4), Case("ddim", 3, 8, 4), Case("ddpm", 4, 8, 2)]
    assert calls[-1][0] == calls[-1][1]
    first, last = report(rows)[0], report(rows)[-1]
    assert first["crps_fair"]["units"] == 16 and first["crps_fair_shared"]["units"] == 8
    assert last["minus_longest"]["mean"] == 0 and first["minus_longest"]["mean"] != 0

    few = [Case("ddpm", 5, 8, 4), Case("ddim", 1, 8, 4)]
    model = framecast.load(model_folder, device="cpu")
    chosen = study(model, CUT.first(8), (0, 1), folder=tmp_path / "few", cases=few)
    assert [row.case for row in chosen] == few and report(chosen)[0]["minus_longest"]["mean"] == 0

    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    (tmp_path / "ddim-2-16x4.json").unlink()
    again, _ = run(model_folder, tmp_path)
    assert [path for path, at in kept.items() if path.stat().st_mtime_ns != at] == [tmp_path / "ddim-2-16x4.json"]
    assert [r["crps_fair"] for r in report(again)] == [r["crps_fair"] for r in report(rows)]


@pytest.mark.parametrize(("text", "says"), [("other", "of another model"), ("cut", "no case of a sampler study")])
def test_a_case_that_does_not_belong_is_refused(model_folder, tmp_path, short, text, says):
    values = {metric: [[0.0]] for metric in ("crps", "crps_fair", "psnr")}
    told = {"sampler": "ddpm", "steps": 1, "windows": 16, "samples": 4, "model": "m", "sha256": "other"}
    told |= {"known": [0, 1], "frames_sha256": CUT.digest()}
    whole = json.dumps({**told, "units": list(CUT.units), "seconds": 1.0, "record": {}, "values": values})
    (tmp_path / "ddpm-1-16x4.json").write_text(whole if text == "other" else whole[:40])
    with pytest.raises(ValueError, match=says):
        run(model_folder, tmp_path)


def test_case_of_other_frames_under_the_same_names_is_refused(model_folder, tmp_path, short):
    run(model_folder, tmp_path)
    other = Windows([Clip(-clip.frames, None, (-1.0, 1.0)) for clip in CUT.clips], NAMES, NAMES)
    with pytest.raises(ValueError, match="of other windows"):
        study(framecast.load(model_folder, device="cpu"), other, (0, 1), folder=tmp_path)
