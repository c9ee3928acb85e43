"""Noise schedules and the choice of levels."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.diffusion import schedule as schedules
from framecast.diffusion.schedule import Schedule, descending, kept_levels, named, snr_levels, trailing_levels

NAMES = ["linear", "scaled_linear", "cosine"]


@pytest.mark.parametrize("name", NAMES)
def test_tables_obey_their_definitions(name):
    process = named(name, 250)
    running = 1.0
    for t, beta in enumerate(process.beta.tolist()):
        before, running = running, running * (1 - beta)
        assert process.alpha_bar[t] == pytest.approx(running, rel=1e-12)
        assert process.alpha_bar_prev[t] == pytest.approx(before, rel=1e-12)
        # by Bayes' rule: precisions add up
        if t:
            precision = (1 - beta) / beta + 1 / (1 - before)
            assert process.posterior_variance[t] == pytest.approx(1 / precision, rel=1e-9)
    assert process.posterior_variance[0] == 0


def test_tables_are_float64_on_the_cpu():
    process = schedules.linear(100)
    for table in (process.alpha_bar, process.posterior_variance, process.posterior_log_variance, process.half_log_snr):
        assert table.dtype == torch.float64 and table.shape == (100,)


@pytest.mark.parametrize("levels", [1000, 4000])
def test_linear_end_points_scale_with_the_number_of_levels(levels):
    beta = schedules.linear(levels).beta
    assert beta[0] == pytest.approx(0.1 / levels, rel=1e-12) and beta[-1] == pytest.approx(20 / levels, rel=1e-12)
    assert torch.allclose(beta.diff(), beta.diff()[0], rtol=1e-9)


def test_scaled_linear_is_linear_in_the_root_and_ends_at_pvdms_alpha_bar():
    process = schedules.scaled_linear(1000)
    steps = process.beta.sqrt().diff()
    assert torch.allclose(steps, steps[0], rtol=1e-9)
    assert process.alpha_bar[0] == pytest.approx(0.9985, abs=1e-12)
    assert process.alpha_bar[-1] == pytest.approx(1.4230e-4, rel=1e-4)


def test_cosine_of_1600_levels_has_rvds_values():
    process = schedules.cosine(1600)
    assert process.beta[[0, 1597, 1598, 1599]].tolist() == pytest.approx([2.5234e-5, 0.55556, 0.75, 0.999], rel=3e-5)
    assert process.alpha_bar[[0, 799]].tolist() == pytest.approx([0.99997477, 0.49384], rel=1e-5)
    assert 1 / math.sqrt(process.alpha_bar[-1]) == pytest.approx(32465.9, abs=0.1)


@pytest.mark.parametrize("levels", [50, 1000])
def test_cosine_follows_the_squared_cosine_before_the_cut(levels):
    def signal(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    process = schedules.cosine(levels)
    for t in (0, levels // 3, levels - 2):
        assert process.alpha_bar[t] == pytest.approx(signal((t + 1) / levels) / signal(0), rel=1e-9)
    assert process.beta[-1] == 0.999


def test_log_variances_replace_the_entry_that_is_not_finite():
    process = schedules.linear(30)
    small, large = process.fixed_log_variance("small"), process.fixed_log_variance("large")
    assert small[0] == large[0] == process.posterior_variance[1].log()
    assert torch.equal(small[1:], process.posterior_variance[1:].log())
    assert torch.equal(large[1:], process.beta[1:].log())


@pytest.mark.parametrize("kind", ["large", "small"])
def test_one_level_process_has_finite_variances(kind):
    assert schedules.cosine(50).respace([49]).fixed_log_variance(kind).isfinite().all()


def test_respacing_keeps_alpha_bar_and_recomputes_the_rest():
    full = schedules.linear(1000)
    kept = kept_levels(1000, 5)
    process = full.respace(kept)
    assert torch.allclose(process.alpha_bar, full.alpha_bar[kept], rtol=1e-13)
    assert process.beta[1] == pytest.approx(1 - float(full.alpha_bar[250] / full.alpha_bar[0]), rel=1e-12)
    assert process.fixed_log_variance("large")[3] == process.beta[3].log()


def test_respacing_to_all_levels_changes_nothing():
    full = schedules.cosine(40)
    assert torch.equal(full.respace(range(40)).beta, full.beta)


@pytest.mark.parametrize("kept", [[], [3, 3], [4, 2], [-1, 5], [0, 1000]])
def test_respacing_refuses_levels_that_do_not_rise_within_the_schedule(kept):
    with pytest.raises(ValueError, match="0 to 999"):
        schedules.linear(1000).respace(kept)


@pytest.mark.parametrize(
    ("levels", "steps", "kept"),
    [
        (1000, 5, [0, 250, 500, 749, 999]),
        (1000, "5", [0, 250, 500, 749, 999]),
        (1000, "3", [0, 500, 999]),  # 499.5 goes to the even neighbour
        (1000, "ddim5", [0, 200, 400, 600, 800]),
        (400, "5", [0, 100, 200, 299, 399]),
        (300, "10,15,20", None),
        (10, "2,1,2", [0, 3, 4, 7, 9]),  # sections of 4, 3 and 3 levels
        (7, "", [0, 1, 2, 3, 4, 5, 6]),
        (7, 7, [0, 1, 2, 3, 4, 5, 6]),
        (1000, 1, [999]),
    ],
)
def test_kept_levels_are_the_published_ones(levels, steps, kept):
    found = kept_levels(levels, steps)
    if kept is None:
        sections = [[level for level in found if 100 * i <= level < 100 * i + 100] for i in range(3)]
        assert [len(section) for section in sections] == [10, 15, 20]
        assert all(section[0] == 100 * i and section[-1] == 100 * i + 99 for i, section in enumerate(sections))
    else:
        assert found == kept


@settings(deadline=None)
@given(st.integers(2, 2000), st.data())
def test_kept_levels_rise_from_the_first_to_the_last(levels, data):
    steps = data.draw(st.integers(2, levels))
    kept = kept_levels(levels, steps)
    assert len(kept) == steps and kept[0] == 0 and kept[-1] == levels - 1
    assert all(low < high for low, high in pairwise(kept))


@pytest.mark.parametrize("steps", [0, -3, "five", "ddim", "3,", "ddim0", "2.5"])
def test_unreadable_steps_are_refused(steps):
    with pytest.raises(ValueError, match="cannot be read"):
        kept_levels(1000, steps)


def test_too_many_steps_are_refused_with_the_most_possible():
    with pytest.raises(ValueError, match="at most 100"):
        kept_levels(100, 101)


def test_impossible_stride_is_refused():
    with pytest.raises(ValueError, match="exactly 600"):
        kept_levels(1000, "ddim600")


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [(100, [9, 19], [989, 999]), (20, [49, 99], [949, 999]), (400, [1, 4, 6], [991, 994, 996, 999]), (1, [999], [999])],
)
def test_trailing_levels_are_pvdms(steps, first, last):
    kept = trailing_levels(1000, steps)
    assert kept[: len(first)] == first and kept[-len(last) :] == last


@settings(deadline=None)
@given(st.integers(1, 2000), st.data())
def test_trailing_levels_rise_to_the_noisiest(levels, data):
    steps = data.draw(st.integers(1, levels))
    kept = trailing_levels(levels, steps)
    assert len(kept) == steps and kept[0] >= 0 and kept[-1] == levels - 1
    assert all(low < high for low, high in pairwise(kept))


@pytest.mark.parametrize("steps", [0, 101])
def test_impossible_numbers_of_trailing_levels_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}; it must lie between 1 and the 100 noise levels"):
        trailing_levels(100, steps)


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.integers(21, 400), st.data())
def test_snr_levels_rise_and_have_the_number_asked_for(name, levels, data):
    steps = data.draw(st.integers(2, levels))
    kept = snr_levels(named(name, levels), steps)
    assert len(kept) == steps and kept[0] >= 0 and kept[-1] == levels - 1
    assert all(low < high for low, high in pairwise(kept))


def test_snr_levels_are_equally_spaced_in_the_log_ratio():
    process = schedules.linear(100_000)
    gaps = process.half_log_snr[snr_levels(process, 12)].diff()
    assert torch.allclose(gaps, gaps.mean(), rtol=2e-2)


def test_descending_ends_in_the_clean_state():
    assert descending([0, 200, 800]) == [800, 200, 0, -1]


def test_unknown_schedule_name_lists_the_known():
    with pytest.raises(ValueError, match="scaled_linear"):
        named("quadratic", 10)


@pytest.mark.parametrize("levels", [10, 20])
def test_linear_schedule_of_too_few_levels_is_refused(levels):
    with pytest.raises(ValueError, match="more levels"):
        schedules.linear(levels)


@pytest.mark.parametrize("beta", [torch.rand(3), torch.rand(2, 2, dtype=torch.float64), torch.empty(0).double()])
def test_schedule_refuses_what_is_no_float64_vector(beta):
    with pytest.raises(ValueError, match="vector of float64"):
        Schedule(beta)
