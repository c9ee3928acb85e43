"""Figures of parts put together equal those of the whole, in one process and over several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framecast.metrics.accumulate import Counts, Mean, over_processes
from framecast.metrics.distribution import Moments

ROOT = Path(__file__).parents[2]


def curves(count: int) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e5


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1)])
def test_mean_and_deviation_of_parts_are_those_of_all_windows(order):
    x = curves(4)
    whole = Mean()
    for i in order:
        whole = whole.merge(Mean.of({"crps": x[i], "psnr": float(i)}))
    torch.testing.assert_close(whole.mean("crps"), x.mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(whole.sd("crps"), x.std(0), rtol=1e-9, atol=0)
    assert whole.mean("psnr").item() == 1.5 and whole.count("psnr") == 4


def test_weights_count_a_window_as_often_as_they_say():
    twice = Mean.of({"a": 1.0}, weight=2.0).merge(Mean.of({"a": 4.0}))
    assert twice.mean("a").item() == 2.0


def test_a_figure_that_some_windows_lack_is_the_mean_of_the_others():
    mean = Mean.of({"a": 1.0}).merge(Mean.of({"b": 5.0})).merge(Mean.of({"a": 3.0}))
    assert (mean.mean("a").item(), mean.count("a"), mean.mean("b").item(), mean.count("b")) == (2.0, 2, 5.0, 1)
    assert mean.sd("b").isnan() and mean.count("c") == 0


def test_what_does_not_fit_together_is_one_sentence():
    with pytest.raises(ValueError, match=r"crps has the shape \(6,\) in one window and \(5,\) in another"):
        Mean.of({"crps": curves(1)[0]}).merge(Mean.of({"crps": curves(1)[0, :5]}))
    with pytest.raises(ValueError, match="draw equally many samples"):
        Counts(torch.zeros(3, dtype=torch.int64)).merge(Counts(torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="weight of a window is 0"):
        Mean.of({"a": 1.0}, weight=0.0)


def test_one_process_keeps_what_it_has():
    counts = Counts(torch.tensor([1, 2]))
    assert over_processes(counts) is counts


RANK = """
import json, sys
import torch
from torch import distributed
from framecast.metrics.accumulate import Counts, Mean, over_processes
from framecast.metrics.distribution import Moments
from tests.metrics.test_accumulate import curves

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mine = curves(9)[[0, 1, 2, 3, 4, 5, 6] if rank == 0 else [7, 8]]
mean = Mean()
for row in mine:
    mean = mean.merge(Mean.of({"crps": row, f"of {rank}": 1.0}))
mean, moments = over_processes(mean), over_processes(Moments.of(mine))
nothing = over_processes(Moments.of(mine[:0]))
counts = over_processes(Counts(torch.tensor([len(mine), 1])))
told = [mean.mean("crps"), mean.sd("crps"), moments.mean, moments.covariance(), counts.counts]
told = [x.tolist() for x in told] + [mean.count("of 0"), mean.count("of 1"), moments.count, nothing.count]
open(f"{folder}/{rank}.json", "w").write(json.dumps(told))
distributed.destroy_process_group()
"""


def test_two_processes_hold_the_figures_of_all_windows_in_equal_bits(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(tmp_path / "rank.py")]
    running = [
        subprocess.Popen([*words, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said[-2000:]
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in range(2))
    assert first == second
    mean, sd, middle, covariance, counts, *numbers = json.loads(first)
    x = curves(9)
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), x.mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(torch.tensor(sd, dtype=torch.float64), x.std(0), rtol=1e-9, atol=0)
    one = Moments.of(x)
    torch.testing.assert_close(torch.tensor(middle, dtype=torch.float64), one.mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(torch.tensor(covariance, dtype=torch.float64), one.covariance(), rtol=0, atol=1e-9)
    assert counts == [9, 2] and numbers == [7, 2, 9, 0]
