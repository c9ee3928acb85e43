"""What the check of a folder reports."""

import json
import shutil

import numpy as np
import pytest
import torch

from framecast.data.check import check_folder, pick
from framecast.data.clips import open_streams
from framecast.experiment import DataConfig
from tests.conftest import real_videos
from tests.data.clip_folders import counting, write


@pytest.fixture
def root(tmp_path):
    """Six sound files in which a square moves."""
    for n in range(6):
        frames = np.full((20, 1, 8, 8), 10 * n, np.uint8)
        for i in range(20):
            frames[i, :, :, i % 8] = 255
        write(tmp_path / "clips" / f"{n}", frames)
    return tmp_path / "clips"


def check(root, **changes):
    changes = {"channels": 1, "size": 8, **changes}
    return check_folder(DataConfig(dir=str(root), **changes), clip_frames=4)


def test_sound_folder_has_nothing_to_tell(root):
    report = check(root, validation=0.0)
    assert report.sound and (report.files, report.frames, report.train) == (6, 120, (6, 6 * 17))
    assert not (report.broken or report.refused or report.suspicious or report.still or report.duplicates)
    assert report.sizes == {"8 × 8": 6} and report.rates == {"none": 6}


def test_broken_files_are_named_also_when_only_their_end_is(root):
    (root / "empty.npy").touch()
    whole = (root / "1.npy").read_bytes()
    (root / "1.npy").write_bytes(whole[:-100])
    report = check(root)
    assert [n.path for n in report.broken] == ["1.npy", "empty.npy"] and not report.sound
    assert all(n.path not in n.reason for n in report.broken)


def test_short_files_and_other_channels_are_refused_but_no_failure(root):
    write(root / "short", counting(3))
    write(root / "four", counting(9, channels=4))
    report = check(root)
    assert {n.path for n in report.refused} == {"short.npy", "four.npy"} and report.sound


def test_equal_content_is_found_under_any_name(root):
    (root / "sub").mkdir()
    shutil.copy(root / "3.npy", root / "sub" / "copy.npy")
    assert check(root).duplicates == (("3.npy", "sub/copy.npy"),)


def test_clip_without_motion_is_named(root):
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (1, 1, 8, 8))
    still = np.clip(picture + generator.integers(-2, 3, (20, 1, 8, 8)), 0, 255)  # noise of a coder is no motion
    write(root / "still", still.astype(np.uint8))
    assert check(root).still == ("still.npy",)


def test_values_in_other_units_are_suspicious(tmp_path):
    rng = np.random.default_rng(0)
    for name, high in (("fits", 1.0), ("bytes", 255.0), ("tiny", 1e-3)):
        np.save(tmp_path / f"{name}.npy", rng.uniform(0, high, (6, 1, 8, 8)).astype(np.float32))
    write(tmp_path / "mask", rng.integers(0, 2, (6, 1, 8, 8)).astype(np.uint8))
    reasons = {n.path: n.reason for n in check(tmp_path, value_range=(0.0, 1.0)).suspicious}
    assert set(reasons) == {"bytes.npy", "mask.npy", "tiny.npy"}
    assert "outside the declared range 0 to 1" in reasons["bytes.npy"]
    assert "values span 0 to 1 of a range 0 to 255" in reasons["mask.npy"]


@pytest.mark.parametrize("frame", [0, -1])
def test_first_and_last_frame_are_looked_at(tmp_path, frame):
    values = np.random.default_rng(0).uniform(0, 1, (100, 1, 8, 8)).astype(np.float32)
    values[frame] = 9
    np.save(tmp_path / "a.npy", values)
    assert "values span" in check(tmp_path, value_range=(0.0, 1.0)).suspicious[0].reason


def test_more_probes_find_damage_between(tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (100, 1, 8, 8)).astype(np.float32)
    values[51] = np.nan
    np.save(tmp_path / "a.npy", values)
    config = DataConfig(dir=str(tmp_path), channels=1, size=8, value_range=(0.0, 1.0))
    found = [check_folder(config, clip_frames=4, probes=probes).broken for probes in (8, 100)]
    assert found[0] == () and "frame 51" in found[1][0].reason


def test_unlike_rates_are_reported_as_training_would_refuse_them(tmp_path):
    for name, fps in (("a", 24.0), ("b", 60.0)):
        write(tmp_path / name, counting(9), fps=fps)
    report = check(tmp_path)
    assert not report.sound and report.refusal.startswith("fps differ (24: 1 file, 60: 1)")
    assert report.rates == {"24": 1, "60": 1} and sum(report.train) > 0
    assert check(tmp_path, fps=12.0).sound


def test_folder_without_usable_clip_is_reported(tmp_path):
    write(tmp_path / "a", counting(2))
    report = check(tmp_path)
    assert report.train == (0, 0) and "none can be used" in report.refusal


def test_split_counts_are_those_of_the_streams(root):
    report = check(root, validation=0.5)
    config = DataConfig(dir=str(root), channels=1, size=8, validation=0.5)
    streams = open_streams(config, clip_frames=4, min_frames=4, seed=0)
    assert [report.train, report.validation] == [(len(stream.files), stream.windows) for stream in streams]


def test_report_goes_to_json_and_to_people(root):
    for n in range(30):
        (root / f"empty{n:02d}.npy").touch()
    report = check(root)
    assert json.loads(json.dumps(report.plain()))["sound"] is False
    lines = report.lines()
    assert "30 cannot be read:" in lines and "  … and 20 more" in lines


def test_picked_clips_are_those_training_sees(root):
    config = DataConfig(dir=str(root), channels=1, size=8, flip=True)
    stream, _ = open_streams(config, clip_frames=4, min_frames=4, seed=5)
    shown = pick(stream, 7)
    assert torch.equal(torch.stack([s.video for s in shown]), stream.batch(range(7))[0])
    assert [s.window for s in shown] == [stream.window(p) for p in range(7)]


def test_users_folder_is_left_as_it_was(root):
    before = sorted(root.rglob("*"))
    check(root)
    assert sorted(root.rglob("*")) == before


@pytest.mark.skipif(not real_videos(), reason="no real clips at hand (FRAMECAST_VIDEOS)")
@pytest.mark.parametrize("which", range(len(real_videos())))
def test_real_videos_are_sound_and_a_torn_one_is_not(tmp_path, which):
    for path in real_videos():
        shutil.copy(path, tmp_path / path.name)
    torn = real_videos()[which]
    (tmp_path / f"torn{torn.suffix}").write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    report = check(tmp_path, fps=10.0, channels=3)
    told = {n.path for n in (*report.broken, *report.suspicious)}  # an mp4 opens no more, an AVI lacks frames
    assert told == {f"torn{torn.suffix}"} and report.still == ()
