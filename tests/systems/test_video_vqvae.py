# SPDX-License-Identifier: Apache-2.0
"""Video VQ-VAE's presets: the published one has the paper's tables and our counted weights, and all can be built."""

from functools import cache
from typing import Any

import pytest
import torch

from framecast.draws import draws
from framecast.experiment import VideoSpec, size_of, to_plain
from framecast.systems.video_vqvae.config import BottomPriorConfig, BottomPriorStageConfig, TokenizerConfig
from framecast.systems.video_vqvae.priors import BottomPrior
from framecast.systems.video_vqvae.published import PRESETS
from framecast.systems.video_vqvae.stages import BottomPriorStage
from framecast.systems.video_vqvae.tokenizer import Tokenizer
from framecast.systems.video_vqvae.video_vqvae import VideoVQVAE


@cache
def built(name: str) -> VideoVQVAE:
    """The untrained model of a preset, without memory."""
    preset = PRESETS[name]()
    height, width = size_of(preset.data.size)
    frames = preset.stages.tokenizer.clip_frames
    spec = VideoSpec(channels=preset.data.channels, height=height, width=width, clip_frames=frames)
    with torch.device("meta"):
        return VideoVQVAE(preset.model, spec, preset.sample)


def weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def changes(before: Any, after: Any, where: str = "") -> set[str]:
    """Paths of plain values that differ."""
    if not isinstance(before, dict):
        return {where} if before != after else set()
    return set().union(*(changes(before[key], after[key], f"{where}.{key}" if where else key) for key in before))


@pytest.mark.slow
def test_published_model_has_its_parameters():
    model = built("kinetics256")
    assert {name: weights(part) for name, part in model.parts().items()} == {
        "tokenizer": 4_520_195,
        "top_prior": 347_682_624,
        "bottom_prior": 683_334_720,
    }
    assert weights(model.top_prior.condition) == 13_308_736
    assert weights(model.bottom_prior.condition) == 408_543_296


def test_published_preset_holds_the_tables():
    plain = to_plain(PRESETS["kinetics256"]())
    tables = {
        "tokenizer": {"hidden": 128, "residual": 32, "layers": 2, "codes": 512, "code_width": 64},
        "top_prior": {"hidden": 512, "residual": 1024, "layers": 40, "heads": 8, "kernel": 3, "dropout": 0.5}
        | {"condition_hidden": 512, "condition_residual": 128, "condition_layers": 4},
        "bottom_prior": {"hidden": 512, "residual": 1024, "layers": 20, "heads": 8, "kernel": 5, "dropout": 0.0}
        | {"condition_hidden": 1024, "condition_layers": 20, "window": 4},
    }  # fmt: skip
    for part, table in tables.items():
        assert {key: plain["model"][part][key] for key in table} == table
    assert plain["model"]["tokenizer"]["first_kernel"] == [4, 8, 8]
    steps = {name: (stage["batch"], stage["max_steps"]) for name, stage in plain["stages"].items()}
    assert steps == {"tokenizer": (16, 1_000_000), "top_prior": (512, 1_016_000), "bottom_prior": (32, 950_000)}
    assert plain["stages"]["tokenizer"]["commitment"] == 0.25
    model = built("kinetics256")
    assert (len(model.top_prior.network.attentions), len(model.bottom_prior.network.attentions)) == (8, 4)
    assert (model.top_prior.network.grid, model.bottom_prior.network.grid) == ((3, 32, 32), (1, 64, 64))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "kinetics256"])
def test_small_presets_are_causal_and_small(name):
    model = built(name)
    assert model.tokenizer.config.temporal_padding == "causal"
    assert weights(model) < 25e6
    assert PRESETS[name]().published == {}, "only the paper's own settings have the paper's results"


@pytest.mark.parametrize(
    "name, changed",
    [
        ("vortex32-unmasked", {"stages.tokenizer.bottom_mask"}),
        ("vortex32-onelevel", {"model.tokenizer.levels"}),
        ("vortex32-noattention", {"model.top_prior.attention_every", "model.bottom_prior.attention_every"}),
    ],
)
def test_an_arm_leaves_one_thing_out(name, changed):
    assert changes(to_plain(PRESETS["vortex32"]()), to_plain(PRESETS[name]())) == changed


def test_codes_of_a_large_codebook_are_kept_as_they_are():
    torch.manual_seed(0)
    config = TokenizerConfig(hidden=4, residual=2, codes=40_000, code_width=2, first_kernel=(4, 4, 4), levels=1)
    tokenizer = Tokenizer(config, channels=1, size=(8, 8), frames=16).eval()
    tiny = {"hidden": 2, "residual": 2, "layers": 1, "attention_every": 0, "heads": 1, "embedding": 2}
    condition = {"condition_hidden": 2, "condition_residual": 2, "condition_layers": 0}
    prior = BottomPrior(
        BottomPriorConfig(**tiny, **condition), codes=config.codes, grid=tokenizer.grid("bottom"), top=False
    )
    stage = BottomPriorStage(tokenizer, prior, "bottom_prior", BottomPriorStageConfig())
    clip = torch.randn(2, 16, 1, 8, 8).clamp(-1, 1)
    kept = stage.examples(clip, torch.ones(2, 16, dtype=torch.bool), draws(0, [0, 1]))["bottom"]
    assert kept.max() >= 1 << 15
    assert torch.equal(kept.long(), stage.codes(clip)["bottom"])
