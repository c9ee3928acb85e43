"""Fréchet and kernel distance, Inception Score and rf3d-v1 against stored values; the other figures of the same files
are compared in `test_metrics_*.py`.
"""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framecast.metrics.distribution import Moments, frechet, frechet_of, inception_score, kernel_distance
from framecast.metrics.hash_fill import filled, uniform
from framecast.metrics.rf3d import PARTS, RF3D, scores
from tests.parity.walk import FORWARD, error, folders, rows

GROUPS = {"frechet", "kernel", "is", "crps", "img", "psnr", "ssim", "resize"}  # compared here or in test_metrics_*.py
NETWORKS = {"i3d_formula", "c3d_formula", "lpips_formula", "rf3d_formula"}
FULL_RANK, DEFICIENT, ROUNDING = 1e-12, 1e-7, 1e-12  # the last: absolute, where the distance is exactly 0

FOLDERS = pytest.mark.parametrize("folder", folders("metrics"))


def group(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Tensors of basic.safetensors whose names begin so, by the rest of their names."""
    tensors = load_file(folder / "basic.safetensors")
    return {key.partition(".")[2]: value for key, value in tensors.items() if key.partition(".")[0] == name}


def cases(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        case, _, what = key.partition(".")
        found.setdefault(case, {})[what] = value
    return found


def rank(matrix: torch.Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrix, hermitian=True, rtol=1e-10))


@FOLDERS
def test_every_figure_belongs_to_a_group_that_is_compared(folder):
    found = {key.partition(".")[0] for key in load_file(folder / "basic.safetensors")}
    assert found <= GROUPS
    assert {path.stem for path in folder.glob("*.safetensors")} <= NETWORKS | {"basic"}


@FOLDERS
def test_frechet_distances_agree(folder):
    found = cases(group(folder, "frechet"))
    assert found
    for name, case in found.items():
        if set(case) == {"mu1", "sigma1", "mu2", "sigma2", "fd"}:
            ours = frechet(case["mu1"], case["sigma1"], case["mu2"], case["sigma2"])
            full = min(rank(case["sigma1"]), rank(case["sigma2"])) == len(case["mu1"])
            scale = max(case["sigma1"].trace(), case["sigma2"].trace()).item()
            limit = FULL_RANK if full else DEFICIENT
            assert ours == pytest.approx(case["fd"].item(), rel=limit, abs=ROUNDING * scale), name
        else:
            assert set(case) == {"x", "y", "fd_ddof1", "fd_ddof0"}, f"frechet.{name} has something not compared"
            # their covariances of fewer clips than features are of full rank by rounding, whose root is 1e-8
            limit = FULL_RANK if min(len(case["x"]), len(case["y"])) > case["x"].shape[1] else DEFICIENT
            for ddof in (0, 1):
                theirs = case[f"fd_ddof{ddof}"].item()
                assert frechet_of(case["x"], case["y"], ddof=ddof) == pytest.approx(theirs, rel=limit), name
                one, two = Moments.of(case["x"]), Moments.of(case["y"])
                ours = frechet(one.mean, one.covariance(ddof=ddof), two.mean, two.covariance(ddof=ddof))
                assert ours == pytest.approx(theirs, rel=limit), name


@FOLDERS
def test_kernel_distances_agree(folder):
    found, samples = cases(group(folder, "kernel")), cases(group(folder, "frechet"))
    assert found
    for name, case in found.items():
        x, y = (case.pop(part) if part in case else samples[name][part] for part in ("x", "y"))
        assert set(case) == {"mmd2_poly3_unbiased"}, f"kernel.{name} has something not compared"
        assert kernel_distance(x, y) == pytest.approx(case["mmd2_poly3_unbiased"].item(), rel=1e-12), name


@FOLDERS
def test_inception_scores_agree(folder):
    found = group(folder, "is")
    probs = found.pop("probs")
    onehot = torch.eye(probs.shape[1], dtype=torch.float64)[torch.arange(len(probs)) % probs.shape[1]]
    assert found
    for name, theirs in found.items():
        said = re.fullmatch(r"(onehot\.)?(?:eps([\d.e+-]+)\.)?splits(\d+)(\.mean_std)?", name)
        assert said, f"is.{name} is not compared"
        ours = inception_score(onehot if said[1] else probs, splits=int(said[3]), eps=float(said[2] or 0))
        if said[4]:
            ours = torch.stack([ours.mean(), ours.std(correction=0)])
        assert error(ours, theirs) < 1e-12, name


def test_hash_fill_gives_the_published_check_values():
    checks = {
        "Conv3d_1a_7x7.conv3d.weight": [-0.810892429901, -0.599256656831, 0.334566015983, -0.310704301810],
        "conv1a/W": [0.434875664534, -0.244149567327, -0.352122061187, -0.859548926121],
        "features.0.weight": [0.674164590659, 0.801229743054, -0.290452008834, 0.438016342232],
    }
    for name, values in checks.items():
        assert uniform(name, 4).tolist() == pytest.approx(values, abs=1e-12)
    kernel = filled("Conv3d_1a_7x7.conv3d.weight", (64, 3, 7, 7, 7)).flatten()[:4]
    assert kernel.tolist() == pytest.approx([-0.06192003, -0.04575945, 0.02554758, -0.02372549], abs=1e-8)


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """The folder's formula clip before its remainder is taken: frames, height, width, channel."""
    t, h, w, c = torch.meshgrid(*(torch.arange(n) for n in (frames, height, width, 3)), indexing="ij")
    return (37 * t + 5 * h + 11 * w + 71 * c + h * w * (t + 1) // 16) % 256


def family(n: int, frames: int, height: int, width: int, a: int, b: int) -> torch.Tensor:
    """The folder's family of clips, (n, T, C, H, W) uint8."""
    base = clip(frames, height, width)
    found = torch.stack([(base + a * k) * (3 + k % b) // 4 % 256 for k in range(n)])
    return found.permute(0, 1, 4, 2, 3).to(torch.uint8)


@FOLDERS
def test_random_features_agree(folder):
    theirs = load_file(folder / "rf3d_formula.safetensors")
    families = re.findall(r"(\w+) = family\(([\d, ]+)\)", (folder / "README.md").read_text())
    network, seen = RF3D(), set()
    ours: dict[str, dict[str, torch.Tensor]] = {}
    for name, numbers in families:
        ours[name] = network.features(family(*map(int, numbers.split(","))))
        for part in PARTS:
            seen.add(f"{name}.{part}")
            assert error(ours[name][part], theirs[f"{name}.{part}"]) < FORWARD, f"{name}.{part}"
    stored = [{part: theirs[f"{name}.{part}"] for part in PARTS} for name in ("real", "fake")]
    for part in PARTS:
        seen.add(f"score.{part}")
        for features, limit in ((stored, 1e-8), ([ours["real"], ours["fake"]], 1e-4)):
            found = scores(*features)[part]["frechet"]
            assert error(rows([found]), theirs[f"score.{part}"]) < limit, part
    assert seen == set(theirs)
