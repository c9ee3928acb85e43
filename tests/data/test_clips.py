"""The stream of training clips: windows, split, fitting, determinism."""

import logging
import multiprocessing
import os
import pickle
import signal
import time
from itertools import islice

import numpy as np
import pytest
import torch

from framecast.data import fitted
from framecast.data.clip_file import BadClip
from framecast.data.clips import loader, open_streams
from framecast.data.fitted import cut, fit
from framecast.data.folder import Listed
from framecast.data.windows import held_out, plan
from framecast.experiment import DataConfig, from_plain, to_plain
from tests.data.clip_folders import counting, numbers, write


@pytest.fixture
def root(tmp_path):
    """Five files of 20 different frames each: file n holds the values 40 n to 40 n + 19."""
    for n in range(5):
        write(tmp_path / "clips" / f"{n}", counting(20, first=40 * n))
    return tmp_path / "clips"


def settings(root, **changes):
    return from_plain(
        DataConfig, {**to_plain(DataConfig(dir=str(root), channels=1, size=8, validation=0.0)), **changes}
    )


def stream(root, *, clip_frames=4, min_frames=None, split="train", seed=0, **changes):
    streams = open_streams(
        settings(root, **changes), clip_frames=clip_frames, min_frames=min_frames or clip_frames, seed=seed
    )
    return streams[split == "validation"]


def listed(path="a.npy", *, frames=20, fps=None, channels=1, side=8, value_range=None, problem=None, stamps=None):
    return Listed(path, frames, fps, channels, side, side, value_range, problem, 1, 1, stamps)


def planned(*files, clip_frames=4, min_frames=None, **changes):
    return plan(files, settings("x", **changes), clip_frames=clip_frames, min_frames=min_frames or clip_frames)


# --- the stream is a pure function of seed and position -------------------------------------------------------------


def test_clip_is_the_same_whenever_and_wherever_it_is_asked_for(root):
    changes = {"flip": True, "crop": "random", "size": 5}
    first, second = stream(root, **changes), stream(root, **changes)
    forward = [first.clip(p)[0] for p in range(40)]
    backward = [second.clip(p)[0] for p in reversed(range(40))][::-1]
    assert torch.equal(torch.stack(forward), torch.stack(backward))
    assert torch.equal(first.batch([31, 7, 7])[0], torch.stack([forward[31], forward[7], forward[7]]))


@pytest.mark.parametrize("workers", [1, 2])
def test_reading_processes_change_nothing_and_keep_order(root, workers):
    batches = [[9, 3, 200], [5], [1, 2], [77, 0], [3, 4, 5]]
    source = stream(root, crop="random", size=5)
    alone = list(loader(source, batches, workers=0))
    shared = list(loader(source, batches, workers=workers))
    assert len(alone) == len(shared) == 5
    for (a, valid_a), (b, valid_b) in zip(alone, shared):
        assert torch.equal(a, b) and torch.equal(valid_a, valid_b)


def test_loader_takes_endless_batches_and_leaves_the_global_generator_alone(root):
    endless = ([i] for i in iter(int, 1))
    before = torch.random.get_rng_state()
    assert len(list(islice(loader(stream(root), endless, workers=1), 3))) == 3
    assert torch.equal(before, torch.random.get_rng_state())


def test_stream_travels_to_a_new_process_without_its_memory(root):
    source = stream(root)
    source.batch(range(30))
    sent = pickle.dumps(source)
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent).clip(12)[0], source.clip(12)[0])


