# SPDX-License-Identifier: Apache-2.0
"""Protocols on the open sets: generated from a seed, the same for everyone, small enough for two cores."""

from __future__ import annotations

from framecast.evaluate.terms import Case, Cut, Protocol

OPEN_SETS = (
    Protocol(
        name="smoke-lbm",
        about="prediction 4 → 12 of unseen flows past a disc, quick size",
        set="vortex32",
        split="test",
        channels=1,
        height=32,
        width=32,
        task="forecast",
        cases=(Case(known=(0, 1, 2, 3), frames=16),),
        paired=Cut(how="phases", clips=32, per_clip=4, samples=8),
        sets=Cut(how="phases", clips=32, per_clip=16),
        metrics=("crps", "psnr", "ssim", "ensemble", "drift", "rf3d"),
        source="framecast's open sets: prediction 4 → 12 of unseen flows, quick size",
    ),
)
