"""A user's clip fitted to a model: what is done, and that every change is said."""

import numpy as np
import pytest
import torch

from framecast.data.clip_file import BadClip, read_clip
from framecast.data.fit import fit, read_fitted
from framecast.experiment import VideoSpec
from framecast.video import Clip
from tests.data import numbered


def spec(channels=3, height=24, width=24, fps=None, value_range=(0.0, 255.0)):
    return VideoSpec(channels=channels, height=height, width=width, clip_frames=8, fps=fps, value_range=value_range)


def pictures(count=12, height=48, width=64):
    return torch.from_numpy(np.stack([numbered.picture(i, height, width) for i in range(count)])).permute(0, 3, 1, 2)


def test_a_clip_that_fits_is_left_alone():
    clip = Clip(pictures(height=24, width=24), fps=10.0)
    fitted, changes = fit(clip, spec(fps=10.0))
    assert torch.equal(fitted.frames, clip.frames) and fitted.fps == 10.0 and changes == []


def test_short_side_is_resized_and_the_centre_cut():
    frames = torch.zeros(2, 3, 48, 96, dtype=torch.uint8)
    frames[..., 24:72] = 200  # the centre square
    fitted, changes = fit(Clip(frames), spec())
    assert fitted.frames.shape == (2, 3, 24, 24)
    assert (fitted.frames[..., 1:-1] == 200).all()
    assert changes == ["96x48 to 24x24 pixels: short side reduced, centre cropped."]


def test_reducing_averages_instead_of_skipping():
    lines = (torch.arange(96) % 2 * 255).to(torch.uint8).expand(1, 1, 96, 96)  # one pixel black, one white
    fitted, _ = fit(Clip(lines), spec(channels=1, height=24, width=24))
    assert (fitted.frames[..., 2:-2].float() - 127.5).abs().max() < 4


def test_small_clips_are_enlarged_and_it_is_said():
    fitted, changes = fit(Clip(pictures(height=12, width=12)), spec())
    assert fitted.frames.shape[-2:] == (24, 24)
    assert changes == ["12x12 to 24x24 pixels: short side enlarged."]


def test_rate_follows_the_time_stamps():
    fitted, changes = fit(Clip(pictures(12), fps=30.0), spec(fps=10.0, height=48, width=64))
    assert numbered.numbers(fitted.frames) == [0, 3, 6, 9]
    assert fitted.fps == 10.0
    assert changes == ["30 to 10 frames per second: 4 of 12 frames, by time stamp."]


@pytest.mark.parametrize(("have", "want"), [(None, 10.0), (25.0, None), (29.97, 30.0)])
def test_rates_that_are_equal_or_unknown_change_nothing(have, want):
    fitted, changes = fit(Clip(pictures(), fps=have), spec(fps=want, height=48, width=64))
    assert len(fitted) == 12 and fitted.fps == have
    unknown = "its frame rate is not known: frames are taken as stored, as if 10 came per second."
    assert changes == ([unknown] if have is None else [])


def test_clip_slower_than_the_model_is_said_to_repeat_frames():
    fitted, changes = fit(Clip(pictures(6), fps=2.0), spec(fps=10.0, height=48, width=64))
    assert numbered.numbers(fitted.frames)[:4] == [0, 0, 0, 1]
    (said,) = changes
    assert (
        said
        == f"2 to 10 frames per second: slower than the model's clips, so that 6 frames repeat to fill {len(fitted)}."
    )


def test_crop_that_leaves_little_says_how_little():
    _, changes = fit(Clip(torch.zeros(2, 3, 24, 480, dtype=torch.uint8)), spec())
    assert changes == ["480x24 to 24x24 pixels: short side kept, centre cropped (5% of the picture is left)."]


def test_colours_change_only_when_asked():
    red = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    red[:, 0] = 255
    with pytest.raises(
        ValueError, match=r"^model expects 1 channel, clip has 3: add --gray, or choose a 3-channel model\.$"
    ):
        fit(Clip(red), spec(channels=1))
    grey, changes = fit(Clip(red), spec(channels=1), colour="gray")
    assert grey.frames.unique().tolist() == [76]  # 0.299 of 255
    assert changes == ["colours to grey (luma)."]
    with pytest.raises(ValueError, match=r"^model expects 3 channels, clip has 1: add --rgb, or choose a 1-channel"):
        fit(grey, spec())
    back, changes = fit(grey, spec(), colour="rgb")
    assert back.frames.shape[1] == 3 and back.frames.unique().tolist() == [76]
    assert changes == ["grey to colours (the same three times)."]


