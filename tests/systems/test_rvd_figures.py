# SPDX-License-Identifier: Apache-2.0
"""Figures of RVD frozen after it agreed with the official code: weights and inputs from a formula, nothing stored.

Run `python -m tests.systems.test_rvd_figures` to write them anew, after the parity tests pass.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from framecast.assets import Assets
from framecast.experiment import VideoSpec
from framecast.generate import complete
from framecast.systems.rvd.config import ForecastStageConfig, RVDConfig, RVDSampling
from framecast.systems.rvd.rvd import RVD
from framecast.task import Task
from tests.formula import fill, normal, uniform
from tests.recorded import Recorded

FILE = Path(__file__).parents[1] / "figures" / "rvd.json"
PLAIN = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), groups=4)
CASES = {
    "plain": PLAIN,
    "published64": replace(PLAIN, multipliers=(1, 2, 4, 8), transform_multipliers=(1, 2, 2, 4), groups=8),
    "published128": replace(PLAIN, multipliers=(1, 1, 2, 2, 4, 4), transform_multipliers=(1, 2, 3, 4), groups=8),
    "sigma": replace(PLAIN, sigma=2.0, target="v", noise_levels=400),
    "vd": replace(PLAIN, prediction="none", target="x_0"),
    "simple": replace(PLAIN, prediction="previous", patch=2, groups=2),
}
SIZE = {"published64": (16, 24), "published128": (32, 64)}  # (8, 16) for all others
SAMPLERS = (
    RVDSampling(sampler="ddpm", steps=6),
    RVDSampling(sampler="ddim", steps=3, eta=0.5),
    RVDSampling(sampler="dpmpp_2m", steps=4, bound=0.8),
    RVDSampling(sampler="mean"),
)


def summary(x: Tensor) -> list[float]:
    """Mean, spread, largest magnitude and six values."""
    flat = x.detach().double().flatten()
    picked = flat[[k * (len(flat) - 1) // 5 for k in range(6)]]
    values = [flat.mean(), flat.std(correction=0), flat.abs().max(), *picked]
    return [float(f"{float(v):.6g}") for v in values]


def figures(case: str) -> dict[str, list[float]]:
    config, (height, width) = CASES[case], SIZE.get(case, (8, 16))
    model = RVD(config, VideoSpec(channels=2, height=height, width=width, clip_frames=4)).eval()
    fill(model)
    clip = 0.9 * uniform("clip", (2, 4, 2, height, width))
    with torch.no_grad():
        seen = model.read(clip)
    found = {"deepest": summary(seen.context[-1]), "expected": summary(seen.mu)}

    rng = Recorded([normal("eps", (2, 2, 2, height, width))], integers=[torch.tensor([0, config.noise_levels // 2])])
    examples = {"clip": clip, "valid": torch.ones(2, 4, dtype=torch.bool)}
    stage = model.stage("forecast", ForecastStageConfig(clip_frames=4, loss="l2"), Assets(Path()))
    loss = stage.loss(examples, step=0, turn="forecast", rng=rng)
    loss.total.backward()
    found["loss"] = summary(loss.total)[:1]
    for name, part in model.parts().items():
        found[f"gradient {name}"] = summary(torch.cat([p.grad.flatten() for p in part.parameters()]))[1:3]

    for options in SAMPLERS:
        if options.sampler == "mean" and config.prediction == "none":
            continue
        noise = Recorded([normal(f"draw {i}", (2, 2, height, width)) for i in range(14)])
        made = complete(model, clip, Task.predict(4, 2), rng=noise, options=replace(options, given="model", window=1))
        found[options.sampler] = summary(made[:, 4:])
    return found


@pytest.mark.parametrize("case", CASES)
def test_figures_are_the_frozen_ones(case):
    frozen, found = json.loads(FILE.read_text())[case], figures(case)
    assert found.keys() == frozen.keys()
    for name, values in frozen.items():
        scale = max(abs(v) for v in values)
        assert found[name] == pytest.approx(values, rel=2e-4, abs=2e-4 * scale), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = [f"{json.dumps(case)}: {json.dumps(figures(case))}" for case in CASES]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
