"""The one door: arrays of every layout, which names look like clips, frames by time stamp."""

import io
import json
import types

import numpy as np
import pytest
import torch

from framecast.data import clip_file
from framecast.data.array_file import write_array
from framecast.data.clip_file import BadClip, frame_indices, looks_like_clip, nearest_frames, open_clip, read_clip
from framecast.data.image_file import write_animation, write_image
from framecast.data.video_file import write_video
from tests.data import numbered

RNG = np.random.default_rng(0)


def stored(path, array, **about):
    if path.suffix == ".npz":
        np.savez(path, frames=array, **about)
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_arrays_of_any_number_of_channels_are_read(tmp_path, suffix, channels):
    array = RNG.integers(0, 256, (9, channels, 6, 7), np.uint8)
    clip = open_clip(stored(tmp_path / f"a{suffix}", array))
    assert (clip.frames, clip.channels, clip.height, clip.width) == (9, channels, 6, 7)
    assert clip.value_range is None and clip.fps is None and clip.times is None
    assert np.array_equal(clip.read([8, 0, 8]).numpy(), array[[8, 0, 8]])
    assert clip.read([]).shape == (0, channels, 6, 7)


@pytest.mark.parametrize(
    ("shape", "axes", "told"),
    [
        ((5, 8, 9), None, "THW"),
        ((5, 8, 9, 3), None, "THWC"),
        ((5, 8, 9, 1), None, "THWC"),
        ((5, 1, 8, 9), None, "TCHW"),
        ((5, 12, 8, 9), None, "TCHW"),
        ((5, 1, 4, 4), None, "TCHW"),
        ((5, 3, 4, 4), None, "TCHW"),
        ((3, 5, 8, 9), "CTHW", "CTHW"),
        ((8, 9, 5), "hwt", "HWT"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_layouts_are_told_or_said(tmp_path, suffix, shape, axes, told):
    array = RNG.integers(0, 256, shape, np.uint8)
    clip = open_clip(stored(tmp_path / f"a{suffix}", array), axes=axes)
    expected = np.einsum(f"{told}->T{'C' if 'C' in told else ''}HW".lower(), array)
    expected = expected if expected.ndim == 4 else expected[:, None]
    assert np.array_equal(clip.read([4, 1]).numpy(), expected[[4, 1]])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_says_its_own_range_and_rate(tmp_path, write, order):
    array = np.asarray(RNG.uniform(-2, 2, (6, 2, 4, 5)), order=order)
    write(tmp_path / "a.npz", vorticity=array, fps=12.5, value_range=[-2, 2])
    clip = read_clip(tmp_path / "a.npz", start=1, frames=3)
    assert (clip.fps, clip.value_range, clip.frames.dtype) == (12.5, (-2.0, 2.0), torch.float32)
    assert np.array_equal(clip.frames.numpy(), array[1:4].astype(np.float32))
    other = open_clip(tmp_path / "a.npz", value_range=(-5, 5))
    assert other.value_range == (-5.0, 5.0)


def test_whole_numbers_with_a_range_become_floats(tmp_path):
    array = RNG.integers(0, 4096, (4, 1, 5, 6), np.uint16)
    clip = read_clip(stored(tmp_path / "a.npy", array), value_range=(0, 4095))
    assert np.array_equal(clip.frames.numpy(), array.astype(np.float32))


def test_true_and_false_are_black_and_white(tmp_path):
    array = RNG.integers(0, 2, (4, 8, 9)).astype(bool)
    assert np.array_equal(read_clip(stored(tmp_path / "a.npy", array)).frames[:, 0].numpy(), array * np.uint8(255))


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (
            "a.npy",
            np.zeros((4, 1, 8, 8)),
            r"float64 values of unknown range: pass it, for example value_range=\(0, 1\)",
        ),
        ("a.npy", np.zeros((9, 4, 8, 3), np.uint8), "can be read in two ways: frames are expected as"),
        ("a.npy", np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\): frames are expected as"),
        ("a.npy", np.zeros((2, 4, 1, 8, 8), np.uint8), "a set of clips: store one of them"),
        ("a.npy", np.zeros((0, 1, 8, 8), np.uint8), "the array is empty"),
        ("a.npy", np.array([{}] * 3, object), "not a readable array"),
        ("a.npy", np.zeros((2, 1, 8, 8), np.complex64), "not numbers of a picture"),
        ("a.npz", np.zeros((8,), np.uint8), r"needs one array of frames .+ it holds: frames \(8,\)"),
    ],
)
def test_unusable_arrays_get_one_clear_sentence(tmp_path, name, array, says):
    with pytest.raises(BadClip, match=says) as caught:
        open_clip(stored(tmp_path / name, array))
    assert str(caught.value).startswith(str(tmp_path / name)) and str(caught.value).endswith(".")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("content", [b"", b"some text", b"\x93NUMPY"])
def test_files_that_are_no_arrays_get_one_clear_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadClip, match=r"the file is empty\.|not a readable array \("):
        open_clip(tmp_path / name)


def test_an_array_cut_short_gets_one_clear_sentence(tmp_path):
    path = stored(tmp_path / "a.npy", np.zeros((50, 1, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadClip, match=r"a\.npy: .+\.$"):
        open_clip(path).read([49])


def test_values_that_are_not_numbers_are_named_by_frame(tmp_path):
    array = np.zeros((6, 1, 4, 4), np.float32)
    array[4, 0, 2, 2] = np.nan
    clip = open_clip(stored(tmp_path / "a.npy", array), value_range=(0, 1))
    clip.read([0, 3])
    with pytest.raises(BadClip, match="frame 4 holds values that are not numbers"):
        clip.read([5, 4])


def test_an_array_comes_in_on_standard_input(monkeypatch):
    array, buffer = RNG.integers(0, 256, (4, 3, 6, 7), np.uint8), io.BytesIO()
    np.save(buffer, array)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(buffer.getvalue())))
    assert np.array_equal(open_clip("-").read([3, 1]).numpy(), array[[3, 1]])


