"""Variance, spectrum, period and motion against what they must be of waves, noise and shapes that move."""

import math

import pytest
import torch

from framecast.metrics.field import motion_amount, period, spectrum_by_frame, variance_by_frame


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def travelling(frames, length, *, size=24, overtone=0.0, noise=0.0, seed=0):
    """A wave that passes a place once in `length` frames."""
    t, x = torch.arange(frames, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    angle = 2 * math.pi * (t / length - 2 * x / size)
    wave = angle.cos() + overtone * (2 * angle).cos()
    return (wave[:, None, None] + noise * normal(frames, 1, 8, size, seed=seed)).expand(frames, 1, 8, size)


def test_variance_is_over_pixels_and_averaged_over_channels():
    frames = torch.zeros(2, 2, 4, 4)
    frames[0, 0, :2] = 6  # half of the pixels of one channel: variance 9
    frames[1] = 200
    assert variance_by_frame(frames).tolist() == pytest.approx([4.5, 0])


def test_white_noise_has_its_variance_in_every_ring():
    power = spectrum_by_frame(3 * normal(400, 1, 16, 20)).mean(0)
    assert power.tolist() == pytest.approx([9] * 8, rel=0.1)


@pytest.mark.parametrize("waves", [1, 4, 8])
def test_a_wave_has_its_power_in_the_ring_of_its_length(waves):
    frame = torch.sin(0.3 + 2 * math.pi * waves * torch.arange(16) / 16).double().expand(1, 16, 16)
    power = spectrum_by_frame(frame)
    assert power.argmax().item() == waves - 1
    assert power.sum() - power.max() < 1e-9 * power.max()


def test_spectrum_does_not_see_the_mean_and_grows_with_the_square():
    frames = normal(3, 2, 12, 9)
    power = spectrum_by_frame(frames)
    assert power.shape == (3, 4)
    torch.testing.assert_close(spectrum_by_frame(2 * frames + 50), 4 * power)


def test_blur_takes_power_from_fine_scales_first():
    frames = normal(50, 1, 32, 32)
    kept = spectrum_by_frame(torch.nn.functional.avg_pool2d(frames, 3, 1, 1)).mean(0) / spectrum_by_frame(frames).mean(
        0
    )
    assert kept[0] > 0.8
    assert kept[12] < 0.05


def test_one_row_has_no_spectrum():
    with pytest.raises(ValueError, match=r"2 x 2 pixels at least; these are 1 x 9"):
        spectrum_by_frame(torch.zeros(1, 1, 9))


@pytest.mark.parametrize("length", [5.0, 9.5, 11.37, 12.0])
@pytest.mark.parametrize("frames", [16, 64])
def test_period_is_found_to_a_hundredth(length, frames):
    assert period(travelling(frames, length)) == pytest.approx(length, rel=0.01)


def test_period_is_that_of_the_whole_and_not_of_an_overtone():
    assert period(travelling(60, 10.4, overtone=0.8)) == pytest.approx(10.4, rel=0.01)


def test_period_is_found_under_noise():
    assert period(travelling(60, 10.4, noise=0.3)) == pytest.approx(10.4, rel=0.03)


def test_period_is_the_first_and_no_multiple():
    assert period(travelling(200, 7.0, noise=0.05)) == pytest.approx(7.0, rel=0.01)


@pytest.mark.parametrize(
    "clip",
    [
        torch.full((20, 1, 8, 8), 30, dtype=torch.uint8),
        normal(40, 1, 16, 16),
        normal(1, 1, 16, 16) * torch.arange(20)[:, None, None, None],
        normal(40, 1, 16, 16).cumsum(0),
        travelling(12, 15.0),
        normal(2, 1, 4, 4),
    ],
    ids=["still", "noise", "growth", "random walk", "less than a period", "two frames"],
)
def test_clips_that_do_not_recur_have_no_period(clip):
    assert math.isnan(period(clip))


def test_motion_is_the_mean_change_between_neighbours():
    clip = torch.tensor([250, 0, 10], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 4, 4)
    assert motion_amount(clip) == (250 + 10) / 2


def test_one_frame_has_no_motion():
    with pytest.raises(ValueError, match="this clip has 1"):
        motion_amount(torch.zeros(1, 1, 4, 4))