def test_every_epoch_visits_every_window_once_in_its_own_order(root):
    source = stream(root)
    epochs = [[source.window(e * source.windows + p) for p in range(source.windows)] for e in range(3)]
    assert source.windows == 5 * 17
    assert all(len(set(epoch)) == source.windows for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_seeds_give_different_orders(root):
    orders = [[stream(root, seed=seed).window(p) for p in range(20)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_clip_holds_the_frames_its_window_names(root):
    source = stream(root, stride=3)
    for position in range(30):
        window = source.window(position)
        n = int(window.path[0])
        assert numbers(source.clip(position)[0]) == [40 * n + f for f in window.frames]


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "stride", "spacing", "starts"),
    [
        (20, 1, 1, range(17)),
        (20, 1, 5, (0, 5, 10, 15, 16)),  # the last possible start is used
        (20, 1, 8, (0, 8, 16)),
        (20, 3, 1, range(11)),
        (20, 6, 50, (0, 1)),
        (4, 1, 3, (0,)),
    ],
)
def test_windows_start_every_spacing_and_at_the_last_place(tmp_path, frames, stride, spacing, starts):
    write(tmp_path / "clips" / "a", counting(frames))
    source = stream(tmp_path / "clips", stride=stride, spacing=spacing)
    seen = sorted(source.window(p).frames for p in range(source.windows))
    assert seen == [tuple(s + i * stride for i in range(4)) for s in starts]


def test_rate_is_changed_by_time_stamps(tmp_path):
    write(tmp_path / "a", counting(31), fps=30.0)
    write(tmp_path / "b", counting(16), fps=15.0)
    source = stream(tmp_path, fps=5.0, spacing=50)
    assert sorted((source.window(p).path, source.window(p).frames) for p in range(source.windows)) == [
        ("a.npz", (0, 6, 12, 18)),
        ("a.npz", (12, 18, 24, 30)),
        ("b.npz", (0, 3, 6, 9)),
        ("b.npz", (6, 9, 12, 15)),
    ]
    assert source.video.fps == 5.0


def test_uneven_time_stamps_are_obeyed():
    stamps = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    part = planned(listed(frames=8, fps=14.0, stamps=stamps), fps=10.0).train[0]
    assert list(part.frames) == [0, 1, 3, 5, 6, 7]


def test_clip_rate_is_the_files_rate_over_stride():
    assert planned(listed(fps=30.0), listed("b.npy", fps=30000 / 1001), stride=2).video.fps == 15.0
    assert planned(listed(fps=None)).video.fps is None


def test_files_of_nearly_the_wanted_rate_are_taken_as_they_are():
    part = planned(listed(frames=2000, fps=30000 / 1001), fps=30.0).train[0]
    assert part.frames == range(2000)


def test_unlike_rates_are_refused_with_counts():
    files = [listed(f"{i}", fps=24.0 if i < 3 else 60.0) for i in range(4)]
    with pytest.raises(ValueError) as error:
        planned(*files)
    assert str(error.value) == (
        "fps differ (24: 3 files, 60: 1). Set data.fps to resample by time, or data.allow_mixed_fps=true."
    )
    assert planned(*files, allow_mixed_fps=True).video.fps is None
    assert planned(*files, fps=12.0).video.fps == 12.0


def test_short_clip_is_padded_with_its_last_frame(tmp_path):
    write(tmp_path / "a", counting(5))
    source = stream(tmp_path, clip_frames=6, min_frames=3, stride=2)
    video, valid = source.clip(0)
    assert source.windows == 1
    assert numbers(video) == [0, 2, 4, 4, 4, 4]
    assert valid.tolist() == [True, True, True, False, False, False]
    assert any("padded" in note for note in source.notes)


def test_files_that_give_nothing_are_named_with_reasons(root):
    write(root / "short", counting(9))
    write(root / "four", counting(20, channels=4))
    (root / "empty.npy").touch()
    source = stream(root, stride=3, channels=1)
    reasons = {r.path: r.reason for r in source.rejected}
    assert reasons["short.npy"] == "has 9 frames; 4 frames × stride 3 need 10."
    assert reasons["four.npy"] == "has 4 channels, data.channels is 1 (set it to 4)."
    assert "empty" in reasons["empty.npy"]
    assert len(source.files) == 5
    assert any("1 of 8 files have under 10 frames" in note for note in source.notes)


def test_no_usable_clip_is_an_error_with_the_first_reasons(tmp_path):
    write(tmp_path / "short", counting(3))
    with pytest.raises(ValueError, match=r"1 clip and none can be used. short.npy: has 3 frames"):
        stream(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"size": 0}, {"stride": 0}, {"spacing": 0}, {"fps": 0.0}, {"validation": 1.0}, {"channels": 0}]
)
def test_settings_out_of_range_are_refused_by_name(changes):
    with pytest.raises(ValueError, match=f"data.{next(iter(changes))} is"):
        planned(listed(), **changes)


