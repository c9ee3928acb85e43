"""CRPS and PSNR against brute force, closed forms and another library."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.metrics import forecast
from framecast.metrics.forecast import crps, crps_by_frame, crps_maps, eight_bit, hold, scores
from framecast.metrics.image import PSNR_CAP, psnr


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


@pytest.mark.parametrize(("estimator", "theirs"), [("empirical", "nrg"), ("fair", "fair")])
@pytest.mark.parametrize("count", [2, 9])
def test_crps_equals_that_of_scoringrules(estimator, theirs, count):
    scoringrules = pytest.importorskip("scoringrules")
    rng = torch.Generator().manual_seed(count)
    samples = torch.randn(count, 3, 4, 5, generator=rng, dtype=torch.float64) * 40 + 270
    truth = torch.randn(3, 4, 5, generator=rng, dtype=torch.float64) * 40 + 270
    expected = scoringrules.crps_ensemble(truth.numpy(), samples.numpy(), m_axis=0, estimator=theirs)
    torch.testing.assert_close(
        crps(samples, truth, estimator=estimator), torch.from_numpy(expected), rtol=0, atol=1e-11
    )


def test_crps_of_small_differences_between_large_values_keeps_its_digits():
    rng = torch.Generator().manual_seed(5)
    samples, truth = torch.randint(0, 50, (20, 300), generator=rng), torch.randint(0, 50, (300,), generator=rng)
    near, far = (crps((samples + offset).float(), (truth + offset).float()) for offset in (0, 10_000_000))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [250, 300])
def test_crps_of_many_bytes_is_exact(count):
    rng = torch.Generator().manual_seed(6)
    samples = torch.randint(0, 256, (count, 64), generator=rng, dtype=torch.uint8)
    truth = torch.randint(0, 256, (64,), generator=rng, dtype=torch.uint8)
    torch.testing.assert_close(crps(samples, truth).double(), crps(samples.double(), truth.double()), rtol=2e-6, atol=0)


@pytest.mark.parametrize("estimator", ["empirical", "fair"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_maps_and_frames_are_means_of_the_same_scores(estimator, kind):
    rng = torch.Generator().manual_seed(7)
    samples = torch.randint(0, 256, (6, 4, 3, 5, 7), generator=rng).to(kind)
    truth = torch.randint(0, 256, (4, 3, 5, 7), generator=rng).to(kind)
    whole = crps(samples, truth, estimator=estimator).double()
    maps = crps_maps(samples, truth, estimator=estimator)
    torch.testing.assert_close(maps, whole.mean(1))
    torch.testing.assert_close(crps_by_frame(samples, truth, estimator=estimator), whole.mean((1, 2, 3)))
    assert maps.dtype == torch.float64


def test_no_more_than_one_frame_is_scored_at_once(monkeypatch):
    seen = []
    monkeypatch.setattr(forecast, "crps", lambda x, y, estimator: seen.append(x.shape) or crps(x, y))
    crps_by_frame(torch.zeros(5, 3, 1, 4, 4), torch.zeros(3, 1, 4, 4))
    assert seen == [(5, 1, 4, 4)] * 3


def test_truth_of_other_frames_is_refused(unchecked):
    with pytest.raises(ValueError, match="samples of shape 3 x 1 x 4 x 4 cannot be judged by a truth of 2 x 1 x 4 x 4"):
        crps_by_frame(torch.zeros(5, 3, 1, 4, 4), torch.zeros(2, 1, 4, 4))


def test_crps_of_no_sample_or_an_unknown_estimator_is_refused(unchecked):
    with pytest.raises(ValueError, match="at least one sample"):
        crps(torch.zeros(0, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="'biased'; it can be empirical or fair"):
        crps(torch.zeros(2, 4), torch.zeros(4), estimator="biased")


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
