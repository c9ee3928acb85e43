# SPDX-License-Identifier: Apache-2.0
"""Protocols on the open sets: generated from a seed, the same for everyone, small enough for two cores.

`vortex32` is nearly deterministic: who knows 4 frames can know the rest. `bouncing32` has many futures, all known.
Everything here is framecast's own; no paper reports values under these protocols.
"""

from __future__ import annotations

from dataclasses import replace

from framecast.evaluate.terms import Case, Cut, Protocol

_NO_FVD = "FVD: rf3d-v1 only ranks runs on the same set with the same numbers of clips, and has no place beside one"
_UNITS = "an interval over 128 units: windows of one flow differ in phase only, so that there are 32"

SMOKE_LBM = Protocol(
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
    metrics=("crps", "psnr", "ssim", "ensemble", "drift", "rf3d", "rf3d*"),
    is_not=(_NO_FVD, _UNITS),
    source="framecast's open sets",
)

OPEN_SETS = (
    SMOKE_LBM,
    replace(
        SMOKE_LBM,
        name="smoke-lbm-100",
        about="prediction 4 → 12 of unseen flows past a disc, full size: 100 samples",
        paired=Cut(how="phases", clips=32, per_clip=4, samples=100),
    ),
    replace(
        SMOKE_LBM,
        name="smoke-lbm-16",
        about="prediction 16 → 16 of unseen flows past a disc; a model that takes fewer frames sees the last ones",
        cases=(Case(known=tuple(range(16)), frames=32),),
    ),
    replace(
        SMOKE_LBM,
        name="smoke-lbm-200",
        about="prediction 4 → 200 of unseen flows past a disc: what long forecasts become",
        # more frames than the set has: flows are made so long in a folder of their own, where test windows of the
        # other protocols are the same bits, but an analog finds more training windows
        cases=(Case(known=(0, 1, 2, 3), frames=204),),
        paired=Cut(how="from_start", clips=32, samples=4),
        sets=None,
        metrics=("crps", "ensemble", "drift", "late"),
        is_not=(
            "a judgement of single frames: so late the phase may be lost, and what counts is what the flow is like",
            "a value of a forecast from lead 100 on: scores that do not say so are means over all 200 leads",
        ),
    ),
    Protocol(
        name="smoke-bounce",
        about="prediction 4 → 12 of digits that leave walls at random, beside the true futures",
        set="bouncing32",
        split="test",
        channels=1,
        height=32,
        width=32,
        task="forecast",
        cases=(Case(known=(0, 1, 2, 3), frames=16),),
        paired=Cut(how="whole", clips=256, samples=10),
        sets=Cut(how="whole", clips=512),
        futures=100,
        metrics=("crps", "psnr", "ssim", "best_of", "ensemble", "modes", "drift", "rf3d"),
        is_not=(
            _NO_FVD,
            "a mean over samples, or the best of 100, where it is the best of 10",
            "a value on Moving MNIST, which has other digits and other laws",
        ),
        source="framecast's open sets",
    ),
    replace(
        SMOKE_LBM,
        name="infill-lbm",
        about="unknown frames between known ones of unseen flows past a disc",
        cases=tuple(Case(known=known, frames=16) for known in ((0, 15), (0, 1, 14, 15), (0, 5, 10, 15))),
    ),
    Protocol(
        name="generate-lbm",
        about="flows past a disc from nothing, 16 and 128 frames, and how near they are to training",
        set="vortex32",
        split="test",
        channels=1,
        height=32,
        width=32,
        task="generate",
        cases=(Case(known=(), frames=16), Case(known=(), frames=128)),
        sets=Cut(how="phases", clips=32, per_clip=16),
        metrics=("rf3d", "memorisation", "field"),
        is_not=(
            _NO_FVD,
            "proof that nothing is copied: distances like those of held-out windows are no more than no sign of it",
        ),
        source="framecast's open sets",
    ),
)
