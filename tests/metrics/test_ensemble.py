"""Ensemble figures: what they must be for truths drawn from the same law as the samples, and for those that are not."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.data.simulate.bouncing import Bouncing, futures
from framecast.draws import mix
from framecast.metrics.ensemble import best_of, diversity, mode_coverage, ranks, ratio, spread_skill


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- spread and skill


@pytest.mark.parametrize("count", [2, 5, 50])
def test_spread_equals_skill_for_a_truth_drawn_like_the_samples(count):
    samples, truth = 3 * normal(count, 2, 1, 200, 200) + 1, 3 * normal(2, 1, 200, 200, seed=1) + 1
    spread, skill = spread_skill(samples, truth)
    assert spread.tolist() == pytest.approx([9 * (1 + 1 / count)] * 2, rel=0.03)
    assert skill.tolist() == pytest.approx([9 * (1 + 1 / count)] * 2, rel=0.03)
    assert ratio(spread, skill) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("scatter", [0.5, 2.0])
def test_ratio_tells_how_much_too_sure_or_unsure(scatter):
    # the mean of S errs by 1 + scatter^2 / S, the samples vary by scatter^2
    count = 10
    found = ratio(*spread_skill(scatter * normal(count, 1, 1, 300, 300), normal(1, 1, 300, 300, seed=1)))
    expected = scatter * math.sqrt((1 + 1 / count) / (1 + scatter**2 / count))
    assert found == pytest.approx(expected, rel=0.02)


def test_spread_and_skill_are_of_each_frame():
    truth = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    samples = torch.stack([truth + 1, truth + 3])
    samples[:, 1] = 250
    spread, skill = spread_skill(samples, truth)
    assert spread.tolist() == pytest.approx([3, 0])  # variance 2 of two samples, times 3 / 2
    assert skill.tolist() == [4, 250**2]


def test_ratio_averages_before_it_divides():
    assert ratio(torch.tensor([0.0, 8.0]), torch.tensor([1.0, 1.0])) == 2.0


# ---- ranks


def test_ranks_are_flat_for_a_truth_drawn_like_the_samples():
    counts = ranks(normal(7, 4, 1, 100, 100), normal(4, 1, 100, 100, seed=1), seed=0)
    assert counts.sum() == 40_000
    assert (counts - 5000).abs().max() < 5 * math.sqrt(5000)


def test_ranks_among_equal_values_are_flat():
    truth = torch.full((2, 1, 100, 100), 9, dtype=torch.uint8)
    counts = ranks(truth.expand(4, *truth.shape), truth, seed=3)
    assert (counts - 4000).abs().max() < 5 * math.sqrt(4000)


def test_ranks_with_ties_stay_inside_them():
    samples = torch.tensor([1, 5, 5, 9]).reshape(4, 1, 1, 1, 1).expand(4, 1, 1, 50, 50)
    counts = ranks(samples, torch.full((1, 1, 50, 50), 5), seed=0)
    assert counts[[0, 4]].tolist() == [0, 0]
    assert (counts[1:4] > 700).all()


@pytest.mark.parametrize(("scatter", "shape"), [(0.3, "ends"), (3.0, "middle")])
def test_ranks_tell_too_little_spread_by_their_ends_and_too_much_by_a_hump(scatter, shape):
    counts = ranks(scatter * normal(8, 1, 1, 100, 100), normal(1, 1, 100, 100, seed=1), seed=0)
    ends, middle = counts[[0, -1]].sum(), counts[[3, 4, 5]].sum()
    assert (ends > middle) == (shape == "ends")


def test_ranks_depend_on_the_seed_alone():
    samples, truth = (normal(*s) > 0 for s in ((5, 2, 1, 9, 9), (2, 1, 9, 9)))
    first = ranks(samples.byte(), truth.byte(), seed=5)
    torch.rand(3)
    assert torch.equal(first, ranks(samples.byte(), truth.byte(), seed=5))
    assert not torch.equal(first, ranks(samples.byte(), truth.byte(), seed=6))


# ---- diversity, best of N


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 7), st.integers(0, 999))
def test_diversity_is_the_mean_over_pairs(count, seed):
    samples = normal(count, 2, 1, 3, 4, seed=seed)
    pairs = [(a - b).square().mean((1, 2, 3)).sqrt() for i, a in enumerate(samples) for b in samples[:i]]
    torch.testing.assert_close(diversity(samples), torch.stack(pairs).mean(0))


def test_diversity_of_equal_samples_is_zero():
    assert diversity(torch.full((5, 3, 1, 2, 2), 0.1)).tolist() == [0, 0, 0]


def test_diversity_of_independent_draws_is_root_two_of_their_spread():
    assert diversity(5 * normal(4, 2, 3, 80, 80)).tolist() == pytest.approx([5 * math.sqrt(2)] * 2, rel=0.02)


def test_best_of_takes_one_sample_for_the_whole_curve():
    scores = torch.tensor([[9.0, 1.0, 1.0], [3.0, 4.0, 5.0], [8.0, 0.0, 2.0]])
    assert best_of(scores, larger=True).tolist() == [3, 4, 5]
    assert best_of(scores, larger=False).tolist() == [8, 0, 2]


def test_best_of_more_is_never_worse():
    scores = normal(20, 6)
    curve = [best_of(scores[:n], larger=True).mean().item() for n in range(1, 21)]
    assert curve == sorted(curve)


# ---- modes


@pytest.fixture(scope="module")
def bouncing():
    """True futures of twelve scenes: 100 to judge by and 20 fresh ones each."""
    scene = Bouncing()
    drawn = [futures(scene, known=4, frames=8, count=120, seed=mix("modes", n)) for n in range(12)]
    return [(true[:100, ::2], true[100:, ::2]) for true in drawn]


def mean_coverage(bouncing, samples_of):
    found = [mode_coverage(samples_of(true, fresh), true) for true, fresh in bouncing]
    return sum(found) / len(found)


def test_fresh_true_futures_cover_about_all_modes(bouncing):
    assert mean_coverage(bouncing, lambda true, fresh: fresh[:10]) == pytest.approx(1, abs=0.1)
    assert mean_coverage(bouncing, lambda true, fresh: fresh) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("count", [10, 20])
def test_one_repeated_future_covers_one_mode(bouncing, count):
    covered = mean_coverage(bouncing, lambda true, fresh: fresh[:1].expand(count, *fresh.shape[1:]))
    assert covered == pytest.approx(1 / count, rel=0.3)


def test_the_mean_of_all_futures_covers_no_more_than_one(bouncing):
    covered = mean_coverage(
        bouncing, lambda true, fresh: true.double().mean(0, keepdim=True).expand(10, -1, -1, -1, -1)
    )
    assert covered < 0.15


def test_futures_of_another_scene_cover_nothing(bouncing):
    others = [(true, fresh) for (true, _), (_, fresh) in pairwise(bouncing)]
    assert mean_coverage(others, lambda true, fresh: fresh[:10]) < 0.05


def test_half_of_the_modes_are_half_covered(bouncing):
    half = mean_coverage(bouncing, lambda true, fresh: fresh[:5].repeat(2, 1, 1, 1, 1))
    assert half == pytest.approx(0.5, abs=0.08)


def test_samples_from_the_true_futures_cover_about_all_of_a_normal_law():
    covered = [mode_coverage(normal(8, 3, seed=n), normal(60, 3, seed=1000 + n)) for n in range(60)]
    assert sum(covered) / 60 == pytest.approx(1, abs=0.05)


def test_one_certain_future_is_covered_or_not():
    true = torch.full((30, 4), 7.0)
    assert mode_coverage(torch.full((5, 4), 7.0), true) == 1.0
    assert mode_coverage(torch.full((5, 4), 7.1), true) == 0.0


def test_two_exact_modes_count_as_two():
    true = torch.tensor([0.0, 9.0]).repeat(20)[:, None]
    both = mode_coverage(true[:6], true)
    assert both == 1
    assert mode_coverage(true[:1].expand(6, 1), true) == pytest.approx(both / 2)


# ---- refusals


VIDEO = normal(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: spread_skill(VIDEO[None], VIDEO), "spread needs two samples at least; there is one"),
        (lambda: diversity(VIDEO[None]), "diversity needs two samples"),
        (lambda: ranks(normal(0, 2, 1, 3, 3), VIDEO, seed=0), "ranks needs one sample at least; there are none"),
        (lambda: ranks(normal(3, 2, 1, 3, 3), VIDEO[:1], seed=0), "2 x 1 x 3 x 3 cannot be judged by .* 1 x 1 x 3"),
        (lambda: best_of(normal(0, 3), larger=True), "the best of samples needs one"),
        (lambda: mode_coverage(normal(5, 2), normal(9, 2)), "of 5 samples needs 10 true futures at least, not 9"),
        (lambda: mode_coverage(normal(5, 2), normal(9, 3)), "samples of shape 2 have no mode among futures of 3"),
    ],
)
def test_too_few_or_unlike_videos_are_refused_in_a_sentence(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call()
