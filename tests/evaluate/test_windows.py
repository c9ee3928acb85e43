"""Windows cut from small folders: one rule at a time, nothing left to chance, everything left out is told."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from framecast.data.array_file import write_array
from framecast.data.clip_file import BadClip, read_clip
from framecast.data.simulate import bouncing
from framecast.data.simulate.sets import SETS, simulate
from framecast.draws import mix
from framecast.evaluate import lazy
from framecast.evaluate.protocols import PROTOCOLS, Case, Cut, Protocol
from framecast.evaluate.windows import windows
from framecast.experiment import VideoSpec
from tests.conftest import real_videos
from tests.data.clip_folders import counting, write
from tests.evaluate.flows import wave, write_flows

SMOKE, BOUNCE = PROTOCOLS["smoke-lbm"], PROTOCOLS["smoke-bounce"]
ANY = Protocol(
    name="any", about="", set="clips", split="test", channels=1, height=8, width=8, task="forecast", source="a test"
)
CASE = Case(known=(0,), frames=4)


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    return write_flows(tmp_path_factory.mktemp("set"))


@pytest.fixture
def folder(tmp_path):
    """Five clips a to e of 10 to 14 frames, whose frames tell their numbers."""
    for i, name in enumerate("abcde"):
        write(tmp_path / "test" / name, counting(10 + i, first=20 * i))
    return tmp_path


def seen(cut):
    """Number of the first frame of every window, and that they run on from there."""
    starts = [int(clip.frames[0, 0, 0, 0]) for clip in cut.clips]
    for start, clip in zip(starts, cut.clips):
        assert clip.frames[:, 0, 0, 0].tolist() == list(range(start, start + len(clip)))
    return starts


# ---- the policies


def test_phases_are_a_quarter_period_apart_and_flows_take_turns(flows):
    cut = windows(SMOKE, SMOKE.cases[0], SMOKE.paired, flows)
    assert len(cut) == SMOKE.paired.windows == 128 and cut.found == 32
    assert cut.units[0] != cut.units[1] and cut.units[0] == cut.units[32]
    assert cut.names[33] == "flow_0001@2"  # period 9.06 frames
    assert np.allclose(cut.clips[33].frames, wave(1, 25)[2:18])


def test_from_start_takes_one_window_of_each_clip_at_that_frame(folder):
    cut = windows(ANY, CASE, Cut(how="from_start", clips=None, start=2), folder)
    assert seen(cut) == [2, 22, 42, 62, 82]
    assert cut.names[1] == "b.npy@2" and cut.units[1] == "b.npy" and cut.found == 5


def test_every_takes_all_starts_in_turn_clip_after_clip_at_each(folder):
    assert seen(windows(ANY, CASE, Cut(how="every", clips=2, per_clip=3), folder)) == [0, 20, 1, 21, 2, 22]
    assert len(windows(ANY, CASE, Cut(how="every", clips=1, per_clip=50), folder)) == 7, "10 frames have 7 starts"


def test_whole_takes_only_clips_of_that_very_length(folder):
    cut = windows(ANY, Case(known=(0,), frames=12), Cut(how="whole", clips=None), folder)
    assert seen(cut) == [40]
    assert cut.notes == ("4 of 5 clips have another length than 12 frames, left out.",)


def test_random_starts_are_uniform_distinct_and_the_seeds(tmp_path):
    write(tmp_path / "test" / "one", counting(13))
    many = Cut(how="random", clips=None, per_clip=10)
    assert sorted(seen(windows(ANY, CASE, many, tmp_path))) == list(range(10))
    for i in range(200):
        write(tmp_path / "many" / f"{i}", counting(13))
    once = Cut(how="random", clips=None)
    starts = seen(windows(replace(ANY, split="many"), CASE, once, tmp_path))
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10 and counts.min() > 5, "first and last start too; 20 each in the mean"
    assert starts == seen(windows(replace(ANY, split="many"), CASE, once, tmp_path))
    assert starts != seen(windows(replace(ANY, split="many", seed=1), CASE, once, tmp_path))


# ---- which clips


def test_first_clips_are_those_of_the_first_names(folder):
    assert windows(ANY, CASE, Cut(how="from_start", clips=2), folder).units == ["a.npy", "b.npy"]


def test_random_choice_is_the_seeds_and_goes_by_names(folder):
    chosen = Cut(how="from_start", clips=3, choose="random")
    units = [windows(replace(ANY, seed=seed), CASE, chosen, folder).units for seed in range(20)]
    assert units[0] == windows(ANY, CASE, chosen, folder).units
    assert len({tuple(sorted(some)) for some in units}) > 4
    write(folder / "test" / "f", counting(10))
    more = windows(ANY, CASE, replace(chosen, clips=4), folder).units
    assert [unit for unit in more if unit != "f.npy"][:3] == units[0], (
        "a new clip pushes in, the others keep their order"
    )


def test_short_clips_leave_their_place_to_the_next(folder):
    cut = windows(ANY, Case(known=(0,), frames=12), Cut(how="from_start", clips=2), folder)
    assert cut.units == ["c.npy", "d.npy"]
    assert cut.notes == ("2 of 5 clips have under 12 frames, left out.",) and cut.found == 5


def test_fewer_clips_than_stated_are_taken_as_they_are(folder):
    cut = windows(ANY, CASE, Cut(how="from_start", clips=256), folder)
    assert len(cut) == cut.found == 5


def test_unreadable_clips_and_those_of_other_channels_are_noted(folder):
    (folder / "test" / "bad.npy").write_bytes(b"no array")
    write(folder / "test" / "wind", counting(10, channels=2))
    cut = windows(ANY, CASE, Cut(how="from_start", clips=None), folder)
    assert len(cut) == 5 and cut.found == 7
    assert "1 of 7 clips cannot be read, left out; the first: " in cut.notes[0] and "bad.npy" in cut.notes[0]
    assert cut.notes[1] == "1 of 7 clips left out for their channels; the first: wind.npy."


def test_clip_whose_frames_are_broken_is_left_out_once_all_are_read(folder):
    (folder / "test" / "b.npy").unlink()
    frames = torch.zeros(11, 1, 8, 8)
    frames[5] = torch.nan
    write_array(folder / "test" / "b.npz", frames, fps=None, value_range=(0.0, 1.0), generated_by={})
    cut = windows(ANY, CASE, Cut(how="from_start", clips=None, start=3), folder)
    assert len(cut) == 5
    with pytest.raises(BadClip, match=r"b\.npz"):
        _ = cut.clips[1]
    calls = []
    good = cut.readable(lambda done, total: calls.append((done, total)))
    assert [unit[0] for unit in good.units] == list("acde") and seen(good) == [3, 43, 63, 83]
    assert good.names[1] == "c.npy@3" and calls == [(i, 5) for i in range(1, 6)]
    assert "1 of 5 windows cannot be read and are left out; the first: " in good.notes[-1]


def test_nothing_to_use_is_refused_with_the_reasons(folder):
    with pytest.raises(ValueError, match=r"no clip in .+ gives a window of any: 5 of 5 clips have under 40 frames"):
        windows(ANY, Case(known=(0,), frames=40), Cut(how="random", clips=None), folder)


# ---- the folder


def test_folder_without_folders_of_splits_is_the_split(folder):
    cut = windows(ANY, CASE, Cut(how="from_start", clips=None), folder / "test")
    assert len(cut) == 5 and "all clips in it are taken to be that split" in cut.notes[0]


def test_folder_of_other_splits_is_not_taken_for_the_split(folder):
    with pytest.raises(ValueError, match="has folders test and none named val, the split that any is about"):
        windows(replace(ANY, split="val"), CASE, Cut(how="from_start", clips=None), folder)


def test_missing_folder_is_told_with_what_belongs_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist; any needs the clips of clips in .*nowhere/test"):
        windows(ANY, CASE, Cut(how="from_start", clips=None), tmp_path / "nowhere")


# ---- frames


def test_frames_are_fitted_to_the_protocol_and_it_is_told(tmp_path):
    write(tmp_path / "test" / "colour", counting(6, channels=3, height=16, width=20, first=50))
    stated = replace(ANY, resampling="a box filter")
    cut = windows(stated, CASE, Cut(how="from_start", clips=None), tmp_path)
    assert cut.clips[0].frames.shape == (4, 1, 8, 8) and seen(cut) == [50]
    assert cut.notes == (
        "1 of 1 windows resized to 8x8, short side and centre crop; 1 are 20x16.", "1 of 1 windows turned grey.",
    )  # fmt: skip
    assert cut.deviations == ("frames resized by antialiased bilinear, not by a box filter",)


def test_frames_stored_at_the_protocols_size_are_no_deviation(folder):
    assert (
        windows(replace(ANY, resampling="a box filter"), CASE, Cut(how="random", clips=None), folder).deviations == ()
    )


def test_frames_are_fitted_to_a_model_and_keep_its_units_but_not_its_rate(tmp_path):
    field = torch.linspace(-0.5, 0.5, 6).reshape(6, 1, 1, 1).expand(6, 1, 8, 8).clone()
    write_array(tmp_path / "test" / "a.npz", field, fps=30.0, value_range=(-0.5, 0.5), generated_by={})
    like = VideoSpec(channels=1, height=4, width=4, clip_frames=16, fps=10.0, value_range=(-1.0, 1.0))
    clip = windows(ANY, CASE, Cut(how="from_start", clips=None), tmp_path, like=like).clips[0]
    assert clip.value_range == (-1.0, 1.0) and clip.fps == 30.0
    assert torch.allclose(clip.frames, field[:4, :, :4, :4])


def test_sides_that_a_model_leaves_open_are_the_protocols(folder):
    like = VideoSpec(channels=0, height=0, width=0, clip_frames=16)
    cut = windows(replace(ANY, height=6, width=6), CASE, Cut(how="from_start", clips=1), folder, like=like)
    assert cut.clips[0].frames.shape == (4, 1, 6, 6)


@pytest.mark.skipif(not real_videos(), reason="no real videos at hand: set FRAMECAST_VIDEOS")
def test_real_videos_give_windows():
    videos = real_videos()[0].parent
    rules = replace(ANY, channels=3, height=32, width=32)
    cut = windows(rules, Case(known=(0,), frames=16), Cut(how="random", clips=None), videos).readable()
    assert len(cut) >= 1 and all(clip.frames.shape == (16, 3, 32, 32) for clip in cut.clips)
    assert all(clip.frames.float().std() > 1 for clip in cut.clips)


# ---- every protocol of a paper


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Three clips of 130 frames in every split, which also say that they are the long runs of a flow."""
    folder = tmp_path_factory.mktemp("plain")
    for split in ("train", "val", "test"):
        for number in range(3):
            told = {"set": "simulation128", "split": split, "seed": 0, "number": number}
            frames = torch.from_numpy(counting(130, channels=3))
            path = folder / split / f"clip_{number:04d}.npz"
            write_array(path, frames, fps=25.0, value_range=None, generated_by=told)
    return folder


