# SPDX-License-Identifier: Apache-2.0
"""PVDM: the official code's two files, told apart from each other and from everything else."""

from dataclasses import replace

import pytest
import torch

from framecast.systems import preset
from framecast.systems.pvdm.autoencoder import Autoencoder
from framecast.systems.pvdm.config import AutoencoderConfig
from framecast.systems.pvdm.weights import read_checkpoint
from framecast.systems.ramvid.network import UNet3D
from tests import tiny
from tests.systems.official_pvdm import (
    BASE,
    CONFIG,
    LATENT,
    autoencoder,
    autoencoder_file,
    denoiser,
    denoiser_file,
    experiment,
)
from tests.systems.official_rvd import official_state
from tests.systems.test_pvdm_autoencoder import official_state as of_autoencoder


def saved(tmp_path, content, name="model_7.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def same(part, network):
    own = network.state_dict()
    return part.keys() == own.keys() and all(torch.equal(part[name], tensor) for name, tensor in own.items())


def renamed(state, start):
    return {f"{start}{name}": tensor for name, tensor in state.items()}


def unwrapped(state):
    return {name.removeprefix("diffusion_model."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: renamed(s, "module."),
        lambda s: {"state_dict": {name: torch.nn.Parameter(t) for name, t in s.items()}},
    ],
    ids=["plain", "parallel", "wrapped"],
)
def test_autoencoder_is_told_by_its_tensors(tmp_path, wrap):
    read = read_checkpoint(saved(tmp_path, wrap(autoencoder_file())), experiment=BASE)
    assert read.config == replace(BASE.model, autoencoder=CONFIG.autoencoder)
    assert (read.stage, read.needs, read.step, read.weights) == ("autoencoder", (), None, "raw")
    assert set(read.parts) == {"autoencoder"} and same(read.parts["autoencoder"], autoencoder())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: renamed(s, "module."),
        unwrapped,
        lambda s: renamed(unwrapped(s), "module."),
        lambda s: {name: t for name, t in s.items() if "zeros" not in name},
    ],
    ids=["as sampled", "parallel", "net_init", "net_meta", "no buffer"],
)
def test_denoiser_is_told_by_its_tensors(tmp_path, wrap):
    read = read_checkpoint(saved(tmp_path, wrap(denoiser_file())), experiment=BASE)
    assert read.config == replace(BASE.model, denoiser=CONFIG.denoiser)
    assert (read.stage, read.needs) == ("diffusion", ("autoencoder",))
    assert set(read.parts) == {"denoiser"} and same(read.parts["denoiser"], denoiser())


@pytest.mark.parametrize(
    ("name", "step", "kind"),
    [
        ("ema_model_850000", 850_000, "ema"),
        ("model_10000", 10_000, "raw"),
        ("net_init", 0, "raw"),
        ("net_meta", None, "raw"),
        ("ema_ucf", None, "ema"),
        ("ucf101", None, "raw"),
    ],
)
def test_name_of_a_denoisers_file_tells_steps_and_kind(tmp_path, name, step, kind):
    read = read_checkpoint(saved(tmp_path, denoiser_file(), f"{name}.pth"), experiment=BASE)
    assert (read.step, read.weights) == (step, kind)


def test_kind_that_is_asked_for_is_the_denoisers(tmp_path):
    averaged, raw = (saved(tmp_path, denoiser_file(), f"{name}.pth") for name in ("ema_model_5", "model_5"))
    with pytest.raises(ValueError, match=r"ema_model_5\.pth does not hold the weights as .* ask for ema"):
        read_checkpoint(averaged, experiment=BASE, weights="raw")
    with pytest.raises(ValueError, match=r"/model_5\.pth does not hold averaged weights .* ask for raw"):
        read_checkpoint(raw, experiment=BASE, weights="ema")
    assert read_checkpoint(averaged, experiment=BASE, weights="ema").weights == "ema"
    # of which there is no average, so that one word serves both files
    assert read_checkpoint(saved(tmp_path, autoencoder_file()), experiment=BASE, weights="ema").weights == "raw"


def test_half_precision_becomes_float32(tmp_path):
    for content in (autoencoder_file(), denoiser_file()):
        half = {name: t.half() if "emb." not in name else t for name, t in content.items()}
        (part,) = read_checkpoint(saved(tmp_path, half), experiment=BASE).parts.values()
        assert {tensor.dtype for tensor in part.values()} == {torch.float32}


def spoiled(of, **changes):
    """The content of a file with tensors changed, or None for one that is missing."""

    def content():
        state = of() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    return content


def ramvid():
    return UNet3D(tiny.ramvid().model, channels=1).state_dict()


def judges():
    return {"perceptual_loss.net.weight": torch.zeros(1), "discriminator_2d.model0.0.weight": torch.zeros(1)}


