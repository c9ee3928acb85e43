# SPDX-License-Identifier: Apache-2.0
"""Learning rates, averaged weights, clipping and logs, each against what its formula says."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from framecast.experiment import EmaConfig, OptimiserConfig, StageConfig
from framecast.system import Group
from framecast.train.ema import Average, ema_decay
from framecast.train.log import Means, Pace, RunLog
from framecast.train.optim import Learner, compiles, learning_rate
from framecast.train.plan import check

RATES = [  # schedule, decay, decay_steps, step, share of the height
    ("constant", 0.0, 0, 99, 1.0),
    ("linear", 0.0, 0, 25, 0.75),
    ("linear", 0.2, 50, 25, 0.6),
    ("linear", 0.2, 50, 80, 0.2),
    ("cosine", 0.0, 0, 50, 0.5),
    ("cosine", 0.1, 0, 100, 0.1),
    ("step", 0.5, 30, 29, 1.0),
    ("step", 0.5, 30, 60, 0.25),
    ("time_based", 0.01, 0, 100, 0.5),
]


@pytest.mark.parametrize(("schedule", "decay", "decay_steps", "step", "share"), RATES)
def test_learning_rate_follows_its_schedule(schedule, decay, decay_steps, step, share):
    config = OptimiserConfig(lr=4.0, schedule=schedule, decay=decay, decay_steps=decay_steps)
    assert learning_rate(config, step, max_steps=100) == pytest.approx(4.0 * share)


RVD_RATE = OptimiserConfig(lr=5e-5, schedule="step", decay=0.8, decay_steps=1, decay_from=100_000, floor=0.2)


def test_learning_rate_of_official_rvd_drops_at_every_step_to_its_floor():
    rates = [learning_rate(RVD_RATE, 100_000 + i, max_steps=10**6) for i in range(-1, 8)]
    told = [5e-5, 4e-5, 3.2e-5, 2.56e-5, 2.048e-5, 1.6384e-5, 1.31072e-5, 1.048576e-5, 1e-5]  # rvd.md, section 5
    assert rates == pytest.approx(told, rel=1e-12)
    assert learning_rate(RVD_RATE, 0, max_steps=10**6) == 5e-5
    assert learning_rate(RVD_RATE, 10**6 - 1, max_steps=10**6) == pytest.approx(1e-5)


def test_learning_rate_of_the_rvd_paper_ends_at_two_fifths():
    config = replace(RVD_RATE, decay_steps=100_000, floor=0.4)
    steps = {99_999: 1.0, 100_000: 0.8, 199_999: 0.8, 200_000: 0.64, 300_000: 0.512, 400_000: 0.4096, 500_000: 0.4}
    assert [learning_rate(config, s, max_steps=10**6) / 5e-5 for s in steps] == pytest.approx(list(steps.values()))


def test_steps_drop_first_after_decay_steps_unless_told_otherwise():
    config = OptimiserConfig(lr=1.0, schedule="step", decay=0.5, decay_steps=3)
    assert [learning_rate(config, s, max_steps=9) for s in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert [learning_rate(replace(config, decay_from=1), s, max_steps=9) for s in range(5)] == [1, 0.5, 0.5, 0.5, 0.25]


def test_warmup_rises_linearly_to_the_height():
    config = OptimiserConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(config, s, max_steps=9) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def module(value: float) -> nn.Module:
    made = nn.BatchNorm1d(2)
    with torch.no_grad():
        made.weight.fill_(value)
        made.running_mean.fill_(value)
    return made


def test_average_follows_the_documented_sum():
    net, config = module(0.0), EmaConfig(decay=0.7, warmup=3.0)
    average, expected = Average({"net": net}, config), 0.0
    for n, value in enumerate((1.0, 5.0, -2.0, 3.0)):
        net.weight.data.fill_(value)
        average.update("net", n)
        expected += (1 - min(0.7, (1 + n) / (3 + n))) * (value - expected)
    with average.in_place():
        assert net.weight[0].item() == pytest.approx(expected)
    assert net.weight[0].item() == 3.0


def test_average_is_a_copy_until_its_start_and_moves_every_few_updates_from_there():
    net, config, expected, seen = module(0.0), EmaConfig(decay=0.75, warmup=0.0, every=3, start=4), 0.0, []
    average = Average({"net": net}, config)
    for n in range(11):
        net.weight.data.fill_(value := 0.1 * (n + 1) ** 2)
        net.running_mean.fill_(value)
        average.update("net", n)
        if n < 4:
            expected = value
        elif n in (6, 9):
            expected += 0.25 * (value - expected)
        with average.in_place():
            assert net.weight[0].item() == pytest.approx(expected), n
            assert net.running_mean[0].item() == pytest.approx(value)  # buffers are not averaged
            seen.append(net.weight[0].item())
    assert len(set(seen)) == 6  # four copies and two averages


def test_copy_before_the_start_is_the_weights_bit_for_bit():
    net = nn.Linear(50, 50)
    average = Average({"net": net}, EmaConfig(decay=0.99, start=1))
    fresh = torch.randn(50, 50, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-25.0, 25.0)
    net.weight.data.copy_(fresh)
    average.update("net", 0)
    net.weight.data.zero_()
    with average.in_place():
        assert torch.equal(net.weight, fresh)


def test_warmup_of_an_average_counts_from_its_own_first_update():
    config = EmaConfig(decay=0.99, warmup=10.0, every=5, start=12)
    assert [ema_decay(config, n) for n in (11, 12, 15, 20, 25)] == [0.0, 1.0, 1 / 10, 2 / 11, 3 / 12]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"optimiser": OptimiserConfig(floor=1.5)}, "s.optimiser.floor is 1.5; a share of lr"),
        ({"optimiser": OptimiserConfig(decay_from=-1)}, "s.optimiser.decay_from is -1; it must not be below 0"),
        ({"optimiser": OptimiserConfig(schedule="step", decay=1.2)}, "s.optimiser.decay is 1.2; a factor per drop"),
        ({"ema": EmaConfig(every=0)}, "s.ema: .* every must be at least 1"),
        ({"ema": EmaConfig(start=-1)}, "s.ema: .* start must not be below 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(StageConfig(**change), where="s")


def test_average_copies_buffers():
    net = module(0.0)
    average = Average({"net": net}, EmaConfig(decay=0.9))
    net.running_mean.fill_(6.0)
    net.num_batches_tracked += 4
    average.update("net", 0)
    net.running_mean.fill_(7.0)
    with average.in_place():
        assert (net.running_mean[0].item(), net.num_batches_tracked.item()) == (6.0, 4)


def test_shared_weight_is_averaged_once():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    average = Average({"net": net}, EmaConfig(decay=0.5, warmup=0.0))
    before = net[0].weight.detach().clone()
    net[0].weight.data += 1.0
    average.update("net", 0)
    with average.in_place():
        torch.testing.assert_close(net[1].weight.detach(), before + 0.5)
    torch.testing.assert_close(net[1].weight.detach(), before + 1.0)


def test_no_decay_keeps_no_average():
    net = module(1.0)
    average = Average({"net": net}, EmaConfig(decay=0.0))
    assert average.modules == {}
    with average.in_place():
        assert net.weight[0].item() == 1.0


def test_gradients_are_clipped_module_by_module():
    small, large = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    learner = Learner(None, Group({"small": small, "large": large}, OptimiserConfig(clip_norm=1.0)))
    small.weight.grad, large.weight.grad = torch.tensor([[0.5]]), torch.tensor([[12.0]])
    assert learner.clip().item() == pytest.approx(math.hypot(0.5, 12.0))
    assert small.weight.grad.item() == 0.5
    assert large.weight.grad.item() == pytest.approx(1.0, abs=1e-5)


def test_zero_clip_norm_leaves_gradients_alone():
    net = nn.Linear(1, 1, bias=False)
    learner = Learner(None, Group({"net": net}, OptimiserConfig(clip_norm=0.0)))
    net.weight.grad = torch.tensor([[1e6]])
    assert learner.clip().item() == pytest.approx(1e6)
    assert net.weight.grad.item() == 1e6


@pytest.mark.parametrize(("choice", "steps", "expected"), [("off", 10**6, False), ("auto", 10, False)])
def test_short_runs_are_not_compiled(choice, steps, expected):
    assert compiles(choice, device=torch.device("cpu"), max_steps=steps) is expected


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not compiles("auto", device=torch.device("cpu"), max_steps=10**6)
    with pytest.raises(ValueError, match="no C\\+\\+ compiler was found; install"):
        compiles("on", device=torch.device("cpu"), max_steps=10)


def rows(path):
    with open(path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_means_start_anew_once_taken():
    means = Means()
    means.add({"loss": 1.0})
    means.add({"loss": 4.0, "other": 2.0})
    assert means.take() == {"loss": 2.5, "other": 2.0}
    assert means.take() == {}


def test_new_column_keeps_older_lines(tmp_path):
    log = RunLog(tmp_path)
    log.metrics(1, {"loss": 0.5})
    log.metrics(2, {"loss": 0.25, "validation_loss": 3.0})
    log.close()
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5", "0.25"]
    assert [row["validation_loss"] for row in rows(tmp_path)] == ["", "3"]


def test_pace_averages_seconds_per_step_after_the_first_steps():
    pace = Pace(skip=2)
    assert [pace.tick(seconds) for seconds in (100.0, 150.0)] == [0.0, 0.0]
    assert pace.tick(152.0) == pytest.approx(1 / 2)
    assert pace.tick(164.0) == pytest.approx(1 / (0.95 * 2 + 0.05 * 12))


def test_half_written_line_is_dropped_on_resume(tmp_path):
    log = RunLog(tmp_path)
    log.metrics(1, {"loss": 0.5})
    log.metrics(2, {"loss": 0.25})
    log.close()
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("\n,")
    log = RunLog(tmp_path, step=1)
    log.metrics(2, {"loss": 0.125})
    log.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("1", "0.5"), ("2", "0.125")]
