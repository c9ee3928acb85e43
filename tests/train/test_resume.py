# SPDX-License-Identifier: Apache-2.0
"""A run that stopped continues as if it had not, bit for bit; batch layouts agree."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from framecast.checkpoint import load_tensors
from framecast.experiment import EmaConfig, OptimiserConfig, to_yaml
from framecast.train.run import Silent, Stopped, run
from tests.tiny import TINY, change, write_clips
from tests.train.duel import DuelExperiment

TWO = """
import sys
from pathlib import Path
from framecast.train.plan import read_config
from framecast.train.run import run
from tests.tiny import register
from tests.train.duel import DUEL
register("duel", DUEL)
stage, from_model = (word or None for word in sys.argv[1:])
run(read_config(Path("e.yaml")), stage=stage, from_model=from_model, out="two", device="cpu", devices=2)
"""
ROOT = Path(__file__).parents[2]
# Adam divides by the root of second moments: where those are tiny, rounding would become a whole step
CALM = OptimiserConfig(lr=5e-3, eps=1e-2)


class StopAt(Silent):
    """A user who presses Ctrl-C while step `at` runs."""

    def __init__(self, at: int):
        self.at = at

    def step(self, step, max_steps, loss, rate):
        if step == self.at - 1:
            os.kill(os.getpid(), signal.SIGINT)


def experiments(tmp_path):
    clips = write_clips(tmp_path / "clips", frames=14)
    data = {"dir": str(clips), "flip": True, "crop": "random"}
    pvdm = change(TINY["pvdm"](), data=data, preview_every=None)
    fresh = {"cache": False, "draw": "step", "accumulate": 2}
    coded = change(TINY["video_vqvae"](), data=data, preview_every=None)
    calm = replace(coded.model, bottom_prior=replace(coded.model.bottom_prior, attention_dropout=0.0))
    return {
        "toy": change(TINY["toy"](), data=data, accumulate=2),
        # stopped where the average is no copy any more and older than the weights
        "duel": change(
            DuelExperiment(),
            data=data,
            accumulate=2,
            ema=EmaConfig(decay=0.9, every=2, start=2),
            optimiser=OptimiserConfig(lr=0.01, schedule="step", decay=0.5, decay_steps=2, decay_from=4, floor=0.2),
        ),
        "ramvid": change(TINY["ramvid"](), data=data),
        "rvd": change(TINY["rvd"](), data=data),
        # stopped while discriminators learn
        "pvdm": of_stage(pvdm, "autoencoder", accumulate=2, adversarial_from=2, discriminator_optimiser=CALM),
        "pvdm/diffusion": of_stage(pvdm, "diffusion", **fresh),
        "pvdm/diffusion, kept": change(pvdm, data={"flip": False, "crop": "center"}),
        # stopped after codes were put elsewhere
        "video_vqvae": of_stage(coded, "tokenizer", accumulate=2, restart=0.9),
        "video_vqvae/tokenizer": of_stage(coded, "tokenizer", restart=0.0),  # which depend on the layout of a batch
        "video_vqvae/top_prior": of_stage(coded, "top_prior", accumulate=2, cache=False),
        "video_vqvae/bottom_prior": of_stage(replace(coded, model=calm), "bottom_prior", cache=False, slices=2),
    }


def of_stage(experiment, name, **settings):
    stages = experiment.stages
    return replace(experiment, stages=replace(stages, **{name: replace(getattr(stages, name), **settings)}))


def beginning(name, experiment, tmp_path):
    """The stage that a name of `experiments` means, and the model it stands on."""
    stage = name.partition("/")[2].partition(",")[0]
    if not stage:
        return {"stage": None, "from_model": None}
    if stage == next(iter(vars(experiment.stages))):
        return {"stage": None, "from_model": None}
    first = change(experiment, max_steps=1, preview_every=None)
    return {"stage": stage, "from_model": run(first, out=tmp_path / "first", device="cpu").dir}


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    return {f"{file.stem}/{name}": t for file in files for name, t in load_tensors(file).items()}


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "clips_per_second")} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    "system",
    [
        *("toy", "duel", "ramvid", "rvd", "pvdm", "pvdm/diffusion", "pvdm/diffusion, kept"),
        *("video_vqvae", "video_vqvae/top_prior"),
    ],
)
def test_stop_and_resume_equals_a_run_without_pause_bit_for_bit(system, tmp_path):
    experiment = experiments(tmp_path)[system]
    begin = beginning(system, experiment, tmp_path)
    whole = run(experiment, **begin, out=tmp_path / "whole", device="cpu")
    with pytest.raises(Stopped) as stopped:
        run(experiment, **begin, out=tmp_path / "parts", device="cpu", progress=StopAt(5))
    assert stopped.value.checkpoint.name == "step_00000005"
    resumed = run(None, resume=tmp_path / "parts", device="cpu")

    ours, theirs = tensors_of(resumed.checkpoint), tensors_of(whole.checkpoint)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert resumed.loss == whole.loss


def test_resume_does_not_depend_on_the_global_generator(tmp_path):
    experiment = experiments(tmp_path)["toy"]
    whole = run(experiment, out=tmp_path / "whole", device="cpu")
    with pytest.raises(Stopped):
        run(experiment, out=tmp_path / "parts", device="cpu", progress=StopAt(4))
    torch.manual_seed(99)  # what the process did before does not matter
    torch.randn(7)
    resumed = run(None, resume=tmp_path / "parts", device="cpu")
    ours, theirs = tensors_of(resumed.checkpoint), tensors_of(whole.checkpoint)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_metrics_beyond_the_checkpoint_are_cut_off_not_doubled(tmp_path):
    experiment = change(experiments(tmp_path)["toy"], max_steps=8, checkpoint_every=4, log_every=1)
    run(experiment, out=tmp_path / "run", device="cpu")
    for file in (tmp_path / "run" / "checkpoints" / "step_00000008").iterdir():  # as if it had crashed at step 7
        file.unlink()
    (tmp_path / "run" / "checkpoints" / "step_00000008").rmdir()
    run(None, resume=tmp_path / "run", device="cpu")
    assert [int(row["step"]) for row in rows_of(tmp_path / "run")] == list(range(1, 9))


def test_accumulated_micro_batches_equal_one_batch_up_to_rounding(tmp_path):
    base = change(experiments(tmp_path)["toy"], accumulate=1)
    losses, weights, moments = [], [], []
    for accumulate in (1, 2, 4):
        done = run(change(base, accumulate=accumulate), out=tmp_path / str(accumulate), device="cpu")
        losses.append(done.loss)
        tensors = tensors_of(done.checkpoint)
        weights.append(tensors["train_state/model/weights/pixel/gain"])
        # Adam's steps do not see the scale of a gradient, its moments do
        moments.append(tensors["train_state/model/optimiser/pixel.gain/exp_avg"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    for i in (1, 2):
        torch.testing.assert_close(weights[i], weights[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(moments[i], moments[0], atol=1e-6, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "system",
    [
        *("duel", "ramvid", "rvd", "pvdm", "pvdm/diffusion, kept"),
        *("video_vqvae/tokenizer", "video_vqvae/bottom_prior"),
    ],
)
def test_two_processes_equal_one_up_to_rounding(system, tmp_path):
    experiment = change(experiments(tmp_path)[system], max_steps=4, accumulate=1)
    # dropout depends on the process, so equality is claimed without it only
    if hasattr(experiment.model, "dropout"):
        experiment = replace(experiment, model=replace(experiment.model, dropout=0.0))
    experiment = change(experiment, optimiser=CALM)
    begin = beginning(system, experiment, tmp_path)
    one = run(experiment, **begin, out=tmp_path / "one", device="cpu")
    (tmp_path / "e.yaml").write_text(to_yaml(experiment))
    (tmp_path / "two.py").write_text(TWO)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "two.py", *(str(word or "") for word in begin.values())],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 × cpu" in (tmp_path / "two" / "log.txt").read_text()
    assert done.stderr == ""
    ours = tensors_of(tmp_path / "two" / "checkpoints" / "step_00000004")
    for name, value in tensors_of(one.checkpoint).items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_of_several_processes_one_tells_the_result(tmp_path):
    experiment = change(experiments(tmp_path)["ramvid"], max_steps=2)
    (tmp_path / "e.yaml").write_text(to_yaml(experiment))
    command = [sys.executable, "-m", "framecast", "train", "e.yaml", "--device", "cpu", "--devices", "2", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 2