@pytest.mark.parametrize("name", [name for name, rules in PROTOCOLS.items() if rules.published and rules.cases])
def test_protocol_of_a_paper_cuts_its_windows_from_a_plain_folder(plain, name):
    rules = PROTOCOLS[name]
    like = VideoSpec(channels=rules.channels, height=8, width=8, clip_frames=16)
    for how in filter(None, (rules.paired, rules.sets, rules.real)):
        for case in rules.cases:
            cut = windows(rules, case, how, plain, like=like)
            assert len(cut) == (50 if how.how == "every" else 3) and cut.found == 3
            starts = seen(cut.first(3))
            assert how.how == "random" or starts == ([how.start] * 3 if how.how == "from_start" else [0, 1, 2])
            assert cut.clips[0].frames.shape == (case.frames, rules.channels, 8, 8)
            assert len(set(cut.names)) == len(cut)


# ---- as a sequence


def test_digest_is_that_of_the_frames_as_stored(flows):
    cut = windows(SMOKE, SMOKE.cases[0], SMOKE.paired, flows).first(40)
    whole = hashlib.sha256()
    for name in cut.names:
        stem, start = name.split("@")
        clip = read_clip(flows / "test" / f"{stem}.npz", start=int(start), frames=16)
        whole.update(clip.frames.numpy().tobytes())
    assert cut.digest() == whole.hexdigest() != cut.first(39).digest()


