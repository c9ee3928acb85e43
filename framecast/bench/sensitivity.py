# SPDX-License-Identifier: Apache-2.0
"""What `rf3d-v1` sees: its figures between two sets of bouncing digits, the second one changed in a known way.

The first row, of two sets that differ by chance only, is the floor that every other is to be read beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from framecast.bench.measure import Memory, facts, timed
from framecast.data.simulate import bouncing
from framecast.data.simulate.sets import SETS, BouncingSet, about
from framecast.data.simulate.street import Split
from framecast.devices import pick_device
from framecast.metrics.rf3d import NAME, RF3D, scores

SET = "bouncing32"
CLIPS = 512  # on each side
FRAMES = 16
_KEPT = 8  # clips that a collapsed set repeats


def digits(split: Split, count: int, *, speed: float = 1.0) -> Tensor:
    """The first clips of a split of the set, (n, T, C, H, W) uint8, with all digits so many times as fast."""
    kind = SETS[SET]
    assert isinstance(kind, BouncingSet)
    low, high = kind.scene.speed
    scene = replace(kind.scene, speed=(speed * low, speed * high))
    seeds = [about(SET, split, number)["clip_seed"] for number in range(count)]
    return torch.stack([bouncing.clip(scene, frames=FRAMES, seed=seed) for seed in seeds])


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _shuffled(clips: Tensor) -> Tensor:
    order = torch.rand(clips.shape[:2], generator=_rng()).argsort(1)
    return torch.stack([clip[places] for clip, places in zip(clips, order)])


def _blurred(clips: Tensor) -> Tensor:
    frames = F.pad(rearrange(clips, "n t c h w -> (n t) c h w").float(), (2, 2, 2, 2), mode="replicate")
    means = F.avg_pool2d(frames, 5, stride=1).round().to(torch.uint8)
    return rearrange(means, "(n t) c h w -> n t c h w", n=len(clips))


def _noisy(clips: Tensor, deviation: float) -> Tensor:
    noise = deviation * torch.randn(clips.shape, generator=_rng())
    return (clips + noise).round().clamp(0, 255).to(torch.uint8)


# what is done to the second set, and how
CHANGES: dict[str, Callable[[int], Tensor]] = {
    "none (floor)": lambda count: digits("test", count),
    "frames shuffled in time": lambda count: _shuffled(digits("test", count)),
    "first frame frozen": lambda count: digits("test", count)[:, :1].expand(-1, FRAMES, -1, -1, -1),
    "time reversed": lambda count: digits("test", count).flip(1),
    "speed × 1.5": lambda count: digits("test", count, speed=1.5),
    "speed × 0.5": lambda count: digits("test", count, speed=0.5),
    "brightness + 20": lambda count: (digits("test", count).int() + 20).clamp(max=255).to(torch.uint8),
    "5×5 blur": lambda count: _blurred(digits("test", count)),
    "noise, sd 3": lambda count: _noisy(digits("test", count), 3.0),
    "noise, sd 10": lambda count: _noisy(digits("test", count), 10.0),
    f"collapse to {_KEPT} clips": lambda count: digits("test", _KEPT).repeat(-(-count // _KEPT), 1, 1, 1, 1)[:count],
}


def sensitivity(*, clips: int = CLIPS, device: str = "auto") -> list[dict[str, Any]]:
    """A row per change: time of the features of the changed set, and the figures against the training split.

    Args:
        clips: on each side; the two sides are different splits.
        device: of the networks, as for `pick_device`.
    """
    where = pick_device(device)
    network = RF3D().to(where)
    real = network.features(digits("train", clips))
    rows = []
    for change, make in CHANGES.items():
        fake, held = make(clips), dict[str, Tensor]()
        memory = Memory(where)
        times = timed(lambda: held.update(network.features(fake)), repeats=1, device=where)  # noqa: B023
        row = {"what": NAME, "case": f"{SET}, {clips} clips a side: {change}", **times.plain(), **memory.plain()}
        row |= {"rate": clips / times.median, "rate_unit": "clips/s", "scores": scores(real, held), "change": change}
        rows.append(row | facts(where))
    return rows
