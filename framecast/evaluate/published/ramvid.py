# SPDX-License-Identifier: Apache-2.0
"""Protocols of "Diffusion Models for Video Prediction and Infilling" (RaMViD), its tables 1 to 5.

All at 64x64 with 1000 ancestral steps; samples are stored as truncated bytes. p_U is the share of training clips of
which no frame was given.
"""

from __future__ import annotations

from dataclasses import replace

from framecast.evaluate.terms import Case, Cut, FrechetSettings, InceptionSettings, Protocol, Published

_PAPER = "Höppe et al., Diffusion Models for Video Prediction and Infilling (TMLR 2022)"
_I3D = "TF-Hub i3d-kinetics-400"
_OTHER_PORT = "FVD by another port of I3D: about 166 was measured so for the model that is reported with 84.20"
_STEPS = "1000 ancestral steps, the code's default"
_KERNEL = "halving by box filter down to under twice the size, then bicubic"


def _by_rate(metric: str, values: tuple[float, ...]) -> tuple[Published, ...]:
    """Of the models trained with p_U = 0, 0.25, 0.5 and 0.75."""
    rates = (0, 0.25, 0.5, 0.75)
    return Published.rows(metric, {f"RaMViD p_U={rate:g}": value for rate, value in zip(rates, values)})


_BAIR = Protocol(
    name="ramvid-bair-pred",
    about="BAIR robot pushing, prediction 1 → 15, FVD, one prediction per test clip",
    set="bair",
    split="test",
    channels=3,
    height=64,
    width=64,
    task="forecast",
    cases=(Case(known=(0,), frames=16),),
    sets=Cut(how="from_start", clips=256),
    metrics=("fvd",),
    frechet=FrechetSettings(resize="tf1"),
    quantise="truncate",
    sampler={"sampler": "ddpm", "steps": 1000},
    weights={"fvd": _I3D},
    published=(
        *Published.rows(
            "fvd",
            {
                "SAVP": 116.4,
                "DVD-GAN-FP": 109.8,
                "TrIVD-GAN-FP": 103.3,
                "VideoGPT": 103.3,
                "Video Transformer": 94.0,
                "FitVid": 93.6,
                "MCVD": 89.5,
                "NUWA": 86.9,
            },
        ),
        *_by_rate("fvd", (86.41, 84.20, 85.03, 86.05)),
    ),
    assumed=(
        "one prediction per test clip; the paper does not say how many, its authors name FitVid's 100",
        "FVD over all 16 frames, the given one included",
        "frames 0 to 15 of each clip",
        _STEPS,
    ),
    is_not=(
        _OTHER_PORT,
        "a value with 100 predictions per clip: FVD falls with the number of samples",
    ),
    source=f"{_PAPER}, table 1",
)

_K600 = Protocol(
    name="ramvid-k600-pred",
    about="Kinetics-600, prediction 5 → 11, FVD",
    set="kinetics600",
    split="val",
    channels=3,
    height=64,
    width=64,
    resampling=_KERNEL,
    task="forecast",
    cases=(Case(known=(0, 1, 2, 3, 4), frames=16),),
    sets=Cut(how="random", clips=None),
    metrics=("fvd",),
    frechet=FrechetSettings(resize="tf1"),
    quantise="truncate",
    sampler={"sampler": "ddpm", "steps": 1000},
    weights={"fvd": _I3D},
    published=(
        *Published.rows(
            "fvd",
            {
                "Video Transformer": (170, 5),
                "DVD-GAN-FP": (69, 1),
                "CCVS": (55, 1),
                "TrIVD-GAN-FP": (26, 1),
            },
        ),
        *_by_rate("fvd", (18.69, 16.46, 17.61, 27.64)),
    ),
    assumed=(
        "the validation split, every clip that can be read, one prediction each",
        "one window per clip at a random start",
        "FVD over all 16 frames, the given ones included",
        _STEPS,
    ),
    is_not=(
        _OTHER_PORT,
        "a value with 4 given frames, as Video VQ-VAE's, or with another number of clips: copies of the set differ",
    ),
    source=f"{_PAPER}, table 3",
)