def test_first_and_parts_are_read_on_demand_and_once(folder, monkeypatch):
    read = []
    told = lazy.read_fitted
    monkeypatch.setattr(lazy, "read_fitted", lambda path, *a, **k: read.append(path.stem) or told(path, *a, **k))
    cut = windows(ANY, CASE, Cut(how="from_start", clips=None), folder)
    assert read == []
    some = cut.first(2)
    assert len(some) == 2 and seen(some) == [0, 20] and read == ["a", "b"]
    assert [int(clip.frames[0, 0, 0, 0]) for clip in cut.clips[1:3]] == [20, 40] and read == ["a", "b", "c"]
    monkeypatch.setattr(lazy, "_MEMORY", 0)
    assert len(list(cut.clips)) == len(list(cut.clips)) == 5 and read[3:] == ["d", "e", "d", "e"]


# ---- open sets


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"flows": 31}, "holds 31 of the 32 test flows"),
        ({"set_name": "vortex16"}, "is not a test flow of vortex32"),
        ({"seed": 3}, "is not a test flow of vortex32 with seed 0"),
        ({"frames": 18}, "has 18 frames, too few for 4 windows of 16 frames"),
    ],
)
def test_a_folder_that_is_not_the_set_is_refused_with_the_command_that_makes_it(tmp_path, made, says):
    folder = write_flows(tmp_path / "set", **made)
    with pytest.raises(ValueError, match=f"{says}.*; make it: framecast data simulate vortex32 "):
        windows(SMOKE, SMOKE.cases[0], SMOKE.paired, folder)


