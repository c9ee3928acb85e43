"""Bootstrap intervals over units: theorems on what they must hold."""

import numpy as np
import pytest

from framecast.evaluate.intervals import Interval, bootstrap


def test_mean_weighs_units_not_windows():
    assert bootstrap([0.0, 0.0, 0.0, 4.0], ["a", "a", "a", "b"]).mean == 2.0


def test_interval_of_normal_values_is_that_of_the_theorem():
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 2.0, 400)
    found = bootstrap(values.tolist(), range(400))
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_coverage_is_about_the_level():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(300):
        found = bootstrap(rng.exponential(1.0, 32).tolist(), range(32), redraws=500, seed=trial)
        inside += found.low <= 1.0 <= found.high
    assert 0.86 <= inside / 300 <= 0.97  # the percentile method is a little narrow at 32 units


def test_copies_of_a_window_do_not_narrow_the_interval():
    values = [1.0, 2.0, 4.0, 8.0]
    once, thrice = bootstrap(values, range(4)), bootstrap(values * 3, [*range(4)] * 3)
    assert once == thrice


def test_one_unit_has_no_interval_and_excludes_nothing():
    one = bootstrap([1.0, 3.0], ["a", "a"])
    assert one.plain() == {"mean": 2.0, "low": None, "high": None, "units": 1}
    assert not one.excludes_zero and str(one) == "2 (one unit, no interval)"


def test_same_seed_same_interval():
    values = list(np.random.default_rng(2).normal(size=20))
    assert bootstrap(values, range(20)) == bootstrap(values, range(20))


def test_only_an_interval_on_one_side_excludes_zero():
    assert Interval(1.0, 0.1, 2.0, 5).excludes_zero and Interval(-1.0, -2.0, -0.1, 5).excludes_zero
    assert not Interval(0.1, -0.2, 0.4, 5).excludes_zero


@pytest.mark.parametrize(("values", "units"), [([], []), ([1.0], ["a", "b"])])
def test_values_without_their_units_are_refused(values, units):
    with pytest.raises(ValueError, match="one unit per value"):
        bootstrap(values, units)
