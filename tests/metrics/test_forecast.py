"""CRPS and PSNR against brute force, closed forms and stored reference values."""

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.metrics.forecast import crps, eight_bit, hold, scores
from framecast.metrics.image import PSNR_CAP, psnr

PARITY = Path(os.environ.get("FRAMECAST_PARITY", Path(__file__).parents[3] / "shared" / "parity")) / "metrics-a"


def pairs(samples, truth, divisor):
    """The definition, written out: mean |x - y| minus half the mean |x - x'| over `divisor` pairs."""
    error = (samples - truth).abs().mean(0)
    return error - (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * divisor)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(0, 10_000))
def test_crps_equals_sum_over_pairs(count, seed):
    rng = torch.Generator().manual_seed(seed)
    samples = torch.randn(count, 3, 5, generator=rng, dtype=torch.float64)
    truth = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(crps(samples, truth), pairs(samples, truth, count**2))
    torch.testing.assert_close(crps(samples, truth, estimator="fair"), pairs(samples, truth, count * (count - 1)))


def test_crps_of_bytes_equals_sum_over_grey_levels():
    rng = torch.Generator().manual_seed(1)
    samples = torch.randint(0, 256, (7, 40), generator=rng, dtype=torch.uint8)
    truth = torch.randint(0, 256, (40,), generator=rng, dtype=torch.uint8)
    levels = torch.arange(256)[:, None]
    below = (samples[:, None].int() <= levels).double().mean(0)
    expected = (below - (truth.int() <= levels).double()).square().sum(0)
    torch.testing.assert_close(crps(samples, truth).double(), expected, rtol=0, atol=1e-4)


def test_crps_of_many_normal_draws_approaches_closed_form():
    rng = torch.Generator().manual_seed(2)
    samples = torch.randn(20_000, generator=rng, dtype=torch.float64)[:, None]
    for y in (-1.5, 0.0, 0.7):
        density = math.exp(-y * y / 2) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + math.erf(y / math.sqrt(2)))
        closed = y * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi)
        assert crps(samples, torch.tensor([y], dtype=torch.float64)).item() == pytest.approx(closed, abs=0.02)


def test_fair_crps_does_not_depend_on_number_of_samples():
    rng = torch.Generator().manual_seed(3)
    truth = torch.randn(40_000, generator=rng)
    few, many = (torch.randn(s, 40_000, generator=rng) for s in (2, 16))
    fair = [crps(x, truth, estimator="fair").mean().item() for x in (few, many)]
    assert fair[0] == pytest.approx(fair[1], abs=0.02)
    # E|X - X'| = 2 / sqrt(pi), so the empirical form is too high by 1 / (S sqrt(pi))
    excess = crps(few, truth).mean().item() - fair[0]
    assert excess == pytest.approx(1 / (2 * math.sqrt(math.pi)), abs=0.01)


@pytest.mark.parametrize("estimator", ["empirical", "fair"])
def test_crps_of_one_sample_is_absolute_error(estimator):
    assert crps(torch.tensor([[3]]), torch.tensor([10]), estimator=estimator).item() == 7


def test_psnr_averages_error_over_pixels_and_channels():
    made = torch.zeros(2, 3, 4, 4)
    truth = torch.zeros(2, 3, 4, 4)
    truth[0, 0] = 255.0  # a third of the values is wrong by the whole range
    first, second = psnr(made, truth).tolist()
    assert first == pytest.approx(10 * math.log10(3))
    assert second == PSNR_CAP


def test_psnr_broadcasts_truth_over_samples():
    assert psnr(torch.zeros(5, 2, 1, 4, 4), torch.ones(2, 1, 4, 4)).shape == (5, 2)


def test_eight_bit_keeps_bytes_and_clamps_floats():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(eight_bit(levels, value_range=(0.0, 255.0)), levels)
    assert eight_bit(torch.tensor([-9.0, 0.5, 9.0]), value_range=(0.0, 1.0)).tolist() == [0, 128, 255]


def test_hold_takes_the_given_frame_before():
    assert hold([True, True, False, False]) == [0, 1, 1, 1]
    assert hold([False, False, True, False, True]) == [2, 2, 2, 2, 4]


def test_scores_average_frames():
    truth = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    samples = torch.stack([truth, truth + 4])
    samples[:, 1] += 10
    result = scores(samples, truth)
    assert result["per_frame"]["crps"] == [1.0, 11.0]  # mean error 2 and 12, less half the mean distance of pairs
    assert result["per_frame"]["crps_fair"] == [0.0, 10.0]
    assert (result["crps"], result["crps_fair"]) == (6.0, 5.0)


@pytest.fixture(scope="module")
def reference():
    if not (PARITY / "basic.safetensors").is_file():
        pytest.skip(f"no reference values in {PARITY}")
    from safetensors.torch import load_file

    return load_file(PARITY / "basic.safetensors")


def close(got, expected):
    """Within float32 rounding of the largest value, the measure all stored figures are held to."""
    expected = expected.double()
    assert (got.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_crps_agrees_with_reference_values(reference):
    truth, samples = reference["crps.obs_u8"], reference["crps.ens_u8"]
    for name in ("empirical", "fair"):
        close(crps(samples, truth, estimator=name), reference[f"crps.{name}"])
    empirical = crps(samples, truth)
    close(empirical, reference["crps.sum8bit"])
    close(empirical.mean((1, 2, 3)), reference["crps.per_frame_empirical"])
    close(empirical.mean(-1), reference["crps.map_empirical"])
    close(crps(samples[:1], truth), reference["crps.single_member"])


def test_crps_of_real_values_agrees_with_reference_values(reference):
    for name in ("empirical", "fair"):
        samples, truth = reference["crps.float.ens"].T.contiguous(), reference["crps.float.obs"]
        torch.testing.assert_close(crps(samples, truth, estimator=name), reference[f"crps.float.{name}"])


def test_psnr_agrees_with_reference_values(reference):
    a, b = (reference[f"img.{name}"].movedim(-1, -3) for name in "ab")
    torch.testing.assert_close(psnr(a, b), reference["psnr.per_frame"])
