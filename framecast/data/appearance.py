# SPDX-License-Identifier: Apache-2.0
"""What clips look like in four numbers per frame, so that a model can tell a clip of another kind from its own.

`appearance` sums up training clips and travels with the model; `unlike` compares a user's frames with it. The numbers
are taken frame by frame (change: pair by pair), because the mean over any few frames then lies within their range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framecast.data.array_file import generated_by
from framecast.data.clips import ClipStream
from framecast.video import Video

QUANTILES = (0.01, 0.5, 0.99)
_FEW, _MANY, _PIXELS = 16, 64, 2**25  # clips looked at: many, or as few as keep within so many source pixels
_BLANK = 0.005  # contrast of a frame of one colour; one of 256 levels is 0.0078
# One value is foreign beyond the range of the training clips times such a factor (the level, which may be 0, by a
# distance), or several that come as far together. Motion varies most from clip to clip of one kind, the other three
# are properties of the scene. Measured on models of flows: held-out flows reach 0.03, real videos 2.2 and more.
_FACTORS = {"contrast": 1.6, "detail": 1.6, "change": 3.0}
_LEVEL = 0.15  # in values from -1 to 1, plus the width of the range itself
_WORDS = {
    "level": "mean value",
    "contrast": "contrast",
    "detail": "difference between neighbouring pixels",
    "change": "change per frame",
}


def facts(frames: Tensor, at: Sequence[int] | None = None) -> dict[str, Tensor]:
    """What frames look like, in values from -1 to 1.

    Args:
        frames: (T, C, H, W), -1 to 1.
        at: when each comes, in frames; None: one after another. Change is told of neighbours only.

    Returns:
        level (mean), contrast (standard deviation) and detail (mean absolute difference of neighbouring pixels) of
        every frame, and change (mean absolute difference) of every two neighbouring frames.

    Example:
        >>> told = facts(torch.tensor([-1.0, 1.0]).repeat(3, 1, 2, 1))
        >>> [(name, values.tolist()) for name, values in told.items()][2:]
        [('detail', [1.0, 1.0, 1.0]), ('change', [0.0, 0.0])]
    """
    over = (1, 2, 3)
    across = [side.abs().mean(over) for side in (frames.diff(dim=-1), frames.diff(dim=-2)) if side.numel()]
    when = torch.arange(len(frames)) if at is None else torch.as_tensor(list(at))
    return {
        "level": frames.mean(over),
        "contrast": frames.std(over, correction=0),
        "detail": torch.stack(across).mean(0) if across else frames.new_zeros(len(frames)),
        "change": frames.diff(dim=0).abs().mean(over)[when.diff() == 1],
    }


def appearance(stream: ClipStream) -> dict[str, Any]:
    """What the first clips of a stream look like, as plain values; the same for the same stream.

    Returns:
        clips: how many were looked at; values: `pictures` (uint8) or `fields`; set: what the files are, where they say
        so; and of each of `facts` the quantiles 0.01, 0.5 and 0.99.

    Raises:
        ValueError: too many files break while they are read.
    """
    source = max(file.height * file.width for file in stream.files) * stream.video.clip_frames
    count = min(stream.windows, max(_FEW, min(_MANY, _PIXELS // source)))
    look = stream.uncached()
    seen: dict[str, list[Tensor]] = {name: [] for name in _WORDS}
    for position in range(count):
        clip, valid = look.clip(position)
        for name, values in facts(clip[valid]).items():
            seen[name].append(values)
    told: dict[str, Any] = {
        "clips": count,
        "values": "pictures" if all(file.value_range is None for file in stream.files) else "fields",
    }
    sets = {generated_by(look.root / look.window(position).path).get("set") for position in range(count)}
    if len(sets) == 1 and isinstance(kind := sets.pop(), str):
        told["set"] = kind
    for name, parts in seen.items():
        if (values := torch.cat(parts)).numel():
            told[name] = [float(f"{q:.4g}") for q in values.quantile(torch.tensor(QUANTILES)).tolist()]
    return told


def unlike(told: Mapping[str, Any], video: Video, at: Sequence[int] | None = None) -> str | None:
    """What sets frames apart from the clips that `appearance` told of, or None where nothing does by far.

    Args:
        told: by `appearance`.
        video: frames of one clip, (1, T, C, H, W).
        at: when each of them comes; None: one after another.

    Returns:
        The fact that differs most, without a full stop: `contrast 0.22 to 0.26, here 0.51`.
    """
    here = {name: values.mean().item() for name, values in facts(video[0], at).items() if values.numel()}
    ranges = {name: quantiles for name in here if (quantiles := _quantiles(told, name))}
    usual = ranges.get("contrast")
    if usual and here["contrast"] < min(_BLANK, usual[0]) and usual[1] > 4 * _BLANK:  # some kinds have blank frames
        return f"contrast {_span(usual)}, here every pixel of a frame has the same value"
    far = {name: _distance(name, here[name], quantiles) for name, quantiles in ranges.items()}
    if sum(far.values()) <= 1:
        return None
    most = max(far, key=far.__getitem__)
    return f"{_WORDS[most]} {_span(ranges[most])}, here {here[most]:.2g}"


def _quantiles(told: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """The quantiles of a fact; None where they are not told, or nonsense."""
    found = told.get(name)
    if isinstance(found, Sequence) and len(found) == 3 and all(isinstance(q, (int, float)) for q in found):
        low, middle, high = map(float, found)
        return (low, middle, high) if low <= middle <= high else None
    return None


def _distance(name: str, value: float, quantiles: tuple[float, float, float]) -> float:
    """How far a value lies outside the range of the quantiles: 0 inside, 1 where it is foreign by itself."""
    low, _, high = quantiles
    if low <= value <= high:
        return 0.0
    if name not in _FACTORS:
        return max(low - value, value - high) / (_LEVEL + high - low)
    least = 1e-6
    ratio = max(value, least) / max(high, least) if value > high else max(low, least) / max(value, least)
    return math.log(ratio) / math.log(_FACTORS[name])


def _span(quantiles: tuple[float, float, float]) -> str:
    low, _, high = quantiles
    return f"{low:.2g} to {high:.2g}"
