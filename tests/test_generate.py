"""Windows in order of time, verbs over clips, results with their record."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from framecast.draws import draws
from framecast.experiment import SampleOptions, VideoSpec
from framecast.forecast import Forecast
from framecast.generate import Model, complete, free_folder, plan, stream
from framecast.system import System
from framecast.task import Task, UnsupportedTask, Window, sliding_windows
from framecast.video import Clip
from tests.coded import Signs

SPEC = VideoSpec(channels=1, height=4, width=4, clip_frames=8, fps=10.0)


@dataclass(frozen=True, kw_only=True)
class Options(SampleOptions):
    steps: int = 3  # network calls
    overlap: int = 2  # finished frames a later window sees
    sampler: str = "mean"


class Mean(nn.Module):
    def forward(self, frames, known):
        return frames[:, known].mean(1, keepdim=True) if known.any() else torch.zeros_like(frames[:, :1])


class Filler(System):
    """Answers any mask: unknown frames are the mean of the known ones plus a little noise of their own."""

    name = "filler"

    def __init__(self, options=None):
        super().__init__()
        self.config, self.video, self.options = None, SPEC, options or Options()
        self.net, self.scale = Mean(), nn.Parameter(torch.tensor(0.1))
        self.seen: list[tuple] = []

    def parts(self):
        return {"net": self.net}

    def plan(self, known, options):
        return sliding_windows(known, SPEC.clip_frames, options.overlap)

    def sample(self, frames, known, *, rng, options, carry=None):
        assert not torch.is_grad_enabled()
        assert not frames[:, ~known].any(), "values at unknown frames must not leak"
        self.seen.append((known.tolist(), carry))
        for _ in range(options.steps):
            mean = self.net(frames, known)
        made = (mean + self.scale * rng.normal(frames.shape)).clamp(-1, 1)
        shown = frames + 0.25 if options.given == "model" else frames
        return torch.where(known[None, :, None, None, None], shown, made), (carry or 0) + 1

    def stage(self, name, settings, assets):
        raise ValueError("not trained")


class Fixed(Filler):
    """Follows a plan written by hand."""

    def __init__(self, windows, options=None):
        super().__init__(options)
        self.windows = windows

    def plan(self, known, options):
        return self.windows


class Forward(Filler):
    name = "forward"

    def plan(self, known, options):
        raise UnsupportedTask("forward predicts forward only.")


def given_frames(task, batch=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(batch, sum(task.known), 1, 4, 4, generator=rng) * 2 - 1


def a_clip(frames=16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Clip(torch.randint(0, 256, (frames, 1, 4, 4), generator=rng, dtype=torch.uint8), fps=10.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from(["exact", "model"]))
def test_complete_keeps_every_given_frame_in_place(known, mode):
    assume(not all(known))
    task = Task("infill", tuple(known))
    frames = given_frames(task)
    video = complete(Filler(), frames, task, rng=draws(0, [0, 1]), options=Options(given=mode))
    assert video.shape[1] == len(task)
    looked_at = {frame for window in sliding_windows(known, 8, 2) for frame in window.frames}
    shift = torch.tensor([0.25 * (mode == "model" and i in looked_at) for i, k in enumerate(known) if k])
    assert torch.equal(video[:, list(known)], frames + shift[:, None, None, None])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_stream_blocks_in_a_row_are_the_complete_video(known):
    assume(not all(known))
    task = Task("infill", tuple(known))
    frames = given_frames(task)
    blocks = list(stream(Filler(), frames, task, rng=draws(0, [0, 1])))
    assert all(block.shape[1] for block in blocks)
    assert torch.equal(torch.cat(blocks, 1), complete(Filler(), frames, task, rng=draws(0, [0, 1])))


def test_stream_yields_frames_as_soon_as_they_are_finished():
    task, system = Task.predict(2, 30), Filler()
    lengths = []
    for block in stream(system, given_frames(task), task, rng=draws(0, [0, 1])):
        lengths.append((block.shape[1], len(system.seen)))
    assert lengths == [(8, 1), (6, 2), (6, 3), (6, 4), (6, 5)]


def test_stream_holds_no_frame_that_nobody_needs():
    task = Task.predict(2, 200)
    blocks = stream(Filler(), given_frames(task), task, rng=draws(0, [0, 1]))
    for _ in blocks:
        held = blocks.gi_frame.f_locals
        assert len(held["drawn"]) + len(held["shown"]) <= SPEC.clip_frames


def test_complete_follows_a_plan_that_jumps_about():
    known = (True,) + (False,) * 9
    windows = [
        Window((0, 4, 8, 12), (True, False, False, False)),  # 12 is past the end
        Window((-1, 4, 5, 6, 7, 8), (False, True, False, False, False, True)),
        Window((0, 1, 2, 3, 4), (True, False, False, False, True)),
        Window((8, 9), (True, False)),
    ]
    system, task = Fixed(windows), Task("infill", known)
    frames = given_frames(task)
    blocks = [b.shape[1] for b in stream(system, frames, task, rng=draws(0, [0, 1]))]
    assert blocks == [1, 8, 1]
    assert [carry for _, carry in system.seen] == [None, 1, 2, 3]


def test_later_window_sees_what_an_earlier_one_drew():
    windows = [Window((0, 1), (True, False)), Window((1, 2), (True, False))]
    task = Task.predict(1, 2)
    system = Fixed(windows)
    system.scale.data.zero_()  # every frame is then the mean of the known ones
    frames = given_frames(task)
    video = complete(system, frames, task, rng=draws(0, [0, 1]))
    assert torch.allclose(video, frames.expand_as(video))


def test_stream_refuses_wrong_number_of_given_frames():
    task = Task.predict(2, 4)
    with pytest.raises(ValueError, match="2 known frames"):
        stream(Filler(), torch.zeros(1, 3, 1, 4, 4), task, rng=draws(0, [0]))


def test_stream_refuses_frames_of_another_size():
    task = Task.predict(2, 4)
    with pytest.raises(ValueError, match=r"1 × 4 × 4.*1 × 4 × 6"):
        stream(Filler(), torch.zeros(1, 2, 1, 4, 6), task, rng=draws(0, [0]))


def test_unsupported_task_names_systems_that_can():
    with pytest.raises(UnsupportedTask, match=r"forward only\. Systems that infill: .*ramvid"):
        plan(Forward(), Task.infill([0, 3], 8))


def test_plan_that_leaves_a_hole_is_noticed():
    with pytest.raises(AssertionError, match="never draws frame 2"):
        complete(
            Fixed([Window((0, 1), (True, False))]), torch.zeros(1, 1, 1, 4, 4), Task.predict(1, 2), rng=draws(0, [0])
        )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_samples_are_the_same_however_they_are_batched(batch):
    model, clip = Model(Filler()), a_clip()
    whole = model.predict(clip, 8, samples=5, context=4, seed=3)
    assert torch.equal(whole.video, model.predict(clip, 8, samples=5, context=4, seed=3, batch=batch).video)
    assert torch.equal(whole.video[:2], model.predict(clip, 8, samples=2, context=4, seed=3, batch=batch).video)
    assert not torch.equal(whole.video, model.predict(clip, 8, samples=5, context=4, seed=4).video)


def test_predict_answers_in_the_clip_s_own_bytes():
    clip = a_clip()
    result = Model(Filler()).predict(clip, 20, samples=2, context=4)
    assert result.video.dtype == torch.uint8
    assert result.video.shape == (2, 24, 1, 4, 4)
    assert torch.equal(result.video[:, :4], clip.frames[:4].expand(2, -1, -1, -1, -1))
    assert torch.equal(result.truth, clip.frames)
    assert result.fps == 10.0


def test_clip_and_forecast_show_what_they_hold_instead_of_their_values():
    clip = Clip(torch.zeros(6, 1, 2, 3, dtype=torch.uint8), fps=12.5)
    assert repr(clip) == "Clip(6 frames of 1×2×3 at 12.5 fps, values (0.0, 255.0))"
    made = Forecast(clip.frames[None].expand(2, -1, -1, -1, -1), (True, True) + 4 * (False,), 12.5, (0.0, 255.0), {})
    assert repr(made) == "Forecast(2 × 6 frames of 1×2×3, 2 of them given)"


def test_predict_answers_in_the_units_of_a_float_clip():
    frames = torch.rand(6, 1, 4, 4) * 0.013 + 273.15  # rounding on the way to -1..1 and back must not touch these
    clip = Clip(frames, value_range=(273.1, 273.2))
    result = Model(Filler()).predict(clip, 3)
    assert torch.equal(result.video[0, :6], frames)
    assert bool((abs(result.video - 273.15) < 0.0501).all())


def test_predict_says_when_the_clip_is_too_short():
    with pytest.raises(ValueError, match="3 frames, the context needs 4"):
        Model(Filler()).predict(a_clip(3), 4, context=4)


def test_infill_never_looks_at_other_frames():
    clip, other = a_clip(), a_clip(seed=1)
    other.frames[[0, 1, 14, 15]] = clip.frames[[0, 1, 14, 15]]
    model = Model(Filler())
    assert torch.equal(model.infill(clip, known=[0, 1, 14, 15]).video, model.infill(other, known=[15, 14, 1, 0]).video)


def test_interpolate_keeps_duration_and_given_frames():
    clip = a_clip(11)
    result = Model(Filler()).interpolate(clip, 3)
    assert result.video.shape[1] == 31
    assert result.fps == 30.0
    assert torch.equal(result.video[0, ::3], clip.frames)


def test_generate_takes_nothing_and_answers_in_training_units():
    result = Model(Filler()).generate(3, frames=20)
    assert result.video.shape == (3, 20, 1, 4, 4)
    assert result.video.dtype == torch.uint8
    assert result.scores() is None
    assert not torch.equal(result.video[0], result.video[1])


def test_generate_refuses_no_frames():
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        Model(Filler()).generate(1, frames=0)


def test_usual_context_and_horizon_fill_a_clip():
    system = Filler()
    assert Model(system).context == 2
    assert [system.horizon(context) for context in (2, 7, 30)] == [6, 1, 1]


def test_model_refuses_a_clip_of_another_size():
    with pytest.raises(ValueError, match="like=model"):
        Model(Filler()).predict(Clip(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)), 4)


def test_options_name_the_nearest_setting():
    with pytest.raises(ValueError, match=r"sample\.step is not a setting\. Did you mean steps\?"):
        Model(Filler()).predict(a_clip(), 4, options={"step": 3})


@pytest.mark.parametrize(("verb", "lacks"), [("reconstruct", "encoder"), ("score", "likelihood")])
def test_model_says_what_its_system_lacks(verb, lacks):
    with pytest.raises(UnsupportedTask, match=lacks):
        getattr(Model(Filler(), name="mine"), verb)(a_clip())


def test_given_model_returns_the_model_s_view_of_known_frames():
    clip = Clip(torch.full((4, 1, 4, 4), 100, dtype=torch.uint8))
    result = Model(Filler()).predict(clip, 4, options={"given": "model"})
    assert (result.video[0, :4] == 132).all()  # a quarter of half the range brighter


def test_progress_counts_network_calls_to_the_end():
    calls = []
    Model(Filler()).predict(a_clip(), 16, samples=3, context=4, batch=2, progress=lambda *x: calls.append(x))
    windows = 3
    assert calls[-1] == (windows * 2 * 3, windows * 2 * 3)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) == windows * 2 * 3 + 1


def test_record_tells_how_the_forecast_came_about():
    record = (
        Model(Filler(), name="mine", digest="ab").predict(a_clip(), 8, samples=2, context=4, steps=2, seed=9).record
    )
    assert record["model"] == "mine" and record["sha256"] == "ab" and record["task"] == "predict"
    assert record["known_frames"] == [0, 1, 2, 3]
    assert record["sample"]["steps"] == 2 and record["seed"] == 9 and record["windows"] == 2
    assert {"framecast", "torch", "python"} <= set(record["versions"])
    json.dumps(record)


def test_scores_of_a_perfect_forecast_are_perfect():
    clip = Clip(torch.full((8, 1, 4, 4), 77, dtype=torch.uint8))
    system = Filler()
    system.scale.data.zero_()
    result = Model(system).predict(clip, 6, context=4, samples=3).scores()
    assert result["frames"] == [4, 5, 6, 7]  # two frames lie past the end of the clip
    assert result["model"]["crps"] == 0 and result["persistence"]["crps"] == 0


def test_scores_set_the_model_beside_persistence():
    clip = a_clip()
    result = Model(Filler()).predict(clip, 12, context=4, samples=3).scores()
    held = (clip.frames[3].float() - clip.frames[4:].float()).abs().mean().item()
    assert result["persistence"]["crps"] == pytest.approx(held, abs=1e-3)
    assert result["model"]["crps"] != result["persistence"]["crps"]


def test_free_folder_counts_up(tmp_path):
    assert free_folder(tmp_path / "push") == tmp_path / "push"
    for name in ("push", "push-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    assert free_folder(tmp_path / "push") == tmp_path / "push-3"


class Steady:
    """A bit per dimension for every level visited, the same for every unknown frame."""

    of, levels, most_levels, context = "pixels", 3, 9, 0

    def windows(self, known):
        return [Window(tuple(range(len(known))), tuple(known))]

    def calls(self, windows, levels):
        return levels * len(windows)

    def bits(self, frames, known, *, rng, levels=None):
        return torch.full((len(frames), int((~known).sum())), float(levels), dtype=torch.float64)


@pytest.fixture
def steady():
    system = Filler()
    system.scorer = Steady()
    return Model(system, name="mine", digest="ab")


def test_score_leaves_the_context_out(steady):
    found = steady.score(a_clip(6), context=2)
    assert found.frames == (2, 3, 4, 5) and found.bits.tolist() == [3.0] * 4
    assert found.record["known_frames"] == [0, 1]
    with pytest.raises(ValueError, match="leave at least one to score"):
        steady.score(a_clip(6), context=6)


def test_score_visits_the_levels_asked_for(steady):
    clip = a_clip(6)
    assert [steady.score(clip, levels=n).mean for n in (None, 5, "all")] == [3, 5, 9]
    for levels in (0, 10):
        with pytest.raises(ValueError, match=f"levels is {levels}, but mine scores by at most 9 noise levels"):
            steady.score(clip, levels=levels)


def test_score_tells_how_it_came_about_and_how_wide_its_bins_are(steady):
    record = steady.score(a_clip(6), context=1, seed=4).record
    assert record["sha256"] == "ab" and record["task"] == "score" and record["seed"] == 4
    assert (record["levels"], record["most_levels"]) == (3, 9) and record["windows"] == [[0, 5]]
    assert record["bin"] == 1  # a grey level
    field = Clip(torch.zeros(3, 1, 4, 4), value_range=(-2.0, 8.2))
    assert steady.score(field).record["bin"] == pytest.approx(0.04)


@pytest.fixture
def signs():
    system = Filler()
    system.scorer = Signs(system.net)
    return Model(system, name="mine", digest="ab")


def blinking(frames, *, since):
    """Dark, and bright in its upper left quarter from one frame on."""
    pixels = torch.zeros(frames, 1, 4, 4, dtype=torch.uint8)
    pixels[since:, :, :2, :2] = 255
    return Clip(pixels)


def test_score_of_codes_is_told_by_frame_level_and_place(signs):
    found, stay, change = signs.score(blinking(20, since=10)), math.log2(4 / 3), 2.0
    assert found.frames == tuple(range(4, 20)) and found.of == "codes"
    assert found.maps["top"].tolist() == [[[pytest.approx(stay)]]] * 4
    odd = torch.full((8, 2, 2), stay, dtype=torch.float64)
    odd[3, 0, 0] = change  # frames 10 and 11
    torch.testing.assert_close(found.maps["bottom"], odd)
    # a frame has half of four bottom codes and a quarter of a top one
    raised = ((3 * stay + change) / 2 + stay / 4) / (4 / 2 + 1 / 4)
    wanted = [raised if i in (10, 11) else stay for i in found.frames]
    assert found.bits.tolist() == pytest.approx(wanted) and found.least_likely == 10
    total = sum(float(bits.sum()) for bits in found.maps.values())
    assert found.mean == pytest.approx(total / (4 + 32)) and found.plain()["bits_per_clip"] == pytest.approx(total)


def test_record_of_a_score_of_codes_has_no_noise_levels(signs):
    ticks: list[tuple[int, int]] = []
    record = signs.score(blinking(16, since=9), progress=lambda done, total: ticks.append((done, total))).record
    assert record["uniform"] == Signs.uniform and record["notes"] == list(Signs.notes)
    assert not {"levels", "most_levels", "bin"} & set(record)
    assert record["windows"] == [[0, 7], [4, 11], [8, 15]] and ticks[-1] == (3, 3)
    for levels in (3, "all"):
        with pytest.raises(ValueError, match=f"levels is {levels}, but mine scores codes, exactly, and has no noise"):
            signs.score(blinking(16, since=9), levels=levels)


def test_context_of_a_score_of_codes_leaves_whole_windows(signs):
    assert [signs.given_to_score(n) for n in (8, 9, 11, 12)] == [4, 5, 7, 4]
    assert signs.given_to_score(20, 12) == 12
    with pytest.raises(ValueError, match="context is 6, which leaves 14 of 20 frames to score, but mine scores 4 at"):
        signs.given_to_score(20, 6)
    with pytest.raises(ValueError, match="the clip has 7 frames, mine scores windows of 8: give a longer clip"):
        signs.given_to_score(7)
    with pytest.raises(ValueError, match="context is 3, but mine needs 4"):
        signs.given_to_score(20, 3)


def test_save_writes_what_it_returns_and_never_twice(tmp_path):
    result = Model(Filler()).predict(a_clip(), 4, samples=2, context=4)
    files = result.save(tmp_path / "out", formats=("webp",))
    assert sorted(tmp_path.glob("out/*")) == sorted(files)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["scores"]["frames"] == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="out-2 is free"):
        result.save(tmp_path / "out")


def test_many_frames_go_to_a_file_and_come_out_the_same(monkeypatch, tmp_path):
    wanted = Model(Filler()).predict(a_clip(), 20, samples=3, context=4, seed=4).video
    monkeypatch.setattr("framecast.generate.IN_MEMORY", 0)
    forecast = Model(Filler()).predict(a_clip(), 20, samples=3, context=4, seed=4, batch=2)
    assert torch.equal(forecast.video, wanted)
    forecast.save(tmp_path / "out")
    kept = np.load(tmp_path / "out" / "samples.npz")["frames"]
    assert torch.equal(torch.from_numpy(kept), wanted)
