"""Windows of a protocol, scores of a forecast on them, beside the simple forecasts; figures of sets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import framecast
from framecast.evaluate.baselines import baseline
from framecast.evaluate.feature_cache import FeatureCache
from framecast.evaluate.protocols import PROTOCOLS, protocol
from framecast.evaluate.result import deviations, result, write
from framecast.evaluate.plan import Plan
from framecast.evaluate.run import evaluate, judge, simple_sources
from framecast.evaluate.samples import Computed, Kept
from framecast.evaluate.terms import Case
from framecast.evaluate.windows import windows
from tests.cli.conftest import bundle
from tests.evaluate.flows import wave, write_flows

SMOKE = PROTOCOLS["smoke-lbm"]
CASE = SMOKE.cases[0]
GROUPS = ("crps", "psnr")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_flows(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def cut(folder):
    return windows(SMOKE, CASE, SMOKE.paired, folder)


@pytest.fixture
def plan(folder, tmp_path):
    return Plan(rules=SMOKE, data=folder, windows=8, cache=FeatureCache(tmp_path / "features.sqlite"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return framecast.load(bundle(tmp_path_factory.mktemp("models")) / "vortex-ramvid", device="cpu")


def simple(name, **options):
    return Computed(baseline(name), options=baseline(name).options(options))


def test_windows_are_a_quarter_period_apart_and_flows_take_turns(cut):
    assert len(cut) == SMOKE.paired.windows == 128
    assert cut.units[0] != cut.units[1] and cut.units[0] == cut.units[32]
    assert np.allclose(cut.clips[33].frames, wave(1, 25)[2:18])  # period 9.06 frames: the second starts at 2


def test_persistence_scores_its_error_and_only_unknown_frames_count(cut):
    some = cut.first(4)
    held = judge(simple("persistence"), some, CASE, GROUPS, samples=1)
    clip = some.clips[0].frames.numpy()
    grey = np.clip((clip + 1) * 127.5, 0, 255).round()
    assert held.values["crps_fair"][0] == pytest.approx(np.abs(grey[4:] - grey[3]).mean((1, 2, 3)), abs=0.02)
    data = np.abs(clip[4:] - clip[3]).mean((1, 2, 3))
    assert held.values["crps_fair_data"][0] == pytest.approx(data, abs=1e-6)
    blended = judge(
        simple("linear-blend"), some, Case(known=tuple(i for i in range(16) if i != 7), frames=16), GROUPS, samples=1
    )
    assert blended.values["crps"].shape == (4, 1)


def test_analog_finds_the_flow_it_knows(cut, tmp_path):
    known = write_flows(tmp_path / "known", flows=32)
    sources = simple_sources(CASE, reference=known / "test")
    told = {s.name: judge(s, cut.first(3), CASE, GROUPS, samples=min(8, s.most)) for s in sources}
    assert told["analog"].windows("crps").max() < 0.01 < told["persistence"].windows("crps").min()
    less = told["analog"].less(told["persistence"])
    assert less.excludes_zero and less.mean < 0
    assert told["analog-8"].samples == 8 and "linear-blend" not in told


def test_no_reference_leaves_the_analog_out():
    names = {s.name for s in simple_sources(CASE, reference=None, besides="persistence")}
    assert names == {"mean-frame", "linear-extrapolation", "motion-compensated"}


def test_paired_interval_is_narrower_than_the_two_apart(cut):
    a = judge(simple("persistence"), cut, CASE, GROUPS, samples=1)
    b = judge(simple("mean-frame"), cut, CASE, GROUPS, samples=1)
    apart, paired = a.interval("crps"), a.less(b, "crps")
    assert paired.mean == pytest.approx(apart.mean - b.interval("crps").mean)
    assert paired.units == 32
    assert 0 < paired.high - paired.low < sum(x.high - x.low for x in (apart, b.interval("crps")))


def test_scores_of_different_windows_are_not_compared(cut):
    a = judge(simple("persistence"), cut.first(2), CASE, GROUPS, samples=1)
    other = replace(cut, clips=cut.clips[2:4], units=cut.units[2:4], names=cut.names[2:4])
    b = judge(simple("persistence"), other, CASE, GROUPS, samples=1)
    for wrong in (b, a.first(1)):
        with pytest.raises(ValueError, match="have seen different windows"):
            a.less(wrong)


def test_noise_of_a_window_hangs_on_its_name_and_the_seed_alone(model, cut):
    order = replace(cut, clips=cut.clips[1::-1], units=cut.units[1::-1], names=cut.names[1::-1])
    there = judge(Computed(model, seed=3), cut.first(2), CASE, GROUPS, samples=3)
    back = judge(Computed(model, seed=3, batch=2), order, CASE, GROUPS, samples=3)
    assert np.allclose(there.values["crps"], back.values["crps"][::-1], atol=0.02)
    other = judge(Computed(model, seed=4), cut.first(2), CASE, GROUPS, samples=3)
    assert not np.allclose(there.values["crps"], other.values["crps"], atol=0.02)


def test_a_whole_result_holds_scores_sets_and_what_differs(plan, tmp_path):
    source = simple("persistence")
    cases = evaluate(plan, source)
    told = result(plan, source, cases, device=CPU)
    assert told["protocol"] == "smoke-lbm-partial"
    assert "8 windows instead of 128" in told["deviations"]
    assert "sets of 8 judged clips instead of 512" in told["deviations"]
    held, *others = told["cases"][0]["forecasts"]
    assert held["name"] == "persistence" and held["kind"] == "model" and {o["kind"] for o in others} == {"simple"}
    assert held["scores"]["crps_fair"]["units"] == 8 and held["by_frame"]["ssim"]["frames"] == list(range(4, 16))
    assert others[0]["minus"]["psnr"]["units"] == 8
    figure = held["sets"]["rf3d-v1 motion"]
    assert figure["n_real"] == figure["n_fake"] == 8 and figure["value"] > 0 and len(figure["folds"]) == 4
    assert "fvd" not in json.dumps(held["sets"]).lower()
    files = write(tmp_path / "told", told, cases)
    assert [path.name for path in files] == ["result.json", "result.csv", "windows.csv"]
    assert json.loads(files[0].read_text()) == told
    lines = files[2].read_text().splitlines()
    assert len(lines) == 1 + 8 * len(told["cases"][0]["forecasts"]) and lines[1].startswith("4 → 12,persistence,flow_")


def test_only_the_whole_protocol_carries_its_name(folder, tmp_path):
    plan = Plan(rules=replace(SMOKE, sets=None), data=folder, cache=FeatureCache(tmp_path / "f.sqlite"))
    source = simple("persistence")
    source.most = 8  # asked for the protocol's number, whatever differs
    cases = evaluate(plan, source)
    assert deviations(plan, source, cases) == []
    assert result(plan, source, cases, device=CPU)["protocol"] == "smoke-lbm"


def test_samples_are_drawn_once_and_kept(model, plan, tmp_path, monkeypatch):
    calls = []
    real = type(model.system).sample
    monkeypatch.setattr(type(model.system), "sample", lambda *a, **k: calls.append(1) or real(*a, **k))
    plan = replace(plan, windows=2, samples=2)
    told = []
    for _ in range(2):
        kept = Kept(Computed(model), tmp_path / "samples", {"model": "this"})
        told.append(result(plan, kept, evaluate(replace(plan, shown=tmp_path / "shown"), kept), device=CPU))
    drawn = len(calls)
    (kept.path(CASE, "flow_0001@0")).write_bytes(b"spoiled")
    evaluate(plan, kept)
    assert drawn == 2 and len(calls) == 3  # windows of sets are among those compared; a spoiled file is drawn again
    figures = [[f["scores"]["crps"]["mean"] for f in t["cases"][0]["forecasts"]] for t in told]
    assert figures[0] == figures[1]
    shown = tmp_path / "shown" / "0" / "0"
    names = {path.name for path in shown.iterdir()}
    assert {"truth.npz", "about.json", "vortex-ramvid.npz", "persistence.npz"} <= names
    with pytest.raises(ValueError, match="samples of another evaluation"):
        Kept(Computed(model), tmp_path / "samples", {"model": "other"})


def test_drawn_bytes_are_truncated_where_the_protocol_does(model, cut):
    # at 127.7 truncation gives 127, rounding 128
    clip = framecast.Clip(torch.full((4, 1, 2, 2), 100, dtype=torch.uint8))
    clip.frames[2:] += 55
    case = Case(known=(0, 3), frames=4)
    told = {
        q: Computed(baseline("linear-blend"), quantise=q).samples(case, "w", clip, 1) for q in ("round", "truncate")
    }
    levels = {q: made.video[0, :, 0, 0, 0].tolist() for q, made in told.items()}
    assert levels == {"round": [100, 118, 137, 155], "truncate": [100, 118, 136, 155]}
    assert told["truncate"].video.dtype == torch.uint8


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"flows": 31}, "holds 31 of the 32 test flows"),
        ({"set_name": "vortex16"}, "is not a test flow of vortex32"),
        ({"seed": 3}, "is not a test flow of vortex32 with seed 0"),
        ({"frames": 18}, "has 18 frames"),
    ],
)
def test_a_folder_that_is_not_the_set_is_refused_with_the_command_that_makes_it(tmp_path, made, says):
    folder = write_flows(tmp_path / "set", **made)
    with pytest.raises(ValueError, match=f"{says}.*framecast data simulate vortex32"):
        windows(SMOKE, CASE, SMOKE.paired, folder)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ValueError, match="smoke-lbm"):
        protocol("smoke-lmb")


def test_the_package_is_the_verb(model, folder, tmp_path):
    told = framecast.evaluate(model, data=folder, out=tmp_path / "out", windows=2, samples=2, options={"steps": 2})
    assert told["model"]["sample"]["steps"] == 2 and told["protocol"] == "smoke-lbm-partial"
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == told
    assert len(list((tmp_path / "out" / "samples" / CASE.slug).iterdir())) == 2


def test_windows_are_ranked_by_how_much_they_move(cut):
    still = replace(cut.clips[0], frames=cut.clips[0].frames[:1].expand(16, -1, -1, -1).clone())
    clips = [still if i % 3 == 0 else cut.clips[i] for i in range(9)]
    scores = judge(simple("persistence"), replace(cut.first(9), clips=clips), CASE, GROUPS, samples=1)
    thirds = scores.by_motion()
    assert thirds["windows"] == [3, 3, 3] and thirds["motion"][0] == thirds["crps_fair"][0] == 0
    assert 0 < thirds["motion"][1] < thirds["motion"][2] and min(thirds["crps_fair"][1:]) > 1
    assert scores.first(8).by_motion() == {}