# --- split ------------------------------------------------------------------------------------------------------------


def test_split_shares_no_file_and_holds_out_about_the_share():
    files = [listed(f"{i:04d}.npy") for i in range(2000)]
    cut_up = planned(*files, validation=0.1)
    train, held = ({part.listed.path for part in parts} for parts in (cut_up.train, cut_up.validation))
    assert not train & held and len(train | held) == 2000
    assert 160 < len(held) < 240 and not cut_up.borrowed


def test_added_files_move_no_other_file():
    few = planned(*(listed(f"{i}.npy") for i in range(50)), validation=0.3)
    many = planned(*(listed(f"{i}.npy") for i in range(90)), validation=0.3)
    assert {p.listed.path for p in few.validation} <= {p.listed.path for p in many.validation}
    assert {p.listed.path for p in few.train} <= {p.listed.path for p in many.train}


def test_one_file_always_trains():
    unlucky = [name for name in (f"{i}.npy" for i in range(60)) if held_out(name, 0.5)][:3]
    cut_up = planned(*(listed(name) for name in unlucky), validation=0.5)
    assert (len(cut_up.train), len(cut_up.validation)) == (1, 2)


def test_validation_without_held_out_files_borrows_and_says_so():
    lucky = [name for name in (f"{i}.npy" for i in range(60)) if not held_out(name, 0.1)][:3]
    cut_up = planned(*(listed(name) for name in lucky), validation=0.1)
    assert cut_up.borrowed and cut_up.validation == cut_up.train
    assert any("use the training clips" in note for note in cut_up.notes)


def test_end_of_a_single_file_is_held_out(tmp_path):
    write(tmp_path / "a", counting(100))
    train, held = (stream(tmp_path, split=s, validation=0.2) for s in ("train", "validation"))
    last = max(max(train.window(p).frames) for p in range(train.windows))
    assert last == 79
    assert min(min(held.window(p).frames) for p in range(held.windows)) == 80
    assert any("last 20 of 100 frames" in note for note in train.notes)


def test_ends_of_all_files_are_held_out_when_asked_for(root):
    cut_up = plan(
        [listed("a.npy", frames=40), listed("b.npy", frames=20), listed("short.npy", frames=7)],
        settings(root, validation=0.25, hold_out="ends"),
        clip_frames=4,
        min_frames=4,
    )
    assert [(part.listed.path, part.frames[-1]) for part in cut_up.train] == [
        ("a.npy", 29),
        ("b.npy", 14),
        ("short.npy", 6),
    ]
    assert [(part.listed.path, part.frames[0]) for part in cut_up.validation] == [("a.npy", 30), ("b.npy", 15)]
    assert "the ends of 2 of 3 files are held out for validation." in cut_up.notes


def test_single_short_file_is_borrowed(tmp_path):
    write(tmp_path / "a", counting(7))
    held = stream(tmp_path, split="validation", validation=0.2)
    assert held.windows == 4 and held.borrowed


def test_streams_that_share_no_frame_are_not_borrowed(tmp_path):
    write(tmp_path / "a", counting(100))
    assert not any(stream(tmp_path, split=s, validation=0.2).borrowed for s in ("train", "validation"))


def test_validation_is_neither_mirrored_nor_cropped_by_chance(tmp_path):
    write(tmp_path / "wide", np.broadcast_to(np.arange(24, dtype=np.uint8), (20, 1, 8, 24)))
    held = stream(tmp_path, split="validation", crop="random", flip=True)
    clips = [*held.first(5), *held.batch(range(20))[0]]
    assert {tuple(numbers(clip.permute(3, 1, 2, 0))) for clip in clips} == {tuple(range(8, 16))}


