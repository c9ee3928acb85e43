# SPDX-License-Identifier: Apache-2.0
"""What judging costs: the features of Fréchet video distances, and CRPS of many samples.

I3D's weights come from a formula; the time does not depend on them. Its products keep all digits of float32, as
features need, and so do the matrix products that its rate is compared with.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from framecast.bench.measure import Memory, beside_matmul, facts, operations, timed
from framecast.devices import pick_device
from framecast.metrics.features import FeatureNetwork, strict_float32
from framecast.metrics.forecast import crps_by_frame
from framecast.metrics.hash_fill import fill
from framecast.metrics.i3d import CLASSES, I3D, SHORTEST, SIDE
from framecast.metrics.i3d_weights import Preprocessed

BATCHES = (1, 4)
_SAMPLES, _CHANNELS, _SIZE = 100, 3, 64  # of the forecasts that are judged


def features(*, device: str, repeats: int, frames: int = 16) -> list[dict[str, Any]]:
    """A row per batch size: 8-bit clips of 224 × 224 to features, with the share of the matmul rate."""
    where, rows = pick_device(device), []
    network = I3D(eps=1e-5)
    fill(network)
    i3d = FeatureNetwork(
        name="i3d",
        sha256="",
        about={},
        frames=(SHORTEST, None),
        width=CLASSES,
        network=Preprocessed(network.requires_grad_(False), "straight"),
    ).to(where)
    for batch in BATCHES:
        clips = torch.randint(0, 256, (batch, frames, 3, SIDE, SIDE), dtype=torch.uint8)
        row: dict[str, Any] = {"what": "features", "case": f"I3D: {SIDE}×{SIDE}×3, {frames} frames, batch {batch}"}
        with strict_float32(), beside_matmul(row, where, torch.float32):
            memory = Memory(where)
            work = partial(i3d.features, clips)
            row["operations"] = operations(work)  # warms up, too
            times = timed(work, repeats=repeats, device=where)
            row |= {**times.plain(), **memory.plain(), "rate": batch / times.median, "rate_unit": "clips/s"}
        rows.append(row | facts(where))
    return rows


def crps(*, device: str, repeats: int, frames: int = 16) -> list[dict[str, Any]]:
    """100 samples of a clip of 64 × 64, judged frame by frame; memory is what that takes beyond samples and truth."""
    where = pick_device(device)
    shape = (frames, _CHANNELS, _SIZE, _SIZE)
    samples = torch.randint(0, 256, (_SAMPLES, *shape), dtype=torch.uint8, device=where)
    truth = torch.randint(0, 256, shape, dtype=torch.uint8, device=where)
    crps_by_frame(samples[:2], truth)  # what libraries take for themselves is no part of it
    memory = Memory(where)
    crps_by_frame(samples, truth)
    times = timed(lambda: crps_by_frame(samples, truth), repeats=repeats, device=where)
    case = f"{_SAMPLES} samples, {frames} frames of {_SIZE}×{_SIZE}×{_CHANNELS}"
    row = {"what": "crps", "case": case, **times.plain(), **memory.plain()}
    return [row | {"rate": frames / times.median, "rate_unit": "frames/s", **facts(where)}]
