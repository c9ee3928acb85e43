# SPDX-License-Identifier: Apache-2.0
"""What our pages say of the RVD paper, computed: its claims about its own tables, its misprints, its counts."""

from collections.abc import Mapping

import pytest
import torch

from framecast.diffusion.process import posterior, q_sample, x_0_from_eps
from framecast.diffusion.schedule import cosine
from framecast.evaluate.published import rvd as tables
from framecast.systems import preset
from framecast.systems.rvd.published import PRESETS

SETS = ("kth", "bair", "sim", "city")
METRICS = ("fvd", "lpips", "crps")
METHODS = {"": "RVD (2+6)", "-vd": "VD (2+6)", "-simple": "SimpleRVD (2+6)", "-2to3": "RVD (2+3)"}
PRESET_OF = {"kth": "kth64", "bair": "bair64", "sim": "simulation128", "city": "cityscapes128"}


def column(table: Mapping[str, tuple[float, ...]], metric: str, key: str) -> dict[str, float]:
    """Method -> value of one metric on one set; lower is better."""
    place = 4 * METRICS.index(metric) + SETS.index(key)
    return {method: values[place] for method, values in table.items()}


def led_by(table: Mapping[str, tuple[float, ...]], metric: str, method: str) -> list[str]:
    """Sets on which the method is not worse than any other of the table."""
    columns = {key: column(table, metric, key) for key in SETS}
    return [key for key, values in columns.items() if values[method] == min(values.values())]


@pytest.mark.parametrize(
    "metric, sets", [("fvd", ["kth", "bair", "sim", "city"]), ("lpips", ["bair", "city"]), ("crps", ["sim", "city"])]
)
def test_rvd_leads_where_its_table_says(metric, sets):
    """Section 4.5 says 3 of 4 of LPIPS and of CRPS."""
    assert led_by(tables._TABLE_1, metric, "RVD") == sets


@pytest.mark.parametrize(
    "metric, method, sets",
    [
        ("fvd", "VD (2+6)", []),
        ("lpips", "VD (2+6)", ["kth"]),
        ("crps", "VD (2+6)", ["kth", "bair"]),
        ("lpips", "SimpleRVD (2+6)", ["kth"]),
        ("crps", "SimpleRVD (2+6)", ["kth"]),
        ("lpips", "RVD (2+3)", ["city"]),
    ],
)
def test_ablations_lead_where_table_2_says(metric, method, sets):
    pair = {name: tables._TABLE_2[name] for name in (method, "RVD (2+6)")}
    assert led_by(pair, metric, method) == sets


def test_simple_has_the_best_crps_of_table_2_on_kth():
    values = column(tables._TABLE_2, "crps", "kth")
    assert min(values, key=values.__getitem__) == "SimpleRVD (2+6)"


@pytest.mark.parametrize("one, two", [("RVD", "RVD (2+6)"), ("IVRNN", "IVRNN (4+8)")])
def test_tables_agree_but_for_the_third_decimal_of_lpips(one, two):
    """Which table 1 cuts in some places (RVD on KTH: 0.066 to 0.06) and rounds in others (IVRNN on Cityscapes)."""
    first, second = tables._TABLE_1[one], tables._TABLE_2[two]
    assert first[:4] + first[8:] == second[:4] + second[8:]
    assert first[4:8] == pytest.approx(second[4:8], rel=0, abs=0.0099)


@pytest.mark.parametrize("kind, method", METHODS.items())
@pytest.mark.parametrize("key", SETS)
def test_preset_carries_the_values_of_its_protocol(key, kind, method):
    told = preset(f"rvd/{PRESET_OF[key]}{kind}").published[f"rvd-ablation-{key}"]
    values = [float(value) for value in told.removeprefix("FVD, LPIPS, CRPS ").split(", ")]
    assert values == [column(tables._TABLE_2, metric, key)[method] for metric in METRICS]


def test_every_preset_can_be_built():
    assert all(preset(f"rvd/{name}").system == "rvd" for name in PRESETS)


@pytest.fixture
def step():
    """A noisy residual, its noise and its clean state in the middle of the published schedule."""
    schedule, n = cosine(1600), 700
    y_0, eps = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return schedule, n, q_sample(schedule, y_0, n, eps), eps


def less_noise(schedule, n, y_n, eps):
    """y_n - beta_n / sqrt(1 - alpha_bar_n) eps, which Eq. A6 and algorithm 2 scale differently."""
    return y_n - schedule.beta[n] / (1 - schedule.alpha_bar[n]).sqrt() * eps


def test_equation_a6_is_the_posterior_mean(step):
    schedule, n, y_n, eps = step
    mean = posterior(schedule, x_0_from_eps(schedule, y_n, n, eps), y_n, n).mean
    assert torch.allclose(less_noise(*step) / (1 - schedule.beta[n]).sqrt(), mean, rtol=0, atol=1e-12)


def test_algorithm_2_as_printed_is_no_reverse_step(step):
    """Its factor in front grows to 3e4, and it scales the noise with the variance, which is not its root."""
    schedule, n, y_n, eps = step
    moments = posterior(schedule, x_0_from_eps(schedule, y_n, n, eps), y_n, n)
    printed = less_noise(*step) / schedule.alpha_bar[n].sqrt()
    spread = (1 - schedule.alpha_bar[n - 1]) / (1 - schedule.alpha_bar[n]) * schedule.beta[n]
    assert (printed - moments.mean).abs().mean() > 0.2 * moments.mean.abs().mean()
    assert spread == pytest.approx(float(moments.variance)) and spread < 0.1 * moments.variance.sqrt()
    assert 1 / schedule.alpha_bar[-1].sqrt() == pytest.approx(32465.9, rel=1e-4)