def test_preview_clips_are_fixed_and_spread_over_the_files(root):
    source = stream(root)
    video = source.first(5)
    assert torch.equal(video, stream(root, seed=9).first(5))
    assert [numbers(clip)[0] // 40 for clip in video] == [0, 1, 2, 3, 4]
    assert len(source.first(1000)) == source.windows


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_short_side_is_resized_and_the_centre_cut():
    ramp = torch.arange(32, dtype=torch.float32).expand(1, 1, 16, 32)
    got = fit(ramp, channels=1, height=8, width=8)
    assert torch.allclose(got[0, 0, 0], torch.arange(4, 12) * 2 + 0.5)


def test_fine_patterns_are_averaged_not_picked():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(12).expand(1, 1, 24, 24)
    inner = fit(stripes, channels=1, height=8, width=8)[..., 1:-1].int()
    assert inner.min() > 100 and inner.max() < 155


def test_cut_places_the_window_from_edge_to_edge():
    ramp = torch.arange(7.0).expand(1, 1, 3, 7)
    assert [int(cut(ramp, height=3, width=4, crop=(0.5, at))[0, 0, 0, 0]) for at in (0.0, 0.5, 1.0)] == [0, 1, 3]


def test_colour_turns_to_luma_and_grey_is_repeated():
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert fit(colour, channels=1, height=8, width=8).unique().tolist() == [round(0.299 * 200 + 58.7 + 5.7)]
    assert torch.equal(fit(colour[:, :1], channels=3, height=8, width=8), colour[:, :1].expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="4 channels and 3 are wanted"):
        fit(torch.zeros(1, 4, 8, 8), channels=3, height=8, width=8)


def test_fitting_does_not_depend_on_how_many_frames_come_together():
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (7, 3, 37, 53), dtype=torch.uint8)
    together = fit(frames, channels=1, height=16, width=20)
    assert torch.equal(together, torch.cat([fit(f[None], channels=1, height=16, width=20) for f in frames]))


def test_fields_of_other_channels_are_not_taken_for_pictures(tmp_path):
    assert planned(listed(channels=3), channels=1).train
    with pytest.raises(ValueError, match="has 3 channels"):
        planned(listed(channels=3, value_range=(0.0, 1.0)), channels=1)


def test_float_fields_are_mapped_by_their_range(tmp_path):
    np.save(tmp_path / "a.npy", np.linspace(-2, 2, 6, dtype=np.float32).reshape(6, 1, 1, 1).repeat(8, 2).repeat(8, 3))
    source = stream(tmp_path, clip_frames=6, value_range=[-2.0, 2.0])
    assert torch.allclose(source.clip(0)[0][:, 0, 0, 0], torch.linspace(-1, 1, 6))
    assert source.video.value_range == (-2.0, 2.0)


def test_random_crops_and_mirrors_vary_with_position(tmp_path):
    write(tmp_path / "a", np.broadcast_to(np.arange(24, dtype=np.uint8), (4, 1, 8, 24)))
    source = stream(tmp_path, crop="random", flip=True)
    rows = [numbers(source.clip(p)[0].permute(3, 1, 2, 0)) for p in range(200)]
    mirrored = sum(row[0] > row[-1] for row in rows)
    assert 60 < mirrored < 140
    assert {min(row) for row in rows} == set(range(17))


# --- few clips, broken files, memory ---------------------------------------------------------------------------------


def test_fewer_clips_than_the_batch_work_and_are_told(tmp_path):
    write(tmp_path / "a", counting(15))
    source = stream(tmp_path)
    assert source.few_clips(64, stage="diffusion") == (
        "12 clips but global batch 64: every clip appears 5 times or more in a batch; "
        "lower stages.diffusion.batch, or data.spacing/stride to get more."
    )
    assert "12 clips but global batch 23: some clips appear twice in a batch" in source.few_clips(23, stage="diffusion")
    assert source.few_clips(12, stage="diffusion") is None
    assert source.batch(range(64))[0].shape == (64, 4, 1, 8, 8)


def breaks(monkeypatch, names):
    """From now on reading these files fails."""
    real = fitted.open_clip

    def broken(path, **options):
        if path.name in names:
            raise BadClip(f"{path}: decoder stopped at frame 13 (invalid data).")
        return real(path, **options)

    monkeypatch.setattr(fitted, "open_clip", broken)