def test_a_missing_set_and_a_broken_file_name_the_command(tmp_path, flows):
    with pytest.raises(ValueError, match="holds no clips of vortex32; make it: framecast data simulate vortex32"):
        windows(SMOKE, SMOKE.cases[0], SMOKE.paired, tmp_path)
    folder = write_flows(tmp_path / "set")
    (folder / "test" / "flow_0007.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"flow_0007\.npz: the file is empty; make it: framecast data simulate"):
        windows(SMOKE, SMOKE.cases[0], SMOKE.paired, folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    simulate("bouncing32", folder, splits=("test",), flows=3)
    return folder


def test_true_futures_go_on_from_the_last_known_frame(digits):
    rules = replace(BOUNCE, futures=6)
    cut = windows(rules, BOUNCE.cases[0], replace(BOUNCE.paired, clips=3), digits)
    assert cut.names == ["clip_0000@0", "clip_0001@0", "clip_0002@0"]
    drawn = cut.futures(2)
    assert drawn.shape == (6, 12, 1, 32, 32) and drawn.dtype == torch.uint8
    seed = mix("bouncing32", 0, "test", 2)
    expected = bouncing.futures(SETS["bouncing32"].scene, known=4, frames=12, count=6, seed=seed)
    assert torch.equal(drawn, expected)
    step = (cut.clips[2].frames[4].float() - cut.clips[2].frames[3].float()).abs().mean()
    assert (drawn[0, 0].float() - cut.clips[2].frames[3].float()).abs().mean() < 2 * step


def test_true_futures_have_the_size_that_windows_are_fitted_to(digits):
    like = VideoSpec(channels=3, height=16, width=16, clip_frames=16)
    cut = windows(replace(BOUNCE, futures=2), BOUNCE.cases[0], replace(BOUNCE.paired, clips=1), digits, like=like)
    assert cut.futures(0).shape == (2, 12, 3, 16, 16)


def test_only_predictions_of_bouncing_sets_have_true_futures(flows, digits):
    assert windows(SMOKE, SMOKE.cases[0], SMOKE.paired, flows).futures is None
    ends = Case(known=(0, 15), frames=16)
    assert windows(BOUNCE, ends, replace(BOUNCE.paired, clips=1), digits).futures is None


def test_clips_of_another_length_are_not_the_set_of_digits(tmp_path):
    simulate("bouncing32", tmp_path / "long", splits=("test",), flows=1, frames=20)
    with pytest.raises(ValueError, match=r"has 20 frames, .*16 frames"):
        windows(BOUNCE, BOUNCE.cases[0], replace(BOUNCE.paired, clips=1), tmp_path / "long")
