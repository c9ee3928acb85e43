"""Windows of a protocol, scores of a forecast on them, beside the simple forecasts; figures of sets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import framecast
from framecast.evaluate.baselines import baseline
from framecast.evaluate.feature_cache import FeatureCache
from framecast.evaluate.kept import Kept, identity
from framecast.evaluate.plan import Plan
from framecast.evaluate.protocols import PROTOCOLS, protocol
from framecast.evaluate.result import deviations, model_deviations, result, write
from framecast.evaluate.run import evaluate, judge, simple_sources
from framecast.evaluate.samples import Computed
from framecast.evaluate.stored import Stored, samples_in
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
    assert "8 real clips instead of 512" in told["deviations"]
    assert told["data"]["sets"]["4-12"]["real"] == 8 and len(told["data"]["sets"]["4-12"]["real_sha256"]) == 64
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The set with as many training flows as it must have."""
    return write_flows(tmp_path_factory.mktemp("whole"), train=64)


def test_only_the_whole_protocol_carries_its_name(whole, tmp_path):
    rules = replace(SMOKE, sets=replace(SMOKE.sets, per_clip=1))  # a smaller set, to be quick
    plan = Plan(rules=rules, data=whole, cache=FeatureCache(tmp_path / "f.sqlite"))
    source = simple("persistence")
    cases = evaluate(plan, source)
    assert deviations(plan, cases) == [] == model_deviations(plan, source)
    assert result(plan, source, cases, device=CPU)["protocol"] == "smoke-lbm"


def test_what_differs_is_told_one_by_one(whole, folder, model, tmp_path):
    def told(plan, source):
        few = replace(plan, windows=2, samples=2, cache=FeatureCache(tmp_path / "f.sqlite"), _cuts={})
        return result(few, source, evaluate(few, source), device=CPU)["deviations"]

    plan = Plan(rules=replace(SMOKE, sets=None, metrics=("crps",)), data=whole)
    assert told(plan, simple("mean-frame")) == ["2 windows instead of 128", "2 samples instead of 8"]
    fewer = told(replace(plan, data=folder), simple("mean-frame"))
    assert fewer[2:] == ["3 of the 64 training clips of vortex32 to look things up in, 0 of another"]
    stated = replace(plan, rules=replace(plan.rules, sampler={"steps": 3, "sampler": "ddim", "colour": 1}))
    drawn = Computed(model, options=model.options({"steps": 2, "overlap": 3}))
    assert told(stated, drawn)[2:] == [
        "steps 2 instead of 3",
        "the protocol states colour 1, which this model does not have",
        "overlap 3, which is neither stated nor the model's own",
    ]
    smaller = replace(model.video, height=16, width=16)
    assert "clips of 1 × 16 × 16 instead of 1 × 32 × 32" in told(replace(plan, like=smaller), simple("mean-frame"))[2]
    any_number = replace(plan.rules, paired=replace(SMOKE.paired, clips=None))
    assert "the first 2 of 128 windows only" in told(replace(plan, rules=any_number), simple("mean-frame"))


def test_samples_are_drawn_once_and_kept(model, plan, tmp_path, monkeypatch):
    calls, whose = [], identity(SMOKE, Computed(model))
    real = type(model.system).sample
    monkeypatch.setattr(type(model.system), "sample", lambda *a, **k: calls.append(1) or real(*a, **k))
    plan = replace(plan, windows=2, samples=2)
    told = []
    for _ in range(2):
        kept = Kept(Computed(model), tmp_path / "samples", whose)
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
    with pytest.raises(ValueError, match=r"samples of another evaluation \(model.seed: 0 there, 1 here\)"):
        Kept(Computed(model, seed=1), tmp_path / "samples", identity(SMOKE, Computed(model, seed=1)))


def test_samples_of_other_frames_are_drawn_again(model, cut, tmp_path):
    kept = Kept(Computed(model), tmp_path / "samples", identity(SMOKE, Computed(model)))
    clip, name = cut.clips[0], cut.names[0]
    first = kept.samples(CASE, name, clip, 2)
    other = replace(clip, frames=-clip.frames)
    again = kept.samples(CASE, name, other, 2)
    assert torch.equal(again.video[:, :4], other.frames[:4].expand(2, -1, -1, -1, -1))
    assert torch.equal(kept.samples(CASE, name, clip, 2).video, first.video)


def stored(tmp_path, videos, names, **how):
    for i, video in enumerate(videos):
        np.savez(tmp_path / f"{i}.npz", frames=video.numpy())
    how = {"enough": len(names), "value_range": (-1.0, 1.0), **how}
    return Stored(tmp_path, SMOKE, {CASE.slug: names}, **how)


def test_stored_samples_are_taken_in_order_and_checked(cut, tmp_path):
    clips, names = [cut.clips[i] for i in range(2)], cut.names[:2]
    whole = stored(tmp_path, [clip.frames[None].repeat(3, 1, 1, 1, 1) for clip in clips], names)
    assert samples_in(tmp_path) == tmp_path and whole.windows == 2
    assert judge(whole, cut.first(2), CASE, GROUPS, samples=3).windows("crps").max() == 0 == whole.shifted
    unknown = stored(tmp_path, [clip.frames[None, 4:] for clip in clips], names)
    assert judge(unknown, cut.first(2), CASE, GROUPS, samples=3).windows("crps").max() == 0
    swapped = stored(tmp_path, [clip.frames[None] for clip in reversed(clips)], names)
    assert judge(swapped, cut.first(2), CASE, GROUPS, samples=1).windows("crps").min() > 1 and swapped.shifted > 1
    uneven = stored(tmp_path, [clips[0].frames[None].repeat(2, 1, 1, 1, 1), clips[1].frames[None]], names)
    with pytest.raises(ValueError, match=r"1 samples of window .* and 2 of those before"):
        judge(uneven, cut.first(2), CASE, GROUPS, samples=2)
    with pytest.raises(ValueError, match="holds 2 files, the protocol asks for 3 windows"):
        Stored(tmp_path, SMOKE, {CASE.slug: cut.names[:3]}, enough=3)
    with pytest.raises(ValueError, match="holds 2 files for 1 windows"):
        Stored(tmp_path, SMOKE, {CASE.slug: names[:1]}, enough=1)


