"""Figures of distances between sets and of rf3d-v1, frozen after they agreed with the reference values: inputs from a
formula, nothing stored. Run `python -m tests.metrics.test_distribution_figures` to write them anew, after the parity
tests pass.
"""

import json
from pathlib import Path

import pytest
import torch

from framecast.metrics.distribution import (
    density_coverage,
    frechet_of,
    inception_score,
    kernel_distance,
    nearest_distance,
    precision_recall,
)
from framecast.metrics.hash_fill import uniform
from framecast.metrics.rf3d import PARTS, RF3D, scores

FILE = Path(__file__).parents[1] / "figures" / "distribution.json"


def drawn(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(uniform(name, torch.Size(shape).numel())).view(shape)


def figures() -> dict[str, list[float]]:
    x, y = drawn("x", 60, 12), 0.8 * drawn("y", 50, 12) + 0.1
    p = torch.softmax(4 * drawn("p", 60, 9), dim=1)
    found = {
        "frechet": [frechet_of(x, y), frechet_of(x, y, ddof=0), frechet_of(x[:5], y[:7])],
        "kernel": [kernel_distance(x, y)],
        "neighbours": [*density_coverage(x, y), *precision_recall(x, y)],
        "inception": inception_score(p, splits=3).tolist(),
        "nearest": nearest_distance(y, x)[:4].tolist(),
    }
    network = RF3D()
    made = [((drawn(name, 9, 7, 1, 24, 40) + 1) * 127.5).to(torch.uint8) for name in ("real", "fake")]
    real, fake = (network.features(clips) for clips in made)
    for part in PARTS:
        found[part] = [real[part].mean().item(), *real[part][0, ::16].tolist()]
        found[f"scores of {part}"] = list(scores(real, fake)[part].values())
    return {name: [float(f"{value:.9g}") for value in values] for name, values in found.items()}


def test_figures_are_the_frozen_ones():
    frozen, found = json.loads(FILE.read_text()), figures()
    assert frozen.keys() == found.keys()
    for name, values in frozen.items():
        # features are of float32 networks; their scores divide by how little features vary
        limit = 1e-4 if name.startswith("scores") else 1e-5 if name in PARTS else 1e-8
        assert found[name] == pytest.approx(values, rel=limit), name


if __name__ == "__main__":
    FILE.write_text(json.dumps(figures(), indent=1) + "\n")