RAMVID = (
    _BAIR,
    replace(
        _BAIR,
        name="ramvid-bair-pred-100",
        about="BAIR robot pushing, prediction 1 → 15, FVD, 100 predictions per test clip",
        sets=Cut(how="from_start", clips=256, samples=100),
        assumed=(
            "100 predictions per test clip as FitVid, which the authors say they follow; the paper gives no number",
            *_BAIR.assumed[1:],
        ),
        is_not=(_OTHER_PORT, "a value with one prediction per clip, which is higher"),
    ),
    replace(
        _BAIR,
        name="ramvid-bair-infill",
        about="BAIR robot pushing, the 14 frames between the first and the last, FVD",
        cases=(Case(known=(0, 15), frames=16, judged=tuple(range(1, 15))),),
        published=_by_rate("fvd", (85.68, 85.02, 87.04, 87.85)),
        assumed=("one sample per test clip", "frames 0 to 15 of each clip", _STEPS),
        is_not=(_OTHER_PORT, "a value of prediction: FVD is over the 14 drawn frames alone"),
        source=f"{_PAPER}, table 2",
    ),
    _K600,
    replace(
        _K600,
        name="ramvid-k600-infill-ends",
        about="Kinetics-600, the 12 frames between the first two and the last two, FVD",
        cases=(Case(known=(0, 1, 14, 15), frames=16, judged=tuple(range(2, 14))),),
        published=_by_rate("fvd", (10.68, 10.85, 10.86, 17.33)),
        assumed=(*_K600.assumed[:2], "FVD over the 12 drawn frames alone, as the paper says of BAIR's 14", _STEPS),
        is_not=(_OTHER_PORT, "a value over all 16 frames, which is lower"),
        source=f"{_PAPER}, table 4",
    ),
    replace(
        _K600,
        name="ramvid-k600-upsample",
        about="Kinetics-600, two frames between every two of four, FVD",
        cases=(Case(known=(0, 5, 10, 15), frames=16),),
        published=_by_rate("fvd", (6.28, 4.91, 5.90, 7.29)),
        assumed=(*_K600.assumed[:2], "FVD over all 16 frames: the drawn ones alone are no clip", _STEPS),
        is_not=(_OTHER_PORT, "a value of prediction: 4 of the 16 frames that are judged are real"),
        source=f"{_PAPER}, table 4",
    ),
    Protocol(
        name="ramvid-ucf-uncond",
        about="UCF-101, 16 frames from nothing, Inception Score",
        set="ucf101",
        split="train",
        channels=3,
        height=64,
        width=64,
        resampling=_KERNEL,
        task="generate",
        cases=(Case(known=(), frames=16),),
        metrics=("is",),
        inception=InceptionSettings(samples=20_480, splits=10, eps=1e-20),
        quantise="truncate",
        sampler={"sampler": "ddpm", "steps": 1000},
        weights={"is": "C3D of UCF-101 as in TGANv2's evaluation, with its mean"},
        published=(
            *Published.rows(
                "is",
                {
                    "VGAN": (8.31, 0.09),
                    "MoCoGAN": (12.42, 0.03),
                    "TGAN-F": 13.62,
                    "TGANv2": (26.60, 0.47),
                    "Video Diffusion": (57, 0.62),
                    "RaMViD p_U=0.5": (20.84, 0.08),
                    "RaMViD p_U=0.75": (21.71, 0.21),
                },
            ),
        ),
        assumed=("10 × 2,048 clips, as TGANv2's evaluation has it", "trained on the training list of fold 1", _STEPS),
        is_not=(
            "a score of 10,000 clips in splits of 1,000: fewer clips a split give less",
            "a score of clips drawn at more than 64x64",
        ),
        source=f"{_PAPER}, table 5",
    ),
)
