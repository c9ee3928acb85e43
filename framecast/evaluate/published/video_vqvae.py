# SPDX-License-Identifier: Apache-2.0
"""Protocols of "Predicting Video with VQVAE" (Video VQ-VAE), its tables 1 and 2.

Prediction 4 → 12 of Kinetics-600; values are means over two halves of 39,000 samples. FVD* compares samples with
reconstructions of real clips in place of the clips. There is no released code.
"""

from __future__ import annotations

from framecast.evaluate.terms import Case, Cut, FrechetSettings, Protocol, Published

_PAPER = "Walker, Razavi and van den Oord, Predicting Video with VQVAE (2021)"

_TABLE_2 = {
    64: (
        *Published.rows("fvd", {"Video Transformer": (170, 5), "DVD-GAN-FP": (69.15, 1.16)}),
        *Published.rows("fvd", {"TrIVD-GAN-FP": (25.74, 0.66), "Video VQ-VAE": (64.30, 2.04)}),
        *Published.rows("fvd*", {"Video VQ-VAE": (54.30, 3.49)}),
    ),
    256: (
        *Published.rows("fvd", {"Video VQ-VAE": (129.85, 1.64)}),
        *Published.rows("fvd*", {"Video VQ-VAE": (82.45, 1.16)}),
    ),
}


def _fvd(side: int) -> Protocol:
    assumed = [
        "the validation split, one window per clip at a random start; copies of it hold under 39,000 clips",
        "39,000 samples and the clips that they continue, in two disjoint halves, one value each",
        "FVD over all 16 frames, resized by TensorFlow 1's bilinear rule; of samples the given frames, too, are as the "
        "model decodes them, where it decodes (sample.given model)",
    ]
    is_not = ["a value with 5 given frames, which most methods in the paper's table have"]
    if side == 64:
        assumed.append("clips and samples compared at 64x64; the paper reduces samples of 256x256, it does not say how")
        is_not.append("a value at 256x256, which is about twice as high")
    is_not.append("FVD, where it is FVD*: its reference is what the codec makes of real clips")
    return Protocol(
        name=f"vqvae-k600-fvd-{side}",
        about=f"Kinetics-600 at {side}x{side}, prediction 4 → 12, FVD and FVD*",
        set="kinetics600",
        split="val",
        channels=3,
        height=side,
        width=side,
        task="forecast",
        cases=(Case(known=(0, 1, 2, 3), frames=16),),
        sets=Cut(how="random", clips=39_000),
        metrics=("fvd", "fvd*"),
        frechet=FrechetSettings(resize="tf1", folds=2),
        sampler={"given": "model"},  # as in the paper's figure 1
        weights={"fvd": "TF-Hub i3d-kinetics-400"},
        published=_TABLE_2[side],
        assumed=tuple(assumed),
        is_not=tuple(is_not),
        source=f"{_PAPER}, table 2",
    )


VIDEO_VQVAE = (
    _fvd(64),
    _fvd(256),
    Protocol(
        name="vqvae-k600-human",
        about="Kinetics-600 at 64x64, which of two continuations people prefer: 15 people, 405 judgements",
        set="kinetics600",
        split="val",
        channels=3,
        height=64,
        width=64,
        task="record",
        published=Published.rows("% of judgements", {"Video VQ-VAE": 65.7, "TrIVD-GAN-FP": 12.8, "indifferent": 21.5}),
        is_not=("a preference among other people, pairs or sizes of screen",),
        source=f"{_PAPER}, table 1",
    ),
)
