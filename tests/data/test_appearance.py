# SPDX-License-Identifier: Apache-2.0
"""A clip of another kind is told from the training clips, one of the same kind never is."""

import itertools
import json
import re

import numpy as np
import pytest
import torch

from framecast.data.appearance import appearance, facts, unlike
from framecast.data.array_file import write_array
from framecast.data.clips import open_streams
from framecast.data.fit import read_fitted
from framecast.data.simulate.sets import flows
from framecast.experiment import DataConfig, VideoSpec
from framecast.video import to_video
from tests.conftest import real_videos
from tests.tiny import write_clips

SPEC = VideoSpec(channels=1, height=16, width=16, clip_frames=8, fps=None, value_range=(-1.0, 1.0))


def stream(folder, *, split=0, size=16, frames=8, **more):
    config = DataConfig(dir=str(folder), channels=1, size=size, **more)
    return open_streams(config, clip_frames=frames, min_frames=2, seed=0)[split]


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flows")
    for i, clip in enumerate(flows("vortex16", "train", 8, 40)):
        about = {"set": "vortex16", "number": i}
        write_array(folder / f"{i}.npz", clip.frames, fps=None, value_range=clip.value_range, generated_by=about)
    return folder


@pytest.fixture(scope="module")
def told(flow_folder):
    return appearance(stream(flow_folder))


def test_facts_of_a_known_clip_are_what_they_are():
    clip = torch.zeros(3, 1, 2, 2)
    clip[1:] = torch.tensor([[0.5, -0.5], [0.5, -0.5]])
    found = facts(clip)
    assert found["level"].tolist() == [0, 0, 0]
    assert found["contrast"].tolist() == [0, 0.5, 0.5]
    assert found["detail"].tolist() == [0, 0.5, 0.5]  # 1 across, 0 down
    assert found["change"].tolist() == [0.5, 0]


def test_change_is_told_of_neighbours_only():
    clip = torch.randn(4, 1, 4, 4)
    assert facts(clip, [0, 5, 6, 15])["change"].tolist() == facts(clip[1:3])["change"].tolist()
    assert not facts(clip, [0, 2, 4, 6])["change"].numel()


def test_appearance_is_plain_small_and_the_same_again(flow_folder, told):
    assert json.loads(json.dumps(told)) == told and len(json.dumps(told)) < 500
    assert appearance(stream(flow_folder)) == told
    assert told["set"] == "vortex16" and told["values"] == "fields"


def test_appearance_leaves_the_stream_as_it_was(flow_folder):
    clips = stream(flow_folder)
    before = torch.get_rng_state()
    appearance(clips)
    assert torch.equal(torch.get_rng_state(), before)
    assert not clips._reader._kept  # no memory taken for files that training may never ask of this process


def test_padding_is_no_standstill(tmp_path):
    write_clips(tmp_path, files=4, frames=4)
    told = appearance(stream(tmp_path, size=8))  # clips of 8 frames, half of them repeated
    assert told["change"][0] > 0.05
    assert told["values"] == "pictures" and "set" not in told


@pytest.fixture(scope="module")
def unseen():
    return [to_video(clip) for clip in flows("vortex16", "test", 6, 40)]


@pytest.mark.parametrize("known", [1, 2, 4, 8])
def test_held_out_clips_of_the_same_kind_are_never_foreign(told, unseen, known):
    for video in unseen:
        said = [unlike(told, video[:, start : start + known]) for start in range(0, 32, 3)]
        assert said == [None] * len(said)


def test_held_out_real_video_is_not_foreign_to_its_own_beginning(tmp_path):
    if not real_videos():
        pytest.skip("no real videos at hand")
    source = real_videos()[-1]
    (tmp_path / source.name).symlink_to(source)
    told, held = appearance(stream(tmp_path, size=32)), stream(tmp_path, size=32, split=1)
    windows = [held.clip(position)[0] for position in range(4)]
    assert [unlike(told, window[None, :known]) for window in windows for known in (1, 4)] == [None] * 8


def test_real_video_is_always_foreign_to_a_model_of_flows(told):
    if not real_videos():
        pytest.skip("no real videos at hand")
    for source, fps in zip(real_videos(), itertools.cycle((None, 10.0))):
        spec = VideoSpec(**{**vars(SPEC), "fps": fps})
        video = to_video(read_fitted(source, spec, colour="gray")[0])
        for start in range(0, video.shape[1] - 4, 11):
            for known in (1, 2, 4):
                assert unlike(told, video[:, start : start + known]), (source.name, start, known)


def test_bouncing_digits_are_foreign_to_a_model_of_flows(told):
    for clip in flows("bouncing32", "test", 4, 4):
        video = to_video(clip)[..., ::2, ::2]
        assert "here" in unlike(told, video)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_clip_of_one_colour_is_told(told, value):
    video = torch.full((1, 4, 1, 16, 16), value)
    assert unlike(told, video).endswith("here every pixel of a frame has the same value")


def test_clip_of_one_colour_is_usual_where_some_training_frames_were():
    rainy = {"level": [-1, -0.9, 0], "contrast": [0, 0.2, 0.5], "detail": [0, 0.05, 0.2], "change": [0, 0.02, 0.1]}
    assert unlike(rainy, torch.full((1, 4, 1, 16, 16), -1.0)) is None
    assert unlike({**rainy, "contrast": [0.1, 0.2, 0.5]}, torch.full((1, 4, 1, 16, 16), -1.0)) is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v * 3, "contrast"),
        (lambda v: v + 0.6, r"mean value -0\.\d+ to 0\.\d+, here 0\.(6|59)"),
        (lambda v: v[:, :1].repeat(1, 4, 1, 1, 1), "change per frame .* here 0$"),
        (lambda v: v.flatten(3)[..., torch.randperm(256)].view(v.shape), "difference between neighbouring pixels"),
    ],
)
def test_fact_that_differs_most_is_named(told, unseen, change, says):
    torch.manual_seed(0)
    said = unlike(told, change(unseen[0][:, :4]))
    assert said is not None
    assert re.search(says, said), said


@pytest.mark.parametrize(
    "spoiled", [{}, {"contrast": 3}, {"contrast": "many"}, {"contrast": [1, None, 2]}, {"contrast": [3, 2, 1]}]
)
def test_summary_that_says_nothing_of_use_is_passed_over(spoiled):
    assert unlike(spoiled, torch.rand(1, 4, 1, 8, 8)) is None


def test_one_frame_of_one_pixel_has_facts_to_tell():
    assert not np.isnan(facts(torch.ones(1, 1, 1, 1))["contrast"].numpy()).any()
