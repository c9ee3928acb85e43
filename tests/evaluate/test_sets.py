"""Figures of sets: value, floor, intervals from folds that share no unit."""

import math

import pytest
import torch

from framecast.evaluate.sets import Features, compared, frechet_figures, inception_figure, one, random_figures


def features(count, *, shift=0.0, units=None, seed=0, length=3):
    values = torch.randn(count, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    return Features(values, list(range(count)) if units is None else units)


def test_folds_and_halves_share_no_unit():
    units = [i % 5 for i in range(20)]
    every = Features(torch.arange(20.0, dtype=torch.float64)[:, None], units)
    parts = [every.part(i, 4) for i in range(4)]
    owners = [{int(v) % 5 for v in part.flatten()} for part in parts]
    assert sum(map(len, parts)) == 20 and sum(map(len, owners)) == 5


def test_value_of_equal_laws_is_near_the_floor_and_of_shifted_ones_above():
    real, same, far = features(400), features(400, seed=1), features(400, shift=1.0, seed=1)
    near, away = (frechet_figures("fvd", real, other)["fvd"] for other in (same, far))
    assert near.value < 2 * near.floor and away.value > 20 * away.floor
    assert away.low < 3.0 < away.high and away.n_real == away.n_fake == 400  # |shift|² = 3
    assert near.low == 0.0 or near.low > 0
    kernel = frechet_figures("r-fvd", real, same)
    assert kernel["r-kvd"].label == "R-KVD" and kernel["r-kvd"].low < 0 < kernel["r-kvd"].high


def test_cross_validation_gives_the_mean_of_the_folds():
    real, other = features(60), features(60, shift=1.0, seed=1)
    whole, folded = (frechet_figures("fvd", real, other, folds=folds)["fvd"] for folds in (1, 2))
    assert len(folded.folds) == 2 and folded.value == pytest.approx(sum(folded.folds) / 2)
    assert folded.value != whole.value
    few = frechet_figures("fvd", features(3), features(3, seed=1), folds=2)["fvd"]
    assert few.folds == () and "too few clips for 2 folds" in few.note and "singular" in few.note


def test_interval_needs_folds_and_stays_within_bounds():
    def always(value):
        return one(lambda a, b: value(len(a)))

    (flat,) = compared(["x"], always(lambda n: 0.5), features(8), features(8))
    assert flat.low == flat.high == 0.5
    (wild,) = compared(["x"], lambda a, b: (a.mean().item(),), features(8), features(8), bounds=((0.0, 0.1),))
    assert wild.low >= 0.0 and wild.high <= 0.1
    lonely = frechet_figures("fvd", features(4, units=[0] * 4), features(4, seed=1))["fvd"]
    assert lonely.value > 0 and lonely.low is lonely.high is lonely.plain()["floor"] is None


def test_inception_score_tells_its_splits():
    sure = torch.eye(5, dtype=torch.float64).repeat(20, 1)
    figure = inception_figure(None, sure, splits=4, eps=0.0)
    assert figure.value == pytest.approx(5.0) and figure.n_real == 0 and figure.floor is None
    assert "4 splits" in figure.note and "floor" not in figure.note
    assert "floor" in inception_figure(sure, sure, splits=4, eps=0.0).note


def test_few_clips_leave_density_and_coverage_out():
    real, other = features(5, length=320), features(5, length=320, seed=1)
    assert set(random_figures(real, other)) == {"rf3d-v1 appearance", "rf3d-v1 motion"}
    told = random_figures(features(40, length=320), features(40, length=320, seed=1))
    coverage = told["rf3d-v1 motion coverage"]
    assert coverage.high <= 1.0 and coverage.better == "higher" and "512 clips" in told["rf3d-v1 motion"].note
    assert math.isfinite(coverage.value)
