# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, ready to stand inside the page: curves, maps of CRPS, film strips, videos.

A page must stay small enough to be kept and sent, so that every picture is first asked for its place on a shelf of
limited width, and frames above 128 pixels are shown smaller. What finds no place is left out and counted.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from framecast.data.image_file import write_image
from framecast.data.media import Row, grid, save_view, strip
from framecast.data.plot import Curve, curves, rank_bars, score_maps
from framecast.evaluate.report_tables import Judged, beside, number
from framecast.evaluate.result_folder import Shown
from framecast.metrics.forecast import crps_maps, eight_bit
from framecast.video import Clip

SHELF = 1_350_000  # bytes of all pictures of a page; their base64 is a third longer
_SIDE = 128  # pixels; larger frames are averaged down
_SIMPLE = 3  # simple forecasts in strips and videos, the best ones
_MAPPED = 6  # frames of a map
_COLUMNS = 8  # frames of a strip
_REAL = "_of_real"  # ends the name of a curve that real clips give, to stand beside the one without
_PLAYED = 128  # frames of a video; of longer windows every second, third, … frame is played
_CONTROLS = 56  # pixels under a video, where players put their controls
_CALIBRATED = ("diversity", "spread", "skill")  # metrics that calibration speaks of
_LONG = ("drift_variance", "drift_fine")  # metrics that long forecasts are about
_MIMES = {".svg": "image/svg+xml", ".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class Picture:
    """One picture with its words."""

    kind: Literal["image", "video"]
    uri: str
    alt: str  # for those who do not see it
    caption: str
    wide: bool = False  # needs the width of the page


@dataclass
class Shelf:
    """Takes pictures as long as there is place."""

    place: float = SHELF  # bytes
    left_out: int = 0
    pictures: list[Picture] = field(default_factory=list)

    def add(
        self, data: bytes, suffix: str, *, alt: str, caption: str, wide: bool = False, to: list[Picture] | None = None
    ) -> None:
        """Take in a picture, into `pictures` or another list of the same page."""
        if len(data) > self.place:
            self.left_out += 1
            return
        self.place -= len(data)
        uri = f"data:{_MIMES[suffix]};base64,{base64.b64encode(data).decode()}"
        kind: Literal["image", "video"] = "video" if suffix == ".mp4" else "image"
        (self.pictures if to is None else to).append(Picture(kind, uri, alt, caption, wide))


def headline(judged: Sequence[Judged], shelf: Shelf) -> list[Picture]:
    """Over frames: 1 / CRPS, LPIPS where it was measured, and the drift of long forecasts.

    Source: RVD paper, figure 3.
    """
    told = judged[0].model.get("by_frame") or {}
    found: list[Picture] = []
    inverse = next((key for key in ("crps", "crps_fair") if key in told), None)
    if inverse is not None:
        _draw(judged, inverse, shelf, found, inverted=_inverted)
    for key in (key for key in told if key.startswith("lpips") or key in _long(told)):
        _draw(judged, key, shelf, found, inverted=None)
    return found


def further(judged: Sequence[Judged], shelf: Shelf) -> list[Picture]:
    """Over frames: the metrics that are neither in `headline` nor in `calibration`."""
    found: list[Picture] = []
    for key in judged[0].model.get("by_frame") or {}:
        shown = key.startswith(("crps", "lpips")) or key in _CALIBRATED or key in _long(judged[0].model["by_frame"])
        if not shown and not key.endswith(_REAL):
            _draw(judged, key, shelf, found, inverted=None)
    return found


def _long(told: Mapping[str, Any]) -> tuple[str, ...]:
    """The curves that a long forecast is about; of others they are no more than further ones."""
    return _LONG if "drift_fine" in told else ()


def _draw(
    judged: Sequence[Judged], key: str, shelf: Shelf, found: list[Picture], *, inverted: Callable[[Curve], Curve] | None
) -> None:
    lines = [_curve(one.name, one.model, key, quiet=False) for one in judged]
    lines += [_curve(str(simple["name"]), simple, key, quiet=True) for simple in beside(judged)]
    lines.append(_curve("real clips", judged[0].model, key + _REAL, quiet=True))
    drawn = [line if inverted is None else inverted(line) for line in lines if line is not None]
    if not drawn:
        return
    told, about = judged[0].model["by_frame"], judged[0].model.get("scores", {}).get(key, {})
    label, unit = str(about.get("label") or key.replace("_", " ")), str(about.get("unit") or "")
    name, better = (f"1 / {label}" if inverted else label), about.get("better")
    caption = f"{name} by frame" + (f", {label} in {unit}" if inverted and unit else f", in {unit}" if unit else "")
    if better in ("lower", "higher"):
        caption += f"; {'higher' if inverted or better == 'higher' else 'lower'} is better"
    top = 1.5 * max(max(curve.y) for curve in drawn) if inverted else None
    if key in _long(told):
        caption, top = f"{caption}, over that of the truth", _room(drawn)
    caption += "; shaded: one standard deviation over windows." if any(d.low is not None for d in drawn) else "."
    ends = "; ".join(f"{c.label} from {number(c.y[0])} to {number(c.y[-1])}" for c in drawn)
    frames = f"frames {drawn[0].x[0]:.0f} to {drawn[0].x[-1]:.0f}"
    svg = curves(drawn, x="frame", y=name if inverted or not unit else f"{name}, {unit}", top=top)
    shelf.add(svg, ".svg", alt=f"Lines of {name} over {frames}: {ends}.", caption=caption, to=found)


def _room(drawn: Sequence[Curve]) -> float:
    """Where an axis of ratios ends: simple forecasts that explode run out of it."""
    return max([2.0, *(1.5 * value for curve in drawn if not curve.quiet for value in curve.y)])


def _curve(name: str, forecast: Mapping[str, Any], key: str, *, quiet: bool) -> Curve | None:
    told = (forecast.get("by_frame") or {}).get(key)
    if told is None:
        return None
    deviations = told.get("sd") or [None] * len(told["mean"])
    points = [(x, y, sd) for x, y, sd in zip(told["frames"], told["mean"], deviations) if y is not None]
    if not points:
        return None
    x, y = [p[0] for p in points], [p[1] for p in points]
    if quiet or any(sd is None for _, _, sd in points):
        return Curve(name, x, y, quiet=quiet)
    return Curve(name, x, y, [v - sd for _, v, sd in points], [v + sd for _, v, sd in points])


def _inverted(curve: Curve) -> Curve:
    """One over a curve; a band that reaches zero reaches beyond every axis."""
    floor = [1e-3 * value or 1e-9 for value in curve.y]

    def over(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else [1 / max(v, least) for v, least in zip(values, floor)]

    return Curve(curve.label, curve.x, over(curve.y) or [], over(curve.high), over(curve.low), curve.quiet)


def calibration(judged: Sequence[Judged], shelf: Shelf) -> list[Picture]:
    """For every model with several samples: spread beside error over frames, and the rank histogram."""
    found: list[Picture] = []
    for one in judged:
        told, ranks = one.model.get("spread_skill"), one.model.get("ranks")
        if told:
            error, spread = (Curve(n, told["frames"], told[k]) for n, k in (("error of the mean", "skill"), _SPREAD))
            ends = [f"{number(curve.y[0])} to {number(curve.y[-1])}" for curve in (error, spread)]
            alt = f"Lines over frames: the error of {one.name}'s mean from {ends[0]}, its spread from {ends[1]}."
            caption = (
                f"{one.name}: a forecast that knows how sure it is spreads as far as its mean errs (8-bit levels)."
            )
            svg = curves([error, spread], x="frame", y="8-bit levels")
            shelf.add(svg, ".svg", alt=alt, caption=caption, to=found)
        if ranks:
            chance = sum(ranks) / len(ranks) or 1.0
            outer = f"the lowest {number(ranks[0] / chance)} times, the highest {number(ranks[-1] / chance)} times"
            alt = f"Bars: how often the truth has which rank among {one.name}'s samples; {outer} as often as chance."
            caption = (
                f"{one.name}, rank of the truth among its samples: flat is right, a bowl too sure, a hump too unsure."
            )
            shelf.add(rank_bars(ranks), ".svg", alt=alt, caption=caption, to=found)
    return found


_SPREAD = ("spread of the samples", "spread")


@dataclass(frozen=True)
class _Window:
    """What is kept of one window: the truth, and the samples of every forecast shown."""

    name: str
    mask: list[bool]
    truth: Clip | None
    answers: bool  # whether the truth is what the samples should have become, not just some real clip
    samples: dict[str, list[Clip]]
    models: list[str]  # of those the ones that were judged; the others are simple, the best first


def windows(judged: Sequence[Judged], shelf: Shelf, *, count: int) -> tuple[list[Picture], list[Picture]]:
    """Of the first windows kept: maps of CRPS (of the first one), then a video and a strip of each.

    Args:
        judged: results of one case; those that keep no frames are passed over.
        shelf: for all of them.
        count: most windows.

    Returns:
        The maps; videos and strips.
    """
    kept = [(one, {shown.name: shown for shown in one.result.shown(one.case["name"])}) for one in judged]
    kept = [(one, shown) for one, shown in kept if shown]
    maps: list[Picture] = []
    films: list[Picture] = []
    names = [name for name in (kept[0][1] if kept else ()) if all(name in shown for _, shown in kept)][:count]
    for i, name in enumerate(names):
        window = _read([(one, shown[name]) for one, shown in kept])
        if not window.samples:
            continue
        if i == 0:
            _maps(window, shelf, maps)
        _video(window, shelf, films)
        _strip(window, shelf, films)
    return maps, films


def _read(kept: Sequence[tuple[Judged, Shown]]) -> _Window:
    first, place = kept[0]
    truth = place.truth()
    samples = {one.name: shown.samples(one.model["name"]) for one, shown in kept}
    for simple in _best_simple([one for one, _ in kept]):
        samples[simple] = place.samples(simple)[:8]
    samples = {name: [_bounded(clip) for clip in clips] for name, clips in samples.items() if clips}
    models = [one.name for one, _ in kept if one.name in samples]
    length = len(truth) if truth is not None else max((len(clips[0]) for clips in samples.values()), default=0)
    answers = first.result.told["settings"].get("task") != "generate"
    truth = None if truth is None else _bounded(truth)
    return _Window(place.name, place.mask(length), truth, answers, samples, models)


def _best_simple(judged: Sequence[Judged]) -> list[str]:
    """The simple forecasts that come nearest, by the first metric."""
    key = next(iter(judged[0].model.get("scores", {})), None)
    told = [(s, s.get("scores", {}).get(key, {})) for s in beside(judged)]
    ranked = sorted(
        ((v["mean"] if v.get("better") != "higher" else -v["mean"], str(s["name"])) for s, v in told if v.get("mean"))
    )
    return [name for _, name in ranked[:_SIMPLE]]


def _bounded(clip: Clip) -> Clip:
    """The clip with sides of at most 128 pixels, neighbours averaged."""
    factor = -(-max(clip.frames.shape[-2:]) // _SIDE)
    if factor == 1:
        return clip
    small = avg_pool2d(clip.frames.float(), factor)
    small = small.round().to(torch.uint8) if clip.frames.dtype == torch.uint8 else small
    return Clip(small, clip.fps, clip.value_range)


def _maps(window: _Window, shelf: Shelf, found: list[Picture]) -> None:
    """Where the forecasts are wrong.

    Source: RVD paper, figure 4.
    """
    truth, drawn = window.truth, [i for i, given in enumerate(window.mask) if not given]
    if truth is None or not window.answers or not drawn:
        return
    frames = sorted({drawn[round(i * (len(drawn) - 1) / (_MAPPED - 1))] for i in range(_MAPPED)})
    shown = [*window.models, *[name for name in window.samples if name not in window.models][:1]]
    maps = [(name, _crps(window.samples[name], truth, frames)) for name in shown]
    svg = score_maps(pictures=[("truth", truth)], maps=maps, frames=frames, label="fair CRPS, 8-bit levels")
    means = "; ".join(f"{name} {number(float(values[frames].mean()))}" for name, values in maps)
    alt = f"Maps of fair CRPS at frames {', '.join(map(str, frames))} of {window.name}; their means: {means}."
    caption = f"Fair CRPS of every pixel of {window.name}, bright where a forecast is wrong; {means}."
    shelf.add(svg, ".svg", alt=alt, caption=caption, wide=True, to=found)


def _crps(samples: Sequence[Clip], truth: Clip, frames: Sequence[int]) -> Tensor:
    """(T, H, W), of the wanted frames; the others are zero."""
    assert truth.value_range is not None
    made = eight_bit(torch.stack([clip.frames[list(frames)] for clip in samples]), value_range=truth.value_range)
    wanted = eight_bit(truth.frames[list(frames)], value_range=truth.value_range)
    maps = torch.zeros(len(truth), *truth.frames.shape[-2:])
    found = crps_maps(made, wanted, estimator="fair")
    maps[list(frames)] = found.float().clamp(min=0)  # the fair estimate of a small score can fall below zero
    return maps


def _strip(window: _Window, shelf: Shelf, found: list[Picture]) -> None:
    rows = _rows(window, futures=1)
    with tempfile.TemporaryDirectory() as folder:
        path = write_image(Path(folder) / "strip.png", strip(rows, columns=_COLUMNS), comment=_comment(window))
        names = ", ".join(row.label for row in rows)
        alt = f"Film strip of {window.name}, a row for each of: {names}; frames from left to right."
        caption = f"Window {window.name}: green edges are given frames, red ones drawn."
        shelf.add(path.read_bytes(), ".png", alt=alt, caption=caption, wide=True, to=found)


def _video(window: _Window, shelf: Shelf, found: list[Picture]) -> None:
    every = -(-len(window.mask) // _PLAYED)
    rows = [_thinned(row, every) for row in _rows(window, futures=3)]
    with tempfile.TemporaryDirectory() as folder:
        board = grid(rows, columns=4)
        room = board.frames.new_full((*board.frames.shape[:2], _CONTROLS, board.frames.shape[-1]), 255)
        board = replace(board, frames=torch.cat([board.frames, room], dim=2))
        path = save_view(Path(folder) / "video.mp4", board, comment=_comment(window))
        alt = f"Video of {window.name}, side by side: {', '.join(row.label for row in rows)}."
        caption = f"Window {window.name}, playing{'' if every == 1 else f', one in {every} frames'}."
        shelf.add(path.read_bytes(), ".mp4", alt=alt, caption=caption, wide=True, to=found)


def _thinned(row: Row, every: int) -> Row:
    known = None if row.known is None else row.known[::every]
    return replace(row, clip=replace(row.clip, frames=row.clip.frames[::every]), known=known)


def _rows(window: _Window, *, futures: int) -> list[Row]:
    """The truth, then samples of every forecast: several of the first one."""
    rows = [] if window.truth is None else [Row("truth" if window.answers else "a real clip", window.truth)]
    for i, (name, samples) in enumerate(window.samples.items()):
        shown = samples[: futures if i == 0 else 1]
        for n, clip in enumerate(shown, 1):
            rows.append(Row(name if len(shown) == 1 else f"{name}, future {n}", clip, window.mask[: len(clip)]))
    return rows


def _comment(window: _Window) -> str:
    return f"Without coloured edges: a recorded clip. The others: generated by framecast, {', '.join(window.samples)}."
