# SPDX-License-Identifier: Apache-2.0
"""Video VQ-VAE's experiments: the published one, its settings each with its table, and small ones that are ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from framecast.experiment import DataConfig, EmaConfig, OptimiserConfig
from framecast.systems.video_vqvae.config import (
    BottomPriorConfig,
    BottomPriorStageConfig,
    PriorStageConfig,
    TokenizerConfig,
    TokenizerStageConfig,
    TopPriorConfig,
    VideoVQVAEConfig,
    VideoVQVAEExperiment,
    VideoVQVAEStages,
)

PAPER = "Walker, Razavi and van den Oord, Predicting Video with VQVAE (2021), tables 3 to 6; no code was published"

_ADAM = OptimiserConfig(name="adam", lr=3e-4, clip_norm=0.0)  # not stated; the rate of Sonnet's VQ-VAE example
_PRIOR = OptimiserConfig(  # not stated
    name="adam", lr=3e-4, clip_norm=1.0, warmup_steps=5_000, schedule="cosine", decay=0.1
)


def kinetics256() -> VideoVQVAEExperiment:
    """Kinetics-600 at 256x256, 4 frames given and 12 predicted: the published model."""
    prior = PriorStageConfig(precision="bf16", checkpointing=True, optimiser=_PRIOR)  # precision: not stated
    return VideoVQVAEExperiment(
        data=DataConfig(channels=3, size=256, crop="random", flip=True),
        model=VideoVQVAEConfig(),  # tables 3 to 6
        stages=VideoVQVAEStages(
            tokenizer=TokenizerStageConfig(batch=16, max_steps=1_000_000, checkpointing=True, optimiser=_ADAM),
            top_prior=replace(prior, batch=512, max_steps=1_016_000),
            bottom_prior=_bottom(prior, batch=32, max_steps=950_000),
        ),
        source=PAPER,
        published={
            "vqvae-k600-fvd-64": "FVD 64.30 ± 2.04, FVD* 54.30 ± 3.49",
            "vqvae-k600-fvd-256": "FVD 129.85 ± 1.64, FVD* 82.45 ± 1.16",
        },
    )


def cpu64() -> VideoVQVAEExperiment:
    """Video at 64x64 in colour with priors that a few cores can train. Ours, not published."""
    whole = kinetics256()
    small = {"hidden": 128, "residual": 256, "layers": 10, "heads": 4, "kernel": 3}
    condition = {"condition_hidden": 128, "condition_residual": 128, "condition_layers": 4}
    return replace(
        whole,
        data=DataConfig(channels=3, size=64, flip=True),
        model=VideoVQVAEConfig(
            tokenizer=TokenizerConfig(temporal_padding="causal"),
            top_prior=TopPriorConfig(**small, **condition, dropout=0.1),  # type: ignore[arg-type]
            bottom_prior=BottomPriorConfig(**small, **condition),  # type: ignore[arg-type]
        ),
        stages=VideoVQVAEStages(
            tokenizer=TokenizerStageConfig(batch=8, max_steps=50_000, restart=0.03, optimiser=_ADAM),
            top_prior=PriorStageConfig(batch=32, max_steps=100_000, optimiser=_PRIOR),
            bottom_prior=BottomPriorStageConfig(batch=16, max_steps=100_000, optimiser=_PRIOR),
        ),
        source="",
        published={},
    )


def tiny64() -> VideoVQVAEExperiment:
    """Video at 64x64 in colour, to begin with. Ours, not published."""
    larger = cpu64()
    small = {"hidden": 64, "residual": 128, "layers": 5, "heads": 4, "kernel": 3}
    condition = {"condition_hidden": 64, "condition_residual": 64, "condition_layers": 4}
    rate = OptimiserConfig(name="adam", lr=1e-3, warmup_steps=200, schedule="cosine", decay=0.1)
    return replace(
        larger,
        model=VideoVQVAEConfig(
            tokenizer=TokenizerConfig(hidden=64, temporal_padding="causal"),
            top_prior=TopPriorConfig(**small, **condition, dropout=0.1),  # type: ignore[arg-type]
            bottom_prior=BottomPriorConfig(**small, **condition),  # type: ignore[arg-type]
        ),
        stages=VideoVQVAEStages(
            tokenizer=TokenizerStageConfig(
                batch=8, max_steps=4_000, restart=0.03, optimiser=replace(rate, clip_norm=0.0)
            ),
            top_prior=PriorStageConfig(batch=16, max_steps=3_000, optimiser=rate, ema=EmaConfig(decay=0.999)),
            bottom_prior=BottomPriorStageConfig(batch=16, max_steps=3_000, optimiser=rate, ema=EmaConfig(decay=0.999)),
        ),
    )


def vortex32() -> VideoVQVAEExperiment:
    """Flow past a disc at 32x32 in grey: the recipe of the bundled `vortex-vqvae`. Ours, not published."""
    rate = OptimiserConfig(name="adam", lr=1e-3, warmup_steps=200, schedule="cosine", decay=0.05)
    small = {"hidden": 64, "residual": 128, "layers": 6, "attention_every": 3, "heads": 4, "kernel": 3, "dropout": 0.1}
    read = {"embedding": 32, "condition_hidden": 64, "condition_residual": 64, "condition_layers": 1}
    prior = PriorStageConfig(
        batch=16, max_steps=2_500, cache=True, optimiser=rate, ema=EmaConfig(decay=0.999), checkpoint_every=500,
        preview_every=2_000,
    )  # fmt: skip
    return VideoVQVAEExperiment(
        data=DataConfig(channels=1, size=32),
        model=VideoVQVAEConfig(
            # frames are small: half of the published strides in space, so that codes tell them well
            tokenizer=TokenizerConfig(hidden=64, first_kernel=(4, 4, 4), temporal_padding="causal"),
            top_prior=TopPriorConfig(**small, **read),  # type: ignore[arg-type]
            bottom_prior=BottomPriorConfig(**small, **read | {"condition_hidden": 56}),  # type: ignore[arg-type]
        ),
        stages=VideoVQVAEStages(
            tokenizer=TokenizerStageConfig(
                batch=4, max_steps=3_600, restart=0.1, optimiser=rate, checkpoint_every=300, preview_every=2_000
            ),
            top_prior=prior,
            bottom_prior=_bottom(prior, max_steps=2_800),
        ),
    )


def unmasked(whole: VideoVQVAEExperiment) -> VideoVQVAEExperiment:
    """The decoder always sees the bottom codes."""
    tokenizer = replace(whole.stages.tokenizer, bottom_mask=0.0)
    return replace(whole, stages=replace(whole.stages, tokenizer=tokenizer))


def one_level(whole: VideoVQVAEExperiment) -> VideoVQVAEExperiment:
    """Bottom codes alone, drawn slice after slice."""
    return replace(whole, model=replace(whole.model, tokenizer=replace(whole.model.tokenizer, levels=1)))


def without_attention(whole: VideoVQVAEExperiment) -> VideoVQVAEExperiment:
    """Priors of convolutions only."""
    model = whole.model
    top, bottom = replace(model.top_prior, attention_every=0), replace(model.bottom_prior, attention_every=0)
    return replace(whole, model=replace(model, top_prior=top, bottom_prior=bottom))


def _bottom(prior: PriorStageConfig, **changes: Any) -> BottomPriorStageConfig:
    """The bottom's stage with what it shares with the top's."""
    return BottomPriorStageConfig(**vars(prior) | changes)


PRESETS: dict[str, Callable[[], VideoVQVAEExperiment]] = {
    "kinetics256": kinetics256,
    "cpu64": cpu64,
    "tiny64": tiny64,
    "vortex32": vortex32,
    "vortex32-unmasked": lambda: unmasked(vortex32()),
    "vortex32-onelevel": lambda: one_level(vortex32()),
    "vortex32-noattention": lambda: without_attention(vortex32()),
}