def test_fields_are_not_colours():
    field = Clip(torch.zeros(2, 2, 24, 24), value_range=(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"model expects 3 channels, clip has 2: choose a 2-channel model\."):
        fit(field, spec())
    with pytest.raises(ValueError, match="which are not colours"):
        fit(field, spec(channels=1), colour="gray")


def test_a_field_keeps_its_units_under_the_range_of_the_model():
    field = Clip(torch.full((2, 1, 24, 24), 0.5), value_range=(-1.0, 1.0))
    fitted, changes = fit(field, spec(channels=1, value_range=(-5.0, 5.0)))
    assert fitted.frames.unique().tolist() == [0.5] and fitted.value_range == (-5.0, 5.0)
    assert changes == ["values read in the model's range -5 to 5, not -1 to 1."]
    pictured, changes = fit(field, spec(channels=1))
    assert pictured.value_range == (-1.0, 1.0) and changes == []


def test_a_picture_for_a_model_of_a_field_is_read_as_one_and_it_is_said():
    picture = Clip(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 24, 24))
    fitted, changes = fit(picture, spec(channels=1, value_range=(-5.0, 5.0)))
    assert torch.equal(fitted.frames, picture.frames) and fitted.value_range == (0.0, 255.0)
    assert changes == ["a picture, not a field: its 0 to 255 stand for the model's -5 to 5."]


def test_values_out_of_range_are_told_what_to_do(tmp_path):
    np.save(tmp_path / "wide.npy", np.linspace(-9, 9, 8 * 24 * 24, dtype=np.float32).reshape(8, 1, 24, 24))
    field = spec(channels=1, value_range=(-1.0, 1.0))
    for declared in (None, (-9.0, 9.0)):  # what is declared does not change the model's units
        with pytest.raises(
            BadClip, match=r"span -9 to 9, outside .+ -1 to 1, which is the model's: convert them to its"
        ):
            read_fitted(tmp_path / "wide.npy", field, value_range=declared)
    with pytest.raises(BadClip, match=r"outside the declared range 0 to 1: declare their own with --value-range"):
        read_fitted(tmp_path / "wide.npy", spec(channels=1), value_range=(0.0, 1.0))


@pytest.mark.parametrize("parts", [1, 5])
def test_reading_fitted_equals_reading_then_fitting(tmp_path, monkeypatch, parts):
    monkeypatch.setattr("framecast.data.fit._CHUNK", parts * 48 * 64 * 3)
    path = numbered.write(tmp_path / "a.mp4", count=50)
    model = spec(fps=10.0)
    read, said = read_fitted(path, model)
    fitted, changes = fit(read_clip(path), model)
    assert torch.equal(read.frames, fitted.frames) and read.fps == fitted.fps == 10.0
    assert said == changes and len(said) == 2
    part, _ = read_fitted(path, model, start=3, frames=4)
    assert torch.equal(part.frames, fitted.frames[3:7])


def test_reading_fitted_follows_true_times(tmp_path):
    stamps = [0, 40, 80, 120, 520, 560, 600]
    path = numbered.write(tmp_path / "a.mkv", codec="ffv1", pix_fmt="bgra", count=7, stamps=stamps)
    clip, _ = read_fitted(path, spec(fps=5.0, height=48, width=64))
    assert numbered.numbers(clip.frames) == [0, 3, 4, 6]


def test_clips_too_short_are_refused_in_the_model_s_frames(tmp_path):
    path = numbered.write(tmp_path / "a.mp4", count=50)
    with pytest.raises(BadClip, match=r"frames 15 to 24 asked for, the clip has 20 frames at 10 frames per second\."):
        read_fitted(path, spec(fps=10.0), start=15, frames=10)


def test_bare_numbers_take_the_units_of_a_model_of_a_field(tmp_path):
    values = np.linspace(-2.5, 2.5, 8 * 24 * 24, dtype=np.float32).reshape(8, 1, 24, 24)
    np.save(tmp_path / "field.npy", values)
    clip, notes = read_fitted(tmp_path / "field.npy", spec(channels=1, value_range=(-3.0, 3.0)))
    assert np.array_equal(clip.frames.numpy(), values) and clip.value_range == (-3.0, 3.0)
    assert notes == ["values taken to be in the model's units, -3 to 3."]
    with pytest.raises(BadClip, match="of unknown range"):
        read_fitted(tmp_path / "field.npy", spec(channels=1))
