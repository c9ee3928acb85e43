"""Figures of RaMViD frozen after it agreed with the official code: weights and inputs from a formula, nothing stored.

Run `python -m tests.systems.test_ramvid_figures` to write them anew, after the parity tests pass.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from framecast.assets import Assets
from framecast.experiment import VideoSpec
from framecast.systems.ramvid.config import DiffusionStageConfig, RaMViDConfig, RaMViDSampling
from framecast.systems.ramvid.ramvid import RaMViD
from tests.formula import fill, hashed, normal, uniform
from tests.recorded import Recorded

FILE = Path(__file__).parents[1] / "figures" / "ramvid.json"
PLAIN = RaMViDConfig(width=8, multipliers=(1, 2), res_blocks=1, attention=(2,), heads=2, groups=4)
CASES = {
    "plain": PLAIN,
    "learned": replace(PLAIN, learned_variance=True, noise_levels=400, attention=(1, 2), heads_up=4),
    "additive": replace(PLAIN, scale_shift=False, schedule="cosine", variance="small", target="x_0", res_blocks=2),
    "deep": replace(PLAIN, multipliers=(1, 2, 1), time_frames=4, target="v", patch=2, attention=(1, 4)),
}
SHAPE = (2, 4, 2, 8, 16)


def summary(x: Tensor) -> list[float]:
    """Mean, spread, largest magnitude and six values."""
    flat = x.detach().double().flatten()
    picked = flat[[k * (len(flat) - 1) // 5 for k in range(6)]]
    values = [flat.mean(), flat.std(correction=0), flat.abs().max(), *picked]
    return [float(f"{float(v):.7g}") for v in values]


def figures(config: RaMViDConfig) -> dict[str, list[float]]:
    model = RaMViD(config, VideoSpec(channels=2, height=8, width=16, clip_frames=4))
    fill(model.network)
    clip, known = uniform("clip", SHAPE), torch.tensor([True, False, False, True])
    found = {"output": summary(model.network(clip, torch.tensor([3.0, 700.0])))}

    settings = DiffusionStageConfig(clip_frames=4, max_known=3)
    rng = Recorded(
        [normal("eps", SHAPE)],
        uniform=[torch.tensor([2.0, -1.0]), uniform("order", (2, 4))],
        integers=[torch.tensor([2, 1]), torch.tensor([0, config.noise_levels // 2])],
    )
    examples = {"clip": clip, "valid": torch.ones(2, 4, dtype=torch.bool)}
    loss = model.stage("diffusion", settings, Assets(Path())).loss(examples, step=0, turn="diffusion", rng=rng)
    loss.total.backward()
    found["loss"] = summary(loss.total)[:1]
    found["gradient"] = summary(torch.cat([p.grad.flatten() for p in model.network.parameters()]))[1:3]

    for options in (
        RaMViDSampling(resample=2),
        RaMViDSampling(sampler="ddim", eta=0.5),
        RaMViDSampling(sampler="dpmpp_2m"),
    ):
        draws = Recorded([normal(f"draw {i}", SHAPE) for i in range(20)])
        sample, _ = model.sample(clip, known, rng=draws, options=replace(options, steps=3, given="model"))
        found[options.sampler] = summary(sample)
    return found


@pytest.mark.parametrize("case", CASES)
def test_figures_are_the_frozen_ones(case):
    frozen, found = json.loads(FILE.read_text())[case], figures(CASES[case])
    assert found.keys() == frozen.keys()
    for name, values in frozen.items():
        scale = max(abs(v) for v in values)
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-4 * scale), name


def test_the_formula_is_the_agreed_one():
    assert hashed(torch.arange(4).numpy()).tolist() == [0, 1753845952, 3507691905, 1408362973]
    first = uniform("features.0.weight", (4,))
    assert first.tolist() == pytest.approx([0.674164590659, 0.801229743054, -0.290452008834, 0.438016342232])


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({name: figures(config) for name, config in CASES.items()}, indent=1) + "\n")