def test_clips_drawn_from_nothing_are_drawn_in_chunks_and_kept(model, tmp_path):
    rules, case = PROTOCOLS["generate-lbm"], PROTOCOLS["generate-lbm"].cases[0]
    computed = Computed(model, task="generate")
    kept = Kept(computed, tmp_path / "samples", identity(rules, computed))
    ninth = kept.samples(case, "8", None, 1)
    assert torch.equal(ninth.video, computed.samples(case, "8", None, 1).video) and ninth.video.shape[:2] == (1, 16)
    assert [path.name for path in (tmp_path / "samples" / case.slug).iterdir()] == ["chunk_00001.npz"]
    kept.samples(case, "0", None, 1)
    read = Stored(tmp_path / "samples", rules, {case.slug: [str(i) for i in range(20)]}, enough=1)
    assert read.windows == 16 and torch.equal(read.samples(case, "8", None, 1).video, ninth.video)


def test_drawn_bytes_are_truncated_where_the_protocol_does():
    clip = framecast.Clip(torch.full((4, 1, 2, 2), 100, dtype=torch.uint8))
    clip.frames[2:] += 55
    case = Case(known=(0, 3), frames=4)  # blended: 118.33 and 136.67
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
    told = framecast.evaluate(model, data=folder, out=tmp_path / "out", windows=2, samples=2, steps=2)
    assert told["model"]["sample"]["steps"] == 2 and told["protocol"] == "smoke-lbm-partial"
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == told
    assert len(list((tmp_path / "out" / "samples" / CASE.slug).iterdir())) == 2
    with pytest.raises(ValueError, match=r"give a model, such as framecast.load\('persistence'\)"):
        framecast.evaluate("persistence", data=folder)
    with pytest.raises(ValueError, match="holds a finished result"):
        framecast.evaluate(model, data=folder, out=tmp_path / "out")


def test_windows_are_ranked_by_how_much_they_move(cut):
    still = replace(cut.clips[0], frames=cut.clips[0].frames[:1].expand(16, -1, -1, -1).clone())
    clips = [still if i % 3 == 0 else cut.clips[i] for i in range(9)]
    scores = judge(simple("persistence"), replace(cut.first(9), clips=clips), CASE, GROUPS, samples=1)
    thirds = scores.by_motion()
    assert thirds["windows"] == [3, 3, 3] and thirds["motion"][0] == thirds["crps_fair"][0] == 0
    assert 0 < thirds["motion"][1] < thirds["motion"][2] and min(thirds["crps_fair"][1:]) > 1
    assert scores.first(8).by_motion() == {}


def test_a_clip_that_breaks_in_the_middle_is_left_out_and_told(tmp_path):
    rules = replace(PROTOCOLS["ramvid-bair-pred"], paired=None, metrics=("rf3d",))
    for i in range(4):
        frames = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(i))
        frames[7] = torch.nan if i == 2 else frames[7]
        path = tmp_path / "test" / f"{i}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, frames=frames.numpy(), value_range=np.array([0.0, 1.0]))
    plan = Plan(rules=replace(rules, channels=1, height=8, width=8), data=tmp_path, cache=FeatureCache(tmp_path / "f"))
    source = simple("persistence")
    told = result(plan, source, evaluate(plan, source), device=CPU)
    assert told["cases"][0]["forecasts"][0]["sets"]["rf3d-v1 motion"]["n_real"] == 3
    assert "3 real clips instead of 256" in told["deviations"]
    assert any("1 of 4 windows cannot be read" in note and "2.npz" in note for note in told["data"]["notes"])


def test_stored_samples_of_other_units_are_brought_to_those_of_the_clips(cut, tmp_path):
    clip, name = cut.clips[0], cut.names[:1]
    levels = ((clip.frames + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    for kind, frames, how in (
        ("bytes", levels, {}),
        ("shares", (clip.frames + 1) / 2, {"value_range": (0.0, 1.0)}),
        ("own", clip.frames, {"value_range": (-1.0, 1.0)}),
    ):
        for layout, array in (("npy", frames.permute(0, 2, 3, 1)[None]), ("npz", frames[None])):
            path = tmp_path / f"{kind}-{layout}"
            path.mkdir()
            if layout == "npy":
                np.save(path / "all.npy", array.numpy())
                path = path / "all.npy"
            else:
                np.savez(path / "0.npz", frames=array.numpy())
            told = judge(Stored(path, SMOKE, {CASE.slug: name}, enough=1, **how), cut.first(1), CASE, GROUPS, samples=1)
            assert told.windows("crps").max() < 0.01, (kind, layout)
            if how:
                with pytest.raises(ValueError, match=r"unknown range: .+--value-range"):
                    bare = Stored(path, SMOKE, {CASE.slug: name}, enough=1)
                    judge(bare, cut.first(1), CASE, GROUPS, samples=1)


def test_a_training_run_is_a_model_not_samples(tmp_path):
    for folder in ("checkpoints", "samples"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "samples" / "step_10.npy", np.zeros((16, 1, 32, 32), np.uint8))
    assert samples_in(tmp_path) is None
    (tmp_path / "checkpoints").rmdir()
    assert samples_in(tmp_path) == tmp_path