def test_written_arrays_are_lossless_and_say_what_made_them(tmp_path):
    frames = torch.rand(6, 2, 4, 5) * 2 - 1
    path = write_array(tmp_path / "a.npz", frames, fps=8, value_range=(-1, 1), generated_by={"model": "toy", "seed": 3})
    clip = read_clip(path)
    assert torch.equal(clip.frames, frames)
    assert (clip.fps, clip.value_range) == (8.0, (-1.0, 1.0))
    with np.load(path) as archive:
        assert json.loads(str(archive["generated_by"])) == {"model": "toy", "seed": 3}
    with pytest.raises(FileExistsError):
        write_array(path, frames, fps=8, value_range=(-1, 1), generated_by={})
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_every_kind_of_clip_comes_through_one_door(tmp_path):
    frames = torch.from_numpy(np.stack([numbered.picture(i) for i in range(12)])).permute(0, 3, 1, 2)
    (tmp_path / "folder").mkdir()
    for i, frame in enumerate(frames):
        write_image(tmp_path / "folder" / f"{i}.png", frame, comment="c")
    write_video(tmp_path / "a.mp4", frames, 10, comment="c")
    write_animation(tmp_path / "a.gif", frames, 10, comment="c")
    write_animation(tmp_path / "a.webp", frames, 10, comment="c")
    np.save(tmp_path / "a.npy", frames.numpy())
    for name in ("folder", "a.mp4", "a.gif", "a.webp", "a.npy"):
        path = tmp_path / name
        assert looks_like_clip(path), name
        clip = read_clip(path, stride=2, start=1, frames=3)
        assert numbered.numbers(clip.frames) == [2, 4, 6], name
        assert clip.fps is None if name in ("folder", "a.npy") else clip.fps == pytest.approx(5), name


def test_other_names_do_not_look_like_clips(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("a.txt", "a.wav", "a.png", "mp4"):
        (tmp_path / name).write_bytes(b"x")
        assert not looks_like_clip(tmp_path / name), name
    assert not looks_like_clip(tmp_path / "empty")
    assert not looks_like_clip(tmp_path)  # one image whose name has no number
    assert not looks_like_clip(tmp_path / "gone.mp4")


@pytest.mark.parametrize(
    ("rate", "wanted", "count", "expected"),
    [
        (25, 25, 6, [0, 1, 2, 3, 4, 5]),
        (30, 10, 9, [0, 3, 6]),
        (25, 10, 11, [0, 2, 5, 7, 10]),  # 2.5 and 7.5 are as near to both: the earlier
        (10, 20, 3, [0, 0, 1, 1, 2]),
        (30000 / 1001, 30, 6, [0, 1, 2, 3, 4, 5]),
        (25, 50, 1, [0]),
        (30, 30, 2, [0, 1]),
        (24, 48, 7, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]),
    ],
)
def test_resampling_takes_the_nearest_time(rate, wanted, count, expected):
    exact = np.arange(count) / rate
    assert nearest_frames(exact, wanted).tolist() == expected
    # containers round to milliseconds: the choice stays
    assert nearest_frames(exact.round(3), wanted).tolist() == expected


def test_resampling_follows_true_times_where_the_rate_varies():
    times = np.array([0.0, 0.1, 0.2, 0.7, 0.8, 0.9, 1.0])
    assert nearest_frames(times, 10.0).tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6]


@pytest.mark.parametrize("wanted", [3.0, 7.5, 12.0, 24.0, 60.0])
def test_no_frame_is_nearer_than_the_chosen_one(wanted):
    times = np.concatenate([[0], np.cumsum(RNG.uniform(0.01, 0.12, 80))])
    chosen = nearest_frames(times, wanted)
    moments = np.arange(len(chosen)) / wanted
    best = np.abs(times[None] - moments[:, None]).min(1)
    period = times[-1] / 80
    assert (np.abs(times[chosen] - moments) <= best + 2 * 0.02 * period + 1e-9).all()
    assert times[-1] - moments[-1] < 1 / wanted  # it lasts to the end


def test_stride_counts_resampled_frames(tmp_path):
    np.savez(tmp_path / "a.npz", frames=np.zeros((30, 1, 4, 4), np.uint8), fps=30)
    clip = open_clip(tmp_path / "a.npz")
    assert frame_indices(clip, fps=10, stride=2).tolist() == [0, 6, 12, 18, 24]
    assert frame_indices(clip, fps=None, stride=7).tolist() == [0, 7, 14, 21, 28]
    assert read_clip(tmp_path / "a.npz", fps=10, stride=2).fps == 5.0


def test_what_cannot_be_asked_for_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 1, 4, 4), np.uint8))
    clip = open_clip(tmp_path / "a.npy")
    with pytest.raises(BadClip, match="frame rate is not known, so it cannot be resampled to 10; leave fps out"):
        frame_indices(clip, fps=10, stride=1)
    with pytest.raises(ValueError, match="stride is 0"):
        frame_indices(clip, fps=None, stride=0)
    with pytest.raises(BadClip, match=r"frames 6 to 9 asked for, the clip has 8 frames\."):
        read_clip(tmp_path / "a.npy", start=6, frames=4)
    with pytest.raises(BadClip, match="frame 8 asked for, the file has frames 0 to 7"):
        clip.read([8])


def test_bad_clip_is_the_same_error_everywhere():
    assert clip_file.BadClip is BadClip and issubclass(BadClip, ValueError)
