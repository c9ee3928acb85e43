# SPDX-License-Identifier: Apache-2.0
"""Model folders: written whole or not at all, found by name, refused in one sentence when something is wrong."""

import itertools
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from framecast import checkpoint
from framecast.assets import sha256
from framecast.checkpoint import (
    PartInfo,
    build_system,
    copy_model,
    describe,
    find_model,
    list_models,
    load_system,
    point,
    save_model,
    save_tensors,
    whole_folder,
)
from framecast.experiment import VideoSpec, to_plain
from framecast.systems import SYSTEMS
from tests.tiny import TINY, TOY
from tests.train.duel import DUEL, DuelConfig

SEEDS = itertools.count()
VIDEO = VideoSpec(channels=1, height=8, width=8, clip_frames=4, fps=12.5)


@pytest.fixture(autouse=True)
def _place(monkeypatch, tmp_path):
    monkeypatch.setitem(SYSTEMS, "toy", TOY)
    monkeypatch.setitem(SYSTEMS, "duel", DUEL)
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def build(name="toy"):
    """A system with other random weights every time."""
    torch.manual_seed(next(SEEDS))
    model = to_plain(DuelConfig() if name == "duel" else TINY[name]().model)
    return build_system(name, model, VIDEO, {})


def saved(dir, name="toy", **parts) -> Path:
    system = build(name)
    chosen = parts or {part: PartInfo(stage=part, step=7) for part in system.parts()}
    return save_model(dir, system, parts=chosen, provenance={"data": "squares", "licence": "CC0"})


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_loaded_weights_equal_saved_ones(tmp_path):
    system = build("ramvid")
    save_model(tmp_path / "m", system, parts={"diffusion": PartInfo(stage="diffusion", step=3)}, provenance={})
    again = load_system(tmp_path / "m")
    assert again.video == VIDEO
    assert not again.training
    ours, theirs = again.state_dict(), system.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_loading_leaves_the_global_generator_alone(tmp_path):
    saved("m")
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    load_system("m")
    assert torch.equal(torch.randn(3), expected)


def test_folder_describes_itself(tmp_path):
    info = describe(saved("m", pixel=PartInfo(stage="pixel", step=12, weights="ema")))
    assert (info.name, info.system, info.missing) == ("m", "toy", [])
    part = info.parts["pixel"]
    assert (part.step, part.weights, part.sha256) == (12, "ema", sha256(Path("m/pixel.safetensors")))
    assert info.provenance["data"] == "squares"
    card = Path("m/README.md").read_text()
    assert "generated, not recorded" in card
    assert "192" in card  # parameters: 3 × 64


def test_digest_changes_with_the_weights(tmp_path):
    first, second = describe(saved("a")), describe(saved("b"))  # fresh random weights each
    assert first.digest != second.digest
    assert describe(copy_model("a", "c")).digest == first.digest


def test_occupied_folder_is_not_overwritten(tmp_path):
    Path("m").mkdir()
    Path("m/mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="m exists already and is not overwritten; m-2 is free"):
        saved("m")
    assert [p.name for p in Path("m").iterdir()] == ["mine.txt"]


def test_failed_writing_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "x" / "m") as folder:
        (folder / "half").write_text("…")
        raise RuntimeError
    assert list((tmp_path / "x").iterdir()) == []


def test_what_a_killed_process_left_half_written_does_not_stand_in_the_way(tmp_path):
    # in containers the process that goes on often has the number of the one before
    left = tmp_path / f".m.partial-{os.getpid()}"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    with whole_folder(tmp_path / "m") as folder:
        (folder / "new").touch()
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["new"]
    (tmp_path / f".last.{os.getpid()}").symlink_to("m")
    point(tmp_path / "last", "m")
    assert (tmp_path / "last").resolve() == tmp_path / "m"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "m"]


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    system = build()
    with torch.no_grad():
        system.pixel.bias[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="bias holds values that are not numbers"):
        save_model("m", system, parts={"pixel": PartInfo(stage="pixel", step=1)}, provenance={})
    assert not Path("m").exists()


def test_bundled_name_wins_over_a_folder_of_the_same_name(tmp_path):
    saved(tmp_path / "bundled" / "demo")
    saved("demo")
    assert find_model("demo") == tmp_path / "bundled" / "demo"
    assert find_model("./demo") == Path("demo")


def test_run_folder_means_its_newest_checkpoint(tmp_path):
    for step in (5, 20, 100):
        saved(f"runs/r1/checkpoints/step_{step:08d}")
    point(Path("runs/latest"), "r1")
    for source in ("runs/r1", "runs/latest"):
        assert find_model(source).name == "step_00000100"
    assert describe("runs/r1").name == "r1"
    point(Path("runs/r1/checkpoints/last"), "step_00000020")
    assert find_model("runs/r1/checkpoints/last").name == "step_00000020"


def test_pointer_is_a_text_file_where_links_cannot_be_made(tmp_path, monkeypatch):
    saved("runs/r1/checkpoints/step_00000001")

    def refuse(self, target):
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    point(Path("runs/latest"), "r1")
    assert Path("runs/latest").read_text().strip() == "r1"
    assert find_model("runs/latest").name == "step_00000001"


