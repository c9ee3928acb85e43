# SPDX-License-Identifier: Apache-2.0
"""What clips drawn from nothing are like beside real ones: how they vary and recur, and whether they are copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from framecast.evaluate.analog import Library
from framecast.evaluate.sets import Features, SetFigure, compared, one
from framecast.metrics.field import period, spectrum_by_frame, variance_by_frame

_BATCH = 16  # clips searched for at once


def fields(
    real: Iterable[Tensor], fake: Iterable[Tensor], *, units: Sequence[Hashable]
) -> tuple[dict[str, SetFigure], dict[str, np.ndarray]]:
    """Variance and spectrum by frame, and the period, of drawn clips beside real ones.

    Args:
        real: 8-bit clips (T, C, H, W), taken one at a time.
        fake: likewise.
        units: the independent unit of each real clip; drawn clips are independent.

    Returns:
        `variance` and `spectrum` (mean absolute difference of the logarithms, base 10, of the mean curves: 0.1 is a
        factor of 1.26), `period` in frames, and the mean variance by frame of both sets as curves.
    """
    sets = [[_described(clip) for clip in clips] for clips in (real, fake)]
    figures = {}
    for name in ("variance", "spectrum"):
        a, b = (torch.stack([getattr(told, name).flatten() for told in many]) for many in sets)
        label = f"log10 ratio of the {name} by frame"
        (figures[name],) = compared([label], one(_log_gap), Features(a, units), Features(b, range(len(b))))
    figures["period"] = _periods(*([told.period for told in many] for many in sets))
    means = [torch.stack([told.variance for told in many]).mean(0).numpy() for many in sets]
    return figures, {"variance_of_real": means[0], "variance": means[1]}


@dataclass(frozen=True)
class _Described:
    variance: Tensor  # (T,)
    spectrum: Tensor  # (T, rings)
    period: float  # frames


def _described(clip: Tensor) -> _Described:
    return _Described(variance_by_frame(clip), spectrum_by_frame(clip), period(clip))


def _log_gap(real: Tensor, fake: Tensor) -> float:
    """Mean absolute difference of the logarithms of the mean curves."""
    if not len(real) or not len(fake):
        raise ValueError("no clips to compare.")
    tiny = 1e-12
    return (real.mean(0).clamp(min=tiny).log10() - fake.mean(0).clamp(min=tiny).log10()).abs().mean().item()


def _periods(real: Sequence[float], fake: Sequence[float]) -> SetFigure:
    """The median period; its floor is that of real clips."""
    found = [[p for p in many if math.isfinite(p)] for many in (real, fake)]
    middle = [float(np.median(many)) if many else math.nan for many in found]
    low, high = (float(np.quantile(found[1], q)) if found[1] else None for q in (0.025, 0.975))
    shares = [f"{len(some)} of {len(many)}" for some, many in zip(found, (real, fake))]
    note = (
        f"median in frames over the clips that recur ({shares[1]}; of real ones {shares[0]}, whose median is the floor)"
        "; the interval holds 95 of 100 clips"
    )
    return SetFigure("period", middle[1], low, high, (), len(real), len(fake), middle[0], "none", note)


def memorisation(
    real: Iterable[Tensor],
    fake: Iterable[Tensor],
    *,
    reference: Path,
    total: int,
    progress: Callable[[int, int], None] | None = None,
) -> SetFigure:
    """How far drawn clips are from the nearest training window, beside how far clips are that training never saw.

    Args:
        real: held-out 8-bit clips (T, C, H, W).
        fake: drawn ones.
        reference: folder of the training clips.
        total: drawn clips, for `progress`.
        progress: called with drawn clips done and in all.

    Returns:
        The median distance, root mean square in 8-bit levels; its floor is that of the held-out clips. The note tells
        how many drawn clips lie nearer than 95 of 100 held-out ones do: 5 in 100 are chance, more are copies.

    Raises:
        ValueError: no training clips of that form.
    """
    library: list[Library] = []
    held_out = np.array(list(_nearest(real, reference, library)))
    drawn = []
    for distance in _nearest(fake, reference, library):
        drawn.append(distance)
        if progress is not None:
            progress(len(drawn), total)
    near = float(np.mean(np.array(drawn) < np.quantile(held_out, 0.05)))
    note = (
        f"root mean square in 8-bit levels, median; the floor is that of held-out clips; {near:.1%} of the clips are "
        "nearer to a training window than 95 in 100 held-out ones (5 % by chance, far more are copies)"
    )
    low, high = (float(np.quantile(drawn, q)) for q in (0.025, 0.975))
    label, floor = "distance to the nearest training window", float(np.median(held_out))
    return SetFigure(label, float(np.median(drawn)), low, high, (), len(held_out), len(drawn), floor, "none", note)


def _nearest(clips: Iterable[Tensor], reference: Path, library: list[Library]) -> Iterator[float]:
    """Distances; the library is read at the first clip, which tells its form."""
    waiting: list[Tensor] = []
    for clip in clips:
        waiting.append(clip)
        if len(waiting) == _BATCH:
            yield from _distances(torch.stack(waiting), reference, library)
            waiting = []
    if waiting:
        yield from _distances(torch.stack(waiting), reference, library)


def _distances(clips: Tensor, reference: Path, library: list[Library]) -> list[float]:
    _, frames, channels, height, width = clips.shape
    if not library:
        library.append(Library(reference, channels=channels, height=height, width=width))
    x = clips.float() / 127.5 - 1.0
    found = library[0].nearest(x, range(frames), length=frames, count=1)[:, 0]
    return ((found - x).square().flatten(1).mean(1).sqrt() * 127.5).tolist()
