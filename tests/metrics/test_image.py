"""PSNR and SSIM against scikit-image, closed forms and what must hold of any picture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.metrics import image
from framecast.metrics.image import PSNR_CAP, psnr, psnr_clip, ssim

skimage = pytest.importorskip("skimage.metrics")

OF_SKIMAGE = {
    "gauss11": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    "uniform7": {"win_size": 7},
}


def frames(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)


def alike(*shape, seed=0, noise=12.0):
    """Smooth frames and a noisy copy."""
    *lead, height, width = shape
    rng = torch.Generator().manual_seed(seed)
    phase = 6.3 * torch.rand(*lead, 1, 1, generator=rng)
    waves = torch.sin(phase + torch.arange(height)[:, None] / 3) + torch.cos(phase + torch.arange(width) / 5)
    clean = 128 + 50 * waves
    noisy = clean + noise * torch.randn(clean.shape, generator=rng)
    return [x.clamp(0, 255).round().to(torch.uint8) for x in (clean, noisy)]


@pytest.mark.parametrize("variant", OF_SKIMAGE)
@pytest.mark.parametrize("shape", [(3, 17, 29), (1, 11, 40), (2, 64, 12)])
def test_ssim_equals_that_of_scikit_image(variant, shape):
    truth, made = alike(2, *shape)
    for ours, x, y in zip(ssim(made, truth, variant=variant), made.numpy(), truth.numpy()):
        theirs = skimage.structural_similarity(x, y, channel_axis=0, data_range=255, **OF_SKIMAGE[variant])
        assert ours.item() == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("variant", OF_SKIMAGE)
def test_ssim_of_data_units_takes_the_range_given(variant):
    truth, made = (x.double() / 1000 - 3 for x in alike(1, 20, 20))
    peak = 0.255
    theirs = skimage.structural_similarity(
        made.numpy(), truth.numpy(), channel_axis=0, data_range=peak, **OF_SKIMAGE[variant]
    )
    assert ssim(made, truth, variant=variant, peak=peak).item() == pytest.approx(theirs, abs=1e-9)


def test_ssim_of_luminance_is_that_of_the_grey_picture():
    truth, made = alike(4, 3, 16, 24)
    grey = [
        np.rint(np.tensordot([0.299, 0.587, 0.114], x.numpy().astype(float), axes=(0, 1))).astype(np.uint8)
        for x in (made, truth)
    ]
    expected = ssim(*(torch.from_numpy(g)[:, None] for g in grey))
    torch.testing.assert_close(ssim(made, truth, variant="gauss11_luma"), expected, rtol=0, atol=1e-15)
    assert (expected - ssim(made, truth)).abs().min() > 1e-3


def test_ssim_of_grey_luminance_is_ssim():
    truth, made = alike(3, 1, 16, 24)
    assert torch.equal(ssim(made, truth, variant="gauss11_luma"), ssim(made, truth))


@settings(deadline=None, max_examples=20)
@given(st.integers(11, 24), st.integers(11, 24), st.integers(0, 999), st.sampled_from(["gauss11", "uniform7"]))
def test_ssim_is_symmetric_and_one_for_itself_only(height, width, seed, variant):
    a, b = frames(3, height, width, seed=seed), frames(3, height, width, seed=seed + 1)
    there, back = ssim(a, b, variant=variant), ssim(b, a, variant=variant)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-12)
    assert there < 0.9
    torch.testing.assert_close(ssim(a, a, variant=variant), torch.tensor(1.0).double(), rtol=0, atol=1e-12)


def test_many_frames_are_worked_on_in_parts_with_the_same_result(monkeypatch):
    truth, made = alike(7, 2, 12, 13)
    whole = ssim(made, truth)
    monkeypatch.setattr(image, "_AT_ONCE", 3 * 12 * 13)
    torch.testing.assert_close(ssim(made, truth), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_truth_is_broadcast_over_samples(measure):
    samples, truth = frames(5, 4, 3, 12, 14), frames(4, 3, 12, 14, seed=1)
    found = measure(samples, truth)
    assert found.shape == (5, 4)
    torch.testing.assert_close(found[3, 2], measure(samples[3, 2], truth[2]), rtol=0, atol=1e-12)


def test_psnr_equals_that_of_scikit_image():
    truth, made = alike(3, 3, 9, 8)
    for ours, x, y in zip(psnr(made, truth), made.numpy(), truth.numpy()):
        assert ours.item() == pytest.approx(skimage.peak_signal_noise_ratio(y, x, data_range=255), abs=1e-12)


def test_psnr_of_a_clip_is_never_above_the_mean_over_its_frames():
    truth = frames(6, 5, 1, 8, 8)
    made = (truth.int() + torch.arange(5)[:, None, None, None] * 9).clamp(0, 255).to(torch.uint8)
    made[:, 0] = 255 - truth[:, 0]
    assert (psnr_clip(made, truth) < psnr(made, truth).mean(-1)).all()


def test_psnr_of_a_clip_of_even_error_is_that_of_its_frames():
    truth = torch.zeros(2, 5, 1, 8, 8)
    expected = 20 * np.log10(255 / 7)
    assert psnr_clip(truth + 7, truth).tolist() == pytest.approx([expected] * 2)
    assert psnr(truth + 7, truth).flatten().tolist() == pytest.approx([expected] * 10)


def test_identical_clips_get_the_cap():
    clip = frames(2, 3, 1, 4, 4)
    assert psnr_clip(clip, clip).tolist() == [PSNR_CAP] * 2


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_frames_of_other_sizes_are_refused(measure, unchecked):
    with pytest.raises(ValueError, match=r"3 x 16 x 16 .* cannot be compared with one of 1 x 16 x 16"):
        measure(frames(2, 3, 16, 16), frames(2, 1, 16, 16))


def test_clips_of_other_lengths_are_refused(unchecked):
    with pytest.raises(ValueError, match="a clip of 4 frames cannot be compared with one of 1"):
        psnr_clip(frames(4, 1, 8, 8), frames(1, 1, 8, 8))


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match=r"11 x 11 pixels; frames of 8 x 32 are too small"):
        ssim(frames(1, 8, 32), frames(1, 8, 32))
    assert ssim(frames(1, 8, 32), frames(1, 8, 32), variant="uniform7").item() == pytest.approx(1.0)


def test_luminance_of_other_than_bytes_or_colours_is_refused():
    with pytest.raises(ValueError, match="8-bit frames with 1 or 3 channels"):
        ssim(frames(2, 16, 16), frames(2, 16, 16), variant="gauss11_luma")
    with pytest.raises(ValueError, match=r"torch.float32 with 3"):
        ssim(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), variant="gauss11_luma")


def test_unknown_variant_is_refused(unchecked):
    with pytest.raises(ValueError, match="'gauss'; it can be gauss11, gauss11_luma"):
        ssim(frames(1, 16, 16), frames(1, 16, 16), variant="gauss")