def test_pointer_never_replaces_a_folder(tmp_path):
    (tmp_path / "latest").mkdir()
    point(tmp_path / "latest", "r1")
    assert (tmp_path / "latest").is_dir() and not (tmp_path / "latest").is_symlink()


def test_list_holds_bundled_and_local_models(tmp_path):
    saved(tmp_path / "bundled" / "demo")
    saved("runs/r1/checkpoints/step_00000001")
    Path("runs/broken/checkpoints").mkdir(parents=True)
    point(Path("runs/latest"), "r1")
    assert [info.name for info in list_models()] == ["demo", "r1"]


def damage(folder: Path) -> None:
    (folder / "pixel.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0 not so")


def swap(folder: Path) -> None:
    save_tensors(folder / "pixel.safetensors", build().pixel.state_dict())


def reshape(folder: Path) -> None:
    weights = {key: value[..., :4].contiguous() for key, value in build().pixel.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "pixel.safetensors")
    digest = sha256(folder / "pixel.safetensors")
    edit(folder, lambda c: c["parts"]["pixel"].update(sha256=digest))


def rename(folder: Path) -> None:
    weights = dict(build().pixel.state_dict())
    weights["gian"] = weights.pop("gain")
    safetensors.torch.save_file(weights, folder / "pixel.safetensors")
    digest = sha256(folder / "pixel.safetensors")
    edit(folder, lambda c: c["parts"]["pixel"].update(sha256=digest))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage, "pixel.safetensors is damaged"),
        (swap, "is not the file that config.json describes"),
        (reshape, r"weight gain has shape \(1, 8, 4\), the model settings ask for \(1, 8, 8\)"),
        (rename, "weight gain is missing"),
        (lambda f: (f / "pixel.safetensors").unlink(), "pixel.safetensors is missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        (lambda f: edit(f, lambda c: c.update(format_version=2)), "written by a newer framecast"),
        (lambda f: edit(f, lambda c: c.update(system="tyo")), "'tyo' is not a system. Did you mean toy?"),
        (lambda f: edit(f, lambda c: c.pop("video")), "config.json is damaged"),
        (lambda f: edit(f, lambda c: c["model"].update(dropuot=1)), "dropuot is not a setting. Did you mean"),
        (lambda f: edit(f, lambda c: c["parts"]["pixel"].update(file="../x")), "config.json is damaged"),
        (
            lambda f: edit(f, lambda c: c["parts"].update(pixel=None)),
            "no trained part pixel; train it: .*--stage pixel",
        ),
    ],
)
def test_damaged_folder_is_refused_in_one_sentence(spoil, says, tmp_path):
    folder = saved("m")
    spoil(folder)
    with pytest.raises(ValueError, match=says) as told:
        load_system("m")
    assert "\n" not in str(told.value)
    assert "m" in str(told.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("vortx", "no model 'vortx'.*Did you mean vortex?"),
        ("other.pt", "framecast models import other.pt"),
        ("empty", "neither a model folder"),
        ("bundled", "neither a model folder.*In it lie: bundled/vortex"),
        ("ramvid/tiny32", "is a preset, .*framecast train ramvid/tiny32 --data DIR"),
        ("some/model", "could not be fetched from the hub"),
        ("runs/gone", "no model 'runs/gone'"),
        ("runs/young", "holds no checkpoint yet"),
    ],
)
def test_source_that_is_no_model_is_refused(source, says, tmp_path):
    saved(tmp_path / "bundled" / "vortex")
    Path("other.pt").write_bytes(b"x")
    Path("empty").mkdir()
    Path("runs/young/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=says):
        find_model(source)


def test_untrained_part_is_needed_unless_left_out(tmp_path):
    saved("m", "duel", codec=PartInfo(stage="codec", step=1))
    with pytest.raises(ValueError, match=r"no trained part prior; train it: .*--stage prior --from m"):
        load_system("m")
    assert describe("m").missing == ["prior"]
    assert load_system("m", require=["codec"]).parts().keys() == {"codec", "prior"}


def test_part_trained_on_other_weights_is_refused(tmp_path):
    both = {"codec": PartInfo(stage="codec", step=1), "prior": PartInfo(stage="prior", step=1, needs={"codec": ""})}
    saved("a", "duel", **both)
    saved("b", "duel", **both)
    load_system("a")
    (Path("a") / "codec.safetensors").write_bytes(Path("b/codec.safetensors").read_bytes())
    digest = sha256(Path("b/codec.safetensors"))
    edit(Path("a"), lambda c: c["parts"]["codec"].update(sha256=digest))
    with pytest.raises(ValueError, match="part prior was trained on top of another codec"):
        load_system("a")


def test_copy_leaves_training_state_behind(tmp_path):
    folder = saved("m")
    (folder / "train_state.json").write_text("{}")
    assert sorted(p.name for p in copy_model("m", "c").iterdir()) == ["README.md", "config.json", "pixel.safetensors"]
