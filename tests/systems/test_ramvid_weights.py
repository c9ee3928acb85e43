"""RaMViD: official files, told apart from everything else; the table of experiments."""

import pytest
import torch

from framecast.experiment import DataConfig, from_plain, to_plain
from framecast.systems import entry, preset, presets, resolve
from framecast.systems.ramvid.config import RaMViDConfig, RaMViDExperiment
from framecast.systems.ramvid.network import UNet3D
from framecast.systems.ramvid.ramvid import check_stage
from framecast.systems.ramvid.weights import read_checkpoint
from tests.formula import fill

CONFIG = RaMViDConfig(
    width=8,
    multipliers=(1, 2, 3),
    res_blocks=2,
    attention=(1, 4),
    heads=2,
    groups=4,
    scale_shift=False,
    learned_variance=True,
    classes=3,
)
BASE = RaMViDExperiment(model=RaMViDConfig(heads=2, groups=4), data=DataConfig(channels=1))


@pytest.fixture(scope="module")
def state():
    return dict(fill(UNet3D(CONFIG, channels=1)).state_dict())


def saved(tmp_path, content, name="model000000.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"module.{k}": torch.nn.Parameter(v) for k, v in s.items()},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {k: v + 1 for k, v in s.items()}, "ema": s},
    ],
    ids=["plain", "parallel", "wrapped", "averaged"],
)
def test_settings_and_weights_are_read_from_every_container(tmp_path, state, wrap):
    read = read_checkpoint(saved(tmp_path, wrap(state)), experiment=BASE)
    found = read.parts["diffusion"]
    assert read.config == CONFIG
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def test_half_precision_becomes_float32(tmp_path, state):
    half = {k: v.half() for k, v in state.items()}
    found = read_checkpoint(saved(tmp_path, half), experiment=BASE).parts["diffusion"]
    assert all(t.dtype == torch.float32 for t in found.values())


@pytest.mark.parametrize(
    ("name", "weights", "step", "kind"),
    [
        ("ema_0.9999_250000.pt", None, 250_001, "ema"),
        ("ema_0.9999_250000.pt", "ema", 250_001, "ema"),
        ("model250000.pt", None, 250_001, "raw"),
        ("ema_0.9999.pt", None, None, "ema"),
        ("best.pt", None, None, "raw"),
        ("best.pt", "ema", None, "ema"),
    ],
)
def test_file_name_tells_steps_and_kind_of_weights(tmp_path, state, name, weights, step, kind):
    read = read_checkpoint(saved(tmp_path, state, name), experiment=BASE, weights=weights)
    assert (read.step, read.weights) == (step, kind)


def test_of_two_sets_of_weights_the_asked_for_is_read(tmp_path, state):
    path = saved(tmp_path, {"model": {k: v + 1 for k, v in state.items()}, "ema": state})
    for weights, shift in (("ema", 0), ("raw", 1)):
        read = read_checkpoint(path, experiment=BASE, weights=weights)
        assert read.weights == weights
        assert all(torch.equal(read.parts["diffusion"][k], state[k] + shift) for k in state)


def test_weights_of_the_other_kind_are_refused(tmp_path, state):
    for name, content, weights in (("model000000.pt", state, "ema"), ("best.pt", {"model": state}, "ema")):
        with pytest.raises(
            ValueError, match=r"does not hold averaged weights \(ema\), only the weights as .*: ask for raw"
        ):
            read_checkpoint(saved(tmp_path, content, name), experiment=BASE, weights=weights)


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda s: {"state": {}, "param_groups": []}, "state of an optimiser"),
        (lambda s: without(s, "input_blocks.2.0.in_layers.2.bias"), "no tensor input_blocks.2.0.in_layers.2.bias"),
        (lambda s: without(s, "time_embed.0.weight"), "no tensor time_embed.0.weight"),
        (lambda s: s | {"out.2.bias": torch.zeros(5)}, r"out.2.bias has shape \(5,\), the network .* needs \(2,\)"),
        (lambda s: s | {"extra": torch.zeros(1)}, "holds the tensor extra"),
        (lambda s: s | {"step": 3}, "'step' is no tensor"),
        (lambda s: {}, "does not hold weights by name"),
        (lambda s: [1, 2], "holds a list"),
    ],
)
def test_other_content_is_refused_in_a_sentence(tmp_path, state, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_checkpoint(saved(tmp_path, content(state)), experiment=BASE)


def test_clips_of_other_channels_are_refused(tmp_path, state):
    experiment = RaMViDExperiment(model=BASE.model, data=DataConfig(channels=3))
    with pytest.raises(ValueError, match="is for clips of 1 channel, the experiment has 3"):
        read_checkpoint(saved(tmp_path, state), experiment=experiment)


def test_files_that_are_no_weights_are_refused_in_a_sentence(tmp_path, state):
    page, text, cut, unsafe = (tmp_path / name for name in ("page.pt", "text.pt", "cut.pt", "unsafe.pt"))
    page.write_text("\n<!DOCTYPE html><html>sign in</html>")
    text.write_text("weights")
    whole = saved(tmp_path, state).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    torch.save({"model": BASE}, unsafe)
    for path, sentence in (
        (page, "is a web page"),
        (text, "is not a file that torch.save wrote"),
        (cut, "is damaged or cut short"),
        (unsafe, "could run code when loaded"),
        (tmp_path / "none.pt", "is not a file"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            read_checkpoint(path, experiment=BASE)
        assert len(str(caught.value).splitlines()) == 1


RAMVID = [name for name in presets() if name.startswith("ramvid/")]


@pytest.mark.parametrize("name", RAMVID)
def test_presets_build_and_survive_plain_values(name):
    experiment = preset(name)
    assert from_plain(resolve(entry("ramvid").experiment), to_plain(experiment)) == experiment
    check_stage(experiment.stages.diffusion, experiment.model)
    assert experiment.stages.diffusion.batch % experiment.stages.diffusion.accumulate == 0
    with torch.device("meta"):
        UNet3D(experiment.model, channels=experiment.data.channels)


def test_published_experiments_carry_their_results():
    rates = {n: preset(f"ramvid/{n}").stages.diffusion.unconditional_rate for n in ("bair64", "kinetics64", "ucf64")}
    assert rates == {"bair64": 0.25, "kinetics64": 0.25, "ucf64": 0.75}
    assert preset("ramvid/bair64-pu75").published == {
        "ramvid-bair-pred": "FVD 86.05",
        "ramvid-bair-infill": "FVD 87.85",
    }
    assert preset("ramvid/kinetics64").published["ramvid-k600-upsample"] == "FVD 4.91"
    assert preset("ramvid/ucf64-pu50").published == {"ramvid-ucf-uncond": "IS 20.84 +- 0.08"}
