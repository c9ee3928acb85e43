# SPDX-License-Identifier: Apache-2.0
"""Learning rates, averaged weights, clipping and logs, each against what its formula says."""

import csv
import math

import pytest
import torch
from torch import nn

from framecast.experiment import EmaConfig, OptimiserConfig
from framecast.system import Group
from framecast.train.ema import Average
from framecast.train.log import Means, Pace, RunLog
from framecast.train.optim import Learner, compiles, learning_rate

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