GIVE = r"give the autoencoder's model_\*\.pth or the denoiser's ema_model_\*\.pth of the official code\."
ZEROS = "diffusion_model.zeros"
REFUSED = [
    (lambda: {"state": {}, "param_groups": []}, "is the state of an optimiser, not weights: " + GIVE),
    (lambda: {"scale": 65536.0, "growth_factor": 2.0}, r"'scale' is no tensor\): " + GIVE),
    (judges, "holds discriminators and the loss, which draw nothing: " + GIVE),
    (lambda: renamed(judges(), "module."), "holds discriminators and the loss"),
    (ramvid, r"holds neither a PVDM autoencoder nor a PVDM denoiser \(its first tensor is time_embed.*\): " + GIVE),
    (lambda: official_state(tiny.rvd().model, 1), "holds neither a PVDM autoencoder nor a PVDM denoiser"),
    (lambda: {"a": torch.zeros(1)}, r"its first tensor is a\): " + GIVE),
    (spoiled(autoencoder_file, extra=torch.zeros(1)), "holds the tensor extra, which the network"),
    (spoiled(autoencoder_file, pre_xt__bias=None), r"has no tensor pre_xt\.bias, which the network"),
    (spoiled(autoencoder_file, xy_pos_embedding=None), "no tensor xy_pos_embedding: .* not the weights of a PVDM auto"),
    (spoiled(autoencoder_file, post_xy__weight=torch.zeros(12)), r"post_xy\.weight has shape \(12,\): .* PVDM auto"),
    (
        spoiled(autoencoder_file, **{"encoder.frame_rot_emb.inv_freqs": torch.ones(3)}),
        "head_width is 6; it must be a multiple of 4",
    ),
    (spoiled(denoiser_file, diffusion_model__out__2__bias=None), r"has no tensor out\.2\.bias, which the network"),
    (
        spoiled(denoiser_file, diffusion_model__time_embed__0__weight=torch.zeros(32)),
        r"time_embed\.0\.weight has shape \(32,\): these are not the weights of a PVDM denoiser",
    ),
    (
        spoiled(denoiser_file, diffusion_model__time_embed__0__weight=torch.zeros(32, 6)),
        "width 6 is not a multiple of the 4 groups",
    ),
    (spoiled(denoiser_file, **{ZEROS: torch.ones(1, 3, LATENT)}), "zeros, of shape .* is not one latent of 3 channels"),
    (spoiled(denoiser_file, **{ZEROS: torch.zeros(LATENT)}), "zeros, of shape .* is not one latent of 3 channels"),
    (
        spoiled(denoiser_file, **{ZEROS: torch.zeros(1, 3, 2048)}),
        "is for latents of length 2048, but 4 frames of 16x8 pixels give a length of 32: set data.size, stages",
    ),
]


@pytest.mark.parametrize(("content", "sentence"), REFUSED)
def test_other_content_is_refused_in_a_sentence(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_checkpoint(saved(tmp_path, content()), experiment=BASE)
    assert len(str(caught.value).splitlines()) == 1 and "model_7.pth" in str(caught.value)


LONGER = replace(BASE, stages=replace(BASE.stages, autoencoder=replace(BASE.stages.autoencoder, clip_frames=6)))
WIDER = replace(BASE, model=replace(BASE.model, autoencoder=AutoencoderConfig(patch=4, latent_channels=4)))


@pytest.mark.parametrize(
    ("of", "base", "sentence"),
    [
        (
            autoencoder_file,
            experiment(channels=1),
            "is for clips of 3 channels, the experiment has 1: set data.channels",
        ),
        (autoencoder_file, experiment(size=8), "frames of 16x8 pixels, the experiment has 8x8: set data.size to 8,16"),
        (autoencoder_file, LONGER, "of 4 frames, the experiment has 6: set stages.autoencoder.clip_frames to 4"),
        (denoiser_file, LONGER, "latents of length 32, but 6 frames of 16x8 pixels give a length of 44: set data.size"),
        (denoiser_file, WIDER, "is for latents of 3 channels, .* have 4: set model.autoencoder.latent_channels to 3"),
        (denoiser_file, experiment(size=10), "frames are 10x10 pixels, but the autoencoder's patches"),
    ],
)
def test_clips_of_another_kind_are_refused_with_the_setting_to_change(tmp_path, of, base, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_checkpoint(saved(tmp_path, of()), experiment=base)
    assert len(str(caught.value).splitlines()) == 1


def test_square_size_is_told_as_one_number(tmp_path):
    network = Autoencoder(CONFIG.autoencoder, channels=3, size=(8, 8), frames=4)
    with pytest.raises(ValueError, match=r"frames of 8x8 pixels, the experiment has 16x8: set data\.size to 8\."):
        read_checkpoint(saved(tmp_path, of_autoencoder(network)), experiment=BASE)


def test_published_autoencoder_fits_its_preset(tmp_path):
    experiment = preset("pvdm/ucf101-256-l")
    with torch.device("meta"):
        network = Autoencoder(AutoencoderConfig(), channels=3, size=(256, 256), frames=16)
    shapes = of_autoencoder(network)
    assert len(shapes) == 415
    content = {name: t if t.device.type == "cpu" else torch.zeros(()).expand(t.shape) for name, t in shapes.items()}
    read = read_checkpoint(saved(tmp_path, content), experiment=experiment)
    assert read.config == experiment.model
    assert sum(t.numel() for t in read.parts["autoencoder"].values()) == 62_064_399
