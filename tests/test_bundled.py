# SPDX-License-Identifier: Apache-2.0
"""Models small enough to travel in the package: half-size copies, and what lies in `framecast/bundled`."""

import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from framecast import checkpoint
from framecast.assets import sha256
from framecast.checkpoint import BUNDLED, PartInfo, build_system, copy_model, describe, load_system, save_model
from framecast.cli.main import main
from framecast.experiment import VideoSpec, to_plain
from framecast.generate import Model
from framecast.systems import SYSTEMS
from framecast.video import Clip
from tests.conftest import ROOT
from tests.tiny import ramvid
from tests.train.duel import DUEL, DuelConfig

MOST_BYTES = 10_000_000  # of a bundled model
VIDEO = VideoSpec(channels=1, height=8, width=8, clip_frames=5)


def tiny(dir, *, scale=0.05):
    experiment = ramvid()
    torch.manual_seed(0)  # of the fresh weights
    system = build_system("ramvid", to_plain(experiment.model), VIDEO, to_plain(experiment.sample))
    rng = torch.Generator().manual_seed(0)
    for weight in system.parameters():
        weight.data += scale * torch.randn(weight.shape, generator=rng)
    parts = {name: PartInfo(stage="diffusion", step=7) for name in system.parts()}
    return save_model(dir, system, parts=parts, provenance={})


@pytest.fixture
def duel(monkeypatch, tmp_path):
    """Two parts, one trained on top of the other, with buffers."""
    monkeypatch.setitem(SYSTEMS, "duel", DUEL)
    system = build_system("duel", to_plain(DuelConfig()), VIDEO, {})
    system.autoencoder.center += 1 / 3
    system.autoencoder.seen += 70_001
    parts = {
        "codec": PartInfo(stage="codec", step=3),
        "prior": PartInfo(stage="prior", step=4, needs={"codec": ""}),
    }
    return save_model(tmp_path / "duel", system, parts=parts, provenance={})


# ---- half size


def test_half_size_copy_draws_nearly_the_same(tmp_path):
    whole = tiny(tmp_path / "whole")
    half = copy_model(whole, tmp_path / "half", dtype="float16")
    weights = "diffusion.safetensors"
    assert (half / weights).stat().st_size < 0.6 * (whole / weights).stat().st_size
    clip = Clip(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1, None, (-1.0, 1.0))
    drawn = [
        Model(load_system(folder)).predict(clip, 3, context=2, samples=2, seed=4).video for folder in (whole, half)
    ]
    assert drawn[0].std() > 0.1
    # single pixels of an untrained model, near its clamp, may differ by more
    difference = (drawn[0] - drawn[1]).abs().mean() / drawn[0].abs().mean()
    assert 0 < difference < 0.01


def test_half_size_copy_says_so_and_loads_as_float32(tmp_path):
    whole = tiny(tmp_path / "whole")
    half = copy_model(whole, tmp_path / "half", dtype="float16")
    part = describe(half).parts["diffusion"]
    stored = safetensors.torch.load_file(half / "diffusion.safetensors")
    assert part.dtype == "float16" and {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert describe(whole).parts["diffusion"].dtype == "float32"
    assert part.sha256 == sha256(half / "diffusion.safetensors")
    assert describe(half).digest != describe(whole).digest
    ours, theirs = load_system(half).state_dict(), load_system(whole).state_dict()
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2**-11, atol=2**-24)  # half a unit in the last place


def test_half_size_copy_keeps_buffers_exact_and_parts_together(duel, tmp_path):
    half = load_system(copy_model(duel, tmp_path / "half", dtype="float16"))  # would refuse a prior of another codec
    whole = load_system(duel)
    assert half.autoencoder.center == whole.autoencoder.center and half.autoencoder.seen == 70_001
    assert not torch.equal(half.prior.weight, whole.prior.weight)


def test_half_size_copy_of_a_half_size_copy_is_the_same(duel, tmp_path):
    once = copy_model(duel, tmp_path / "once", dtype="float16")
    twice = copy_model(once, tmp_path / "twice", dtype="float16")
    assert describe(once).digest == describe(twice).digest == describe(copy_model(once, tmp_path / "plain")).digest


def test_weight_that_16_bits_cannot_hold_is_refused(duel, tmp_path, capsys):
    system = load_system(duel)
    with torch.no_grad():
        system.prior.weight[0, 0] = 70_000
    parts = {name: PartInfo(stage=name, step=1) for name in system.parts()}
    large = save_model(tmp_path / "large", system, parts=parts, provenance={})
    assert main(["models", "export", str(large), str(tmp_path / "half"), "--half"]) == 1
    assert "part prior: weight weight reaches 70000, and 16 bits hold up to 65504" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_damaged_model_is_not_halved(tmp_path):
    whole = tiny(tmp_path / "whole")
    weights = whole / "diffusion.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"whole/diffusion\.safetensors is not the file that config\.json describes"):
        copy_model(whole, tmp_path / "half", dtype="float16")


# ---- the package


def bundled_problems(place):
    """What is wrong with the folders that travel with the package."""
    problems = []
    for folder in sorted(path for path in place.glob("*") if path.is_dir() and path.name != "__pycache__"):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        problems += [f"{folder.name}: {size} bytes"] * (size > MOST_BYTES)
        if not {"config.json", "README.md"} <= {path.name for path in folder.iterdir()}:
            problems.append(f"{folder.name}: no model folder")
            continue
        try:
            load_system(folder)  # all parts, of the sha256 that config.json tells
        except ValueError as error:
            problems.append(f"{folder.name}: {error}")
    return problems


def listed(capsys):
    assert main(["models", "list", "nowhere"]) == 0
    return capsys.readouterr().out


def test_bundled_models_are_whole_small_and_listed(capsys):
    assert bundled_problems(BUNDLED) == []
    names = [folder.name for folder in BUNDLED.glob("*") if (folder / "config.json").is_file()]
    assert all(name in listed(capsys) for name in names)


def test_bundled_files_are_not_hidden_from_the_package():
    # the wheel leaves out what git ignores
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    names = ["config.json", "README.md", "diffusion.safetensors", "metrics.csv", "config.yaml"]
    paths = [f"framecast/bundled/vortex-ramvid/{name}" for name in names]
    ignored = subprocess.run(["git", "-C", ROOT, "check-ignore", *paths], capture_output=True, text=True).stdout
    assert ignored == ""


def test_model_put_among_the_bundled_ones_is_known_by_its_name(tmp_path, monkeypatch, capsys):
    place = tmp_path / "bundled"
    monkeypatch.setattr(checkpoint, "BUNDLED", place)
    copy_model(tiny(tmp_path / "whole"), place / "small-flows", dtype="float16")
    assert bundled_problems(place) == []
    assert "small-flows" in listed(capsys)
    assert load_system("small-flows").video == VIDEO


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "diffusion.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "README.md").unlink(), "no model folder"),
        (lambda folder: (folder / "log.csv").write_bytes(bytes(MOST_BYTES)), "bytes"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
    ],
)
def test_bundled_folder_that_is_not_whole_or_too_large_is_found(tmp_path, spoil, says):
    spoil(tiny(tmp_path / "bundled" / "m"))
    (problem,) = bundled_problems(Path(tmp_path / "bundled"))
    assert says in problem