def test_file_that_breaks_in_training_is_replaced_and_named_once(root, monkeypatch, caplog):
    sound = [stream(root).clip(p)[0] for p in range(85)]
    breaks(monkeypatch, {"2.npy"})
    source = stream(root)
    with caplog.at_level(logging.WARNING):
        got = [source.clip(p)[0] for p in range(85)]
    assert [r.message for r in caplog.records] == [
        "2.npy: decoder stopped at frame 13 (invalid data). Other clips are used in its place."
    ]
    for position, (before, after) in enumerate(zip(sound, got)):
        if source.window(position).path == "2.npy":
            assert numbers(after) == [40 + v for v in numbers(before)]  # the same window of the next file
        else:
            assert torch.equal(before, after)
    assert torch.equal(stream(root).batch(reversed(range(85)))[0].flip(0), torch.stack(got))


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_sound_windows_of_a_half_broken_file_are_still_used(root, monkeypatch, cache):
    class HalfBroken:
        def read(self, indices):
            if max(indices) > 12:
                raise BadClip("2.npy: decoder stopped at frame 13 (invalid data).")
            return torch.tensor([80 + i for i in indices], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

    real = fitted.open_clip
    monkeypatch.setattr(fitted, "open_clip", lambda path, **o: HalfBroken() if path.stem == "2" else real(path, **o))
    source = stream(root, cache=cache)
    for position in range(85):
        window = source.window(position)
        if window.path == "2.npy":
            n = 3 if max(window.frames) > 12 else 2
            assert numbers(source.clip(position)[0]) == [40 * n + f for f in window.frames]


def test_too_many_broken_files_end_training_with_a_sentence(root, monkeypatch):
    source = stream(root)
    breaks(monkeypatch, {f"{n}.npy" for n in range(4)})
    with pytest.raises(ValueError, match=r"4 of 5 files .* broke while being read.*framecast data check"):
        source.batch(range(85))


def test_reading_processes_break_with_the_same_sentence(root, monkeypatch):
    source = stream(root)
    breaks(monkeypatch, {f"{n}.npy" for n in range(5)})
    with pytest.raises(ValueError, match=r"^4 of 5 files .* broke while being read.*framecast data check \S+ .*\.$"):
        list(loader(source, [range(85)], workers=1))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="this system ends processes without asking them")
def test_reading_processes_go_on_when_everything_is_told_to_stop(root):
    source = stream(root)
    endless = ([i] for i in iter(int, 1))
    batches = loader(source, endless, workers=1)
    next(batches)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    assert len(list(islice(batches, 9))) == 9
    began = time.monotonic()
    batches.close()
    assert not multiprocessing.active_children()
    assert time.monotonic() - began < 10


def test_values_outside_the_declared_range_are_not_trained_on(tmp_path):
    np.save(tmp_path / "a.npy", np.full((6, 1, 8, 8), 200, np.float32))
    source = stream(tmp_path, value_range=[0.0, 1.0])
    with pytest.raises(ValueError, match="values span 200 to 200, outside the declared range 0 to 1"):
        source.clip(0)


def reads(monkeypatch):
    """Counts of frames read, per call."""
    calls = []
    real = fitted.FittedFrames._fetch

    def counted(self, file, source):
        calls.append(len(source))
        return real(self, file, source)

    monkeypatch.setattr(fitted.FittedFrames, "_fetch", counted)
    return calls


def test_small_files_are_decoded_once(root, monkeypatch):
    calls = reads(monkeypatch)
    stream(root).batch(range(200))
    assert calls == [20] * 5


def test_without_memory_only_the_window_is_read(root, monkeypatch):
    calls = reads(monkeypatch)
    stream(root, cache="none").batch(range(30))
    assert calls == [4] * 30


@pytest.mark.parametrize("memory", [0, 20 * 64 * 2 + 1])
def test_memory_is_bounded_and_changes_no_value(root, monkeypatch, memory):
    expected = stream(root, size=6).batch(range(60))[0]
    monkeypatch.setattr(fitted, "_MEMORY", memory)
    calls = reads(monkeypatch)
    source = stream(root, size=6)
    assert torch.equal(source.batch(range(60))[0], expected)
    assert source._reader._bytes <= memory
    assert calls.count(20) == memory // (20 * 36)


def test_users_folder_is_left_as_it_was(root):
    before = sorted(root.rglob("*"))
    stream(root).batch(range(20))
    assert sorted(root.rglob("*")) == before
