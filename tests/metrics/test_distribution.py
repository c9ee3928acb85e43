"""Distances between sets of features against closed forms, brute force, and what theory says of equal laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.metrics import distribution
from framecast.metrics.distribution import (
    Moments,
    density_coverage,
    frechet,
    frechet_of,
    inception_score,
    kernel_distance,
    nearest_distance,
    precision_recall,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_blocks(monkeypatch):
    """So that even a few clips take several blocks."""
    monkeypatch.setattr(distribution, "_CELLS", 20)


def test_frechet_of_normals_with_diagonal_covariances_is_the_closed_form():
    m1, m2, s1, s2 = normal(5), normal(5, seed=1), normal(5, seed=2).abs(), normal(5, seed=3).abs()
    closed = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    ours = frechet(m1, torch.diag(s1.square()), m2, torch.diag(s2.square()))
    assert ours == pytest.approx(closed.item(), rel=1e-13)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_frechet_of_normals_in_the_plane_is_the_closed_form(seed):
    a, b = normal(2, 2, 2, seed=seed)
    one, two = a @ a.T, b @ b.T
    # eigenvalues p, q of S1 S2: (sqrt p + sqrt q)^2 = p + q + 2 sqrt(p q)
    root = ((one @ two).trace() + 2 * (one.det() * two.det()).clamp(min=0).sqrt()).sqrt()
    closed = (one.trace() + two.trace() - 2 * root).item()
    assert frechet(torch.zeros(2), one, torch.zeros(2), two) == pytest.approx(closed, abs=1e-6)


def test_frechet_of_lines_in_space_is_the_closed_form():
    # both covariances of rank one, u u' and v v': the root has the trace |u v|
    u, v = normal(40), normal(40, seed=1)
    closed = (u.square().sum() + v.square().sum() - 2 * (u @ v).abs()).item()
    zero = torch.zeros(40)
    assert frechet(zero, torch.outer(u, u), zero, torch.outer(v, v)) == pytest.approx(closed, rel=1e-6)
    of_clips = frechet_of(torch.stack([u, -u]), torch.stack([v, -v]), ddof=0)
    assert of_clips == pytest.approx(closed, rel=1e-13)


@pytest.mark.parametrize("clips", [(5, 7), (5, 60), (40, 60)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_frechet_of_clips_equals_that_of_their_moments(clips, ddof):
    x, y = normal(clips[0], 12), 2 * normal(clips[1], 12, seed=1) + 0.3
    one, two = Moments.of(x), Moments.of(y)
    by_moments = frechet(one.mean, one.covariance(ddof=ddof), two.mean, two.covariance(ddof=ddof))
    assert frechet_of(x, y, ddof=ddof) == pytest.approx(by_moments, rel=1e-7)


def test_frechet_of_moved_and_scaled_clips_is_known():
    x, shift = normal(30, 8), normal(8, seed=1)
    turned = x @ torch.linalg.qr(normal(8, 8, seed=2)).Q
    spread = x.var(0).sum().item()
    moved = frechet_of(x, x + shift)
    assert moved == pytest.approx(shift.square().sum().item(), rel=1e-12)
    centred = x - x.mean(0)
    assert frechet_of(centred, 3 * centred) == pytest.approx(4 * spread, rel=1e-12)
    assert frechet_of(turned, 2 * turned) == pytest.approx(frechet_of(x, 2 * x), rel=1e-12)


def test_frechet_of_equal_laws_falls_with_the_number_of_clips():
    # the bias that makes values of different N incomparable: about 1 / N
    few, many = (frechet_of(normal(n, 20), normal(n, 20, seed=1)) for n in (100, 1600))
    assert 8 < few / many < 32


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_moments_merged_in_any_order_are_those_of_all_clips(order):
    x = normal(50, 6) + 1e6  # far from zero, where sums of squares would lose every digit
    parts = [x[:1], x[1:20], x[20:20], x[20:]]
    whole = Moments.of(parts[order[0]])
    for i in order[1:]:
        whole = whole.merge(Moments.of(parts[i]))
    assert whole.count == 50
    torch.testing.assert_close(whole.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.covariance(), torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_moments_of_other_lengths_or_of_too_few_clips_are_refused():
    with pytest.raises(ValueError, match=r"features of 3 and of 4 numbers cannot be compared"):
        Moments.of(normal(5, 3)).merge(Moments.of(normal(5, 4)))
    with pytest.raises(ValueError, match=r"ddof 1 of 1 clip is undefined"):
        Moments.of(normal(1, 3)).covariance()


def brute_kernel(x, y):
    def pairs(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        return (pairs(a, a).sum() - pairs(a, a).trace()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * pairs(x, y).mean()).item()


def test_kernel_distance_in_blocks_equals_all_pairs(small_blocks):
    x, y = normal(9, 4), normal(14, 4, seed=1) + 0.5
    assert kernel_distance(x, y) == pytest.approx(brute_kernel(x, y), rel=1e-12)


def test_kernel_distance_of_equal_laws_is_zero_on_average():
    found = torch.tensor([kernel_distance(*normal(2, 20, 5, seed=seed)) for seed in range(200)])
    assert found.mean().abs() < 3 * found.std() / math.sqrt(200)
    assert found.min() < 0


def test_density_and_coverage_of_equal_laws_are_what_theory_says():
    n, m, k = 40, 30, 5
    found = torch.tensor(
        [density_coverage(normal(n, 3, seed=s), normal(m, 3, seed=s + 1000), k=k) for s in range(300)]
    ).mean(0)
    # a ball holds a new point where that is among the k nearest of n: E density = 1
    missed = math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
    assert found.tolist() == pytest.approx([1.0, 1 - missed], abs=0.02)


def test_coverage_falls_when_clips_repeat_and_density_does_not():
    real, fake = normal(100, 4), normal(4, 4, seed=1) / 4
    density, coverage = density_coverage(real, fake.repeat(25, 1))
    assert density > 1 and coverage < 0.5


def test_data_with_duplicates_cover_themselves():
    real = normal(4, 3).repeat_interleave(8, 0)
    assert density_coverage(real, real)[1] == 1.0


def test_neighbours_in_blocks_equal_all_at_once(monkeypatch):
    real, fake = normal(30, 4), normal(25, 4, seed=1)
    whole = density_coverage(real, fake), precision_recall(real, fake)
    monkeypatch.setattr(distribution, "_CELLS", 20)
    assert (density_coverage(real, fake), precision_recall(real, fake)) == whole


def test_precision_and_recall_tell_narrow_from_wide():
    real = normal(300, 3)
    precision, recall = precision_recall(real, real[:150] / 10)
    assert precision > 0.95 and recall < 0.2
    assert precision_recall(real / 10, real[:150]) == pytest.approx(
        tuple(reversed(precision_recall(real[:150], real / 10)))
    )
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_inception_score_lies_between_one_and_the_number_of_classes():
    same, sure = torch.full((60, 7), 1 / 7), torch.eye(7).repeat(10, 1)
    assert inception_score(same, splits=3).tolist() == pytest.approx([1.0] * 3, abs=1e-7)
    assert inception_score(sure, splits=10).tolist() == pytest.approx([7.0] * 10, rel=1e-12)


def test_inception_score_of_zero_probabilities_is_the_limit_of_small_ones():
    p = torch.eye(5, dtype=torch.float64)[torch.tensor([0, 0, 1, 4])]
    assert inception_score(p, splits=1).item() == pytest.approx(
        inception_score(p, splits=1, eps=1e-20).item(), rel=1e-12
    )


def test_inception_score_of_each_part_sees_its_rows_only():
    p = torch.rand(11, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p /= p.sum(1, keepdim=True)
    parts = [p[:3], p[3:7], p[7:]]  # of 11 rows in 3
    alone = [inception_score(part, splits=1).item() for part in parts]
    assert inception_score(p, splits=3).tolist() == pytest.approx(alone, rel=1e-13)


def test_nearest_distance_of_bytes_in_blocks_equals_all_pairs(small_blocks):
    rng = torch.Generator().manual_seed(0)
    samples, reference = (torch.randint(0, 256, (n, 6), generator=rng, dtype=torch.uint8) for n in (11, 17))
    samples[3] = reference[16]
    expected = (samples[:, None].double() - reference[None].double()).square().sum(2).sqrt().min(1).values
    found = nearest_distance(samples, reference)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert found[3] == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: frechet_of(normal(1, 3), normal(5, 3)), "1 clip against 5 clips: .+ at least 2 on each side"),
        (lambda: kernel_distance(normal(5, 3), normal(5, 4)), "of 3 and of 4 numbers cannot be compared"),
        (lambda: frechet_of(normal(5, 3), normal(5, 3) / 0), "features of clip 0 are not finite"),
        (lambda: density_coverage(normal(5, 3), normal(9, 3)), "5 clips have no neighbour number 5; give 6 or more"),
        (lambda: precision_recall(normal(9, 3), normal(9, 3), k=0), "k is 0"),
        (lambda: inception_score(torch.eye(3), splits=4), "4 splits needs as many clips; there are 3 clips"),
        (lambda: nearest_distance(normal(2, 3), normal(0, 3)), "the reference is empty"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()
