# SPDX-License-Identifier: Apache-2.0
"""One tiny experiment per system, in this one table: the contract, resume and overfit tests walk it.

A new system adds one function here: 8×8 or 16×16 pixels, at most a few thousand weights, a learning rate at which every
stage halves its loss on four clips in 200 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from framecast.experiment import DataConfig, EmaConfig, Experiment, OptimiserConfig, StageConfig
from framecast.systems import SYSTEMS, Entry
from framecast.systems.pvdm.config import (
    AutoencoderConfig,
    AutoencoderStageConfig,
    DenoiserConfig,
    PVDMConfig,
    PVDMExperiment,
    PVDMSampling,
    PVDMStages,
)
from framecast.systems.pvdm.config import DiffusionStageConfig as LatentStageConfig
from framecast.systems.ramvid.config import (
    DiffusionStageConfig,
    RaMViDConfig,
    RaMViDExperiment,
    RaMViDSampling,
    RaMViDStages,
)
from framecast.systems.rvd.config import (
    ForecastStageConfig,
    RVDConfig,
    RVDExperiment,
    RVDSampling,
    RVDStages,
)
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
from tests.toy import ToyExperiment, ToyStages

DATA = DataConfig(channels=1, size=8)
TOY = Entry(system="tests.toy:Toy", experiment="tests.toy:ToyExperiment", presets="", weights="", tasks=("predict",))


def toy() -> ToyExperiment:
    """The linear predictor."""
    return ToyExperiment(data=DATA, stages=ToyStages(pixel=StageConfig(**quick(lr=0.02, clip_frames=6))))


def ramvid() -> RaMViDExperiment:
    """One level of four channels and attention in the middle."""
    return RaMViDExperiment(
        data=DATA,
        model=RaMViDConfig(
            width=8, multipliers=(1, 2), res_blocks=1, attention=(2,), heads=2, groups=4, noise_levels=50, dropout=0.1
        ),
        stages=RaMViDStages(diffusion=DiffusionStageConfig(**quick(lr=3e-3, clip_frames=5), max_known=2)),
        sample=RaMViDSampling(sampler="ddim", steps=3, overlap=2),
    )


def rvd() -> RVDExperiment:
    """Two levels of eight and sixteen channels in each network; two frames are drawn per window."""
    return RVDExperiment(
        data=DATA,
        model=RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), groups=4, noise_levels=50),
        stages=RVDStages(forecast=ForecastStageConfig(**quick(lr=5e-3, clip_frames=5))),
        sample=RVDSampling(sampler="ddpm", steps=3, window=2),
    )


def pvdm() -> PVDMExperiment:
    """Clips of four frames in planes of 2x2 and 4x2 places; both phases of the autoencoder, cached latents."""
    judged = OptimiserConfig(lr=1e-4)
    return PVDMExperiment(
        data=DATA,
        model=PVDMConfig(
            autoencoder=AutoencoderConfig(
                width=16, patch=4, depth=1, heads=2, head_width=8, expansion=2,
                plane_depth=1, plane_heads=2, plane_head_width=8, plane_hidden=16,
            ),
            denoiser=DenoiserConfig(width=8, multipliers=(1, 2), res_blocks=1, attention=(2,), heads=2, groups=4),
        ),
        stages=PVDMStages(
            autoencoder=AutoencoderStageConfig(
                **quick(lr=5e-3, clip_frames=4), adversarial_weight=0.01, matching_weight=0.1, adversarial_from=6,
                discriminator_width=2, discriminator_optimiser=judged,
            ),
            diffusion=LatentStageConfig(**quick(lr=5e-3, clip_frames=4), draw="clip", cache=True),
        ),
        sample=PVDMSampling(steps="3/2"),
    )  # fmt: skip


def video_vqvae() -> VideoVQVAEExperiment:
    """Clips of twelve frames in 3x2x2 top and 6x4x4 bottom codes of sixteen; cached codes, all slices of a clip."""
    prior: dict[str, Any] = {"hidden": 8, "residual": 16, "layers": 2, "attention_every": 2, "heads": 2, "embedding": 8}
    condition: dict[str, Any] = {"condition_hidden": 8, "condition_residual": 8, "condition_layers": 1}
    stage = quick(lr=2e-2, clip_frames=12)
    return VideoVQVAEExperiment(
        data=DATA,
        model=VideoVQVAEConfig(
            tokenizer=TokenizerConfig(
                hidden=8,
                residual=4,
                layers=1,
                codes=16,
                code_width=4,
                first_kernel=(4, 4, 4),
                temporal_padding="causal",
            ),
            top_prior=TopPriorConfig(**prior, **condition, dropout=0.1),
            bottom_prior=BottomPriorConfig(**prior, **condition, kernel=3),
        ),
        stages=VideoVQVAEStages(
            tokenizer=TokenizerStageConfig(
                **{**quick(lr=1e-2, clip_frames=12), "ema": EmaConfig(decay=0)}, restart=0.03
            ),
            top_prior=PriorStageConfig(**stage, cache=True),
            bottom_prior=BottomPriorStageConfig(**stage, cache=True, slices=0),
        ),
    )


TINY: dict[str, Callable[[], Any]] = {
    "toy": toy,
    "ramvid": ramvid,
    "rvd": rvd,
    "pvdm": pvdm,
    "video_vqvae": video_vqvae,
}


def quick(*, lr: float, clip_frames: int) -> dict[str, Any]:
    """Stage settings that all tiny experiments share."""
    return {
        "clip_frames": clip_frames,
        "batch": 4,
        "max_steps": 10,
        "optimiser": OptimiserConfig(lr=lr),
        "ema": EmaConfig(decay=0.9),
        "log_every": 2,
        "checkpoint_every": 100,
    }


def change(experiment: Any, *, data: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The experiment with some settings of all its stages, and of the data, changed."""
    stages = experiment.stages
    fresh = {name: replace(getattr(stages, name), **settings) for name in vars(stages)}
    changed: Experiment = replace(experiment, stages=replace(stages, **fresh))  # type: ignore[call-arg]
    return replace(changed, data=replace(changed.data, **(data or {})))


def write_clips(folder: Path, *, files: int = 8, frames: int = 10, side: int = 8) -> Path:
    """Grey clips of a bright square that moves right, one array file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        clip = np.full((frames, side, side, 1), 30, np.uint8)
        for t in range(frames):
            at = (i + t) % (side - 2)
            clip[t, i % (side - 2) : i % (side - 2) + 3, at : at + 3] = 220
        np.save(folder / f"clip{i}.npy", clip)
    return folder


def register(name: str = "toy", row: Entry = TOY) -> None:
    """Make a test's own system known, in this process."""
    SYSTEMS[name] = row
