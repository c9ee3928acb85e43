"""The ground floor: tasks and windows, draws, settings, clips."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.draws import draws, mix
from framecast.experiment import DataConfig, StageConfig, VideoSpec, from_plain, from_yaml, size_of, to_plain, to_yaml
from framecast.systems.ramvid.config import RaMViDExperiment
from framecast.task import Task, parse_frames, sliding_windows
from framecast.video import Clip, from_video, to_video


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(2, 17), st.data())
@settings(max_examples=300, deadline=None)
def test_windows_fill_every_missing_frame_once_and_know_what_is_finished(known, length, data):
    overlap = data.draw(st.integers(1, length - 1))
    finished = list(known)
    for window in sliding_windows(known, length, overlap):
        assert len(window.frames) == len(window.known) == length
        assert list(window.frames) == list(range(window.frames[0], window.frames[0] + length))
        for i, is_known in zip(window.frames, window.known):
            inside = 0 <= i < len(known)
            assert is_known == (inside and finished[i])
        drawn = [i for i, k in zip(window.frames, window.known) if not k and 0 <= i < len(known)]
        assert drawn, "a window that draws nothing wastes a call"
        for i in drawn:
            finished[i] = True
    assert all(finished)


@given(st.integers(2, 40), st.integers(2, 7))
@settings(max_examples=100, deadline=None)
def test_interpolation_draws_every_frame_between_two_given_ones(given_frames, factor):
    task = Task.interpolate(given_frames, factor)
    finished = list(task.known)
    for window in sliding_windows(task.known, 16, 4):
        drawn = [i for i, k in zip(window.frames, window.known) if not k and 0 <= i < len(task)]
        for i in drawn:  # the next given frame stands in the same window: no seam
            assert any(task.known[j] for j in window.frames if i < j < len(task))
        finished = [f or i in drawn for i, f in enumerate(finished)]
    assert all(finished)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(3, 17), st.data())
@settings(max_examples=300, deadline=None)
def test_no_frame_is_drawn_blind_to_a_finished_neighbour(known, length, data):
    finished = list(known)
    for window in sliding_windows(known, length, data.draw(st.integers(1, length - 1))):
        drawn = [i for i, k in zip(window.frames, window.known) if not k and 0 <= i < len(known)]
        beside = {j for i in drawn for j in (i - 1, i + 1) if 0 <= j < len(known) and finished[j]}
        assert beside <= set(window.frames)
        finished = [f or i in drawn for i, f in enumerate(finished)]


def test_windows_roll_out_a_long_prediction_by_the_overlap():
    starts = [(w.frames[0], w.frames[-1]) for w in sliding_windows(Task.predict(10, 16).known, 20, 4)]
    assert starts == [(0, 19), (16, 35)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Task.predict(0, 4), "at least 1 known frame"),
        (lambda: Task.infill([9], 8), "outside the clip"),
        (lambda: Task.infill([0, 1], 2), "nothing to fill in"),
        (lambda: Task.infill([], 2), "use generate"),
        (lambda: Task.interpolate(1, 2), "at least 2 frames"),
        (lambda: Task.interpolate(4, 1), "factor of 2"),
        (lambda: Task.generate(0), "at least 1 frame"),
        (lambda: parse_frames("0-"), "not an index or a range"),
        (lambda: parse_frames("3-1"), "runs backwards"),
        (lambda: parse_frames("-1"), "not an index"),
        (lambda: sliding_windows([False] * 4, 4, 4), "overlap 4"),
    ],
)
def test_impossible_tasks_are_refused_in_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_known_frames_are_read_with_inclusive_ranges():
    assert parse_frames("14-15, 0-3,3") == [0, 1, 2, 3, 14, 15]


def test_a_rows_noise_does_not_depend_on_its_neighbours():
    three, one = draws(3, [4, 9, 2]), draws(3, [9])
    for kind in ("normal", "uniform"):
        assert torch.equal(getattr(three, kind)((3, 2, 5))[1], getattr(one, kind)((1, 2, 5))[0])
    assert torch.equal(three.integers(0, 1000, (3, 7))[1], one.integers(0, 1000, (1, 7))[0])


def test_shared_draws_depend_on_seed_and_step_only():
    a, b, c = draws(1, [0], step=5), draws(1, [7, 8], step=5), draws(1, [0], step=6)
    first = [torch.rand(4, generator=d.shared) for d in (a, b, c)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_draws_have_the_stated_moments():
    values = draws(0, range(64)).normal((64, 4000))
    assert abs(values.mean().item()) < 0.01
    assert abs(values.std().item() - 1) < 0.01
    assert mix("a", 1) != mix("a", 2) != mix("b", 2)


@pytest.mark.parametrize("text", ["1e5", "12", "true", "on", "null", "-", "1_000"])
def test_texts_that_look_like_something_else_stay_texts(text):
    assert from_plain(DataConfig, from_yaml(to_yaml(DataConfig(dir=text)))).dir == text


def test_settings_survive_a_round_trip():
    experiment = RaMViDExperiment()
    changed = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, size=(48, 64), fps=12.5))
    assert from_plain(RaMViDExperiment, to_plain(changed)) == changed
    assert size_of(32) == (32, 32) and size_of([4, 6]) == (4, 6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": {}}, "modle is not a setting. Did you mean model?"),
        ({"stages": {"diffusion": {"batchh": 3}}}, "stages.diffusion.batchh is not a setting. Did you mean batch?"),
        ({"model": {"width": "wide"}}, "model.width is 'wide', which is not a whole number."),
        ({"model": {"schedule": "cosin"}}, "model.schedule is 'cosin'; it can be linear, scaled_linear, cosine."),
        ({"sample": {"steps": 1.5}}, "sample.steps is 1.5, which is not a whole number or a text."),
        ({"data": 3}, "data must be a table"),
        ({"data": {"flip": 1}}, "data.flip is 1, which is not true or false."),
    ],
)
def test_wrong_settings_are_named_with_their_path(values, words):
    with pytest.raises(ValueError) as caught:
        from_plain(RaMViDExperiment, values)
    assert words in str(caught.value)


def test_missing_settings_without_default_are_named():
    with pytest.raises(ValueError, match="clip_frames"):
        from_plain(VideoSpec, {"channels": 1, "height": 2, "width": 2})
    assert from_plain(StageConfig, {}).batch == 8


def test_every_byte_survives_the_way_through_a_video():
    clip = Clip(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16), fps=25)
    assert torch.equal(from_video(to_video(clip)[0], clip), clip.frames)


def test_float_units_are_mapped_by_the_declared_range():
    clip = Clip(torch.tensor([-3.0, 0.0, 5.0]).reshape(1, 1, 1, 3), value_range=(-3, 5))
    assert torch.allclose(to_video(clip).flatten(), torch.tensor([-1.0, -0.25, 1.0]))
    assert torch.allclose(from_video(to_video(clip)[0], clip), clip.frames)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Clip(torch.zeros(2, 3, 4)), "shape"),
        (lambda: Clip(torch.zeros(2, 1, 4, 4)), "value range"),
        (lambda: Clip(torch.zeros(2, 1, 4, 4), value_range=(1, 0)), "below the second"),
        (lambda: Clip(torch.full((2, 1, 4, 4), float("nan")), value_range=(0, 1)), "not numbers"),
        (lambda: Clip(torch.zeros(2, 1, 4, 4, dtype=torch.float64), value_range=(0, 1)), "float64"),
        (lambda: Clip(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), fps=0), "above 0"),
        (lambda: to_video(Clip(torch.full((1, 1, 2, 2), 200.0), value_range=(0, 1))), "outside the declared range"),
    ],
)
def test_impossible_clips_are_refused_in_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_slicing_a_clip_keeps_its_time():
    clip = Clip(torch.from_numpy(np.zeros((8, 1, 2, 2), np.uint8)), fps=24)
    assert clip[::2].fps == 12 and len(clip[::2]) == 4 and clip[:3].fps == 24
