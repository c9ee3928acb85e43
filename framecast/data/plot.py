# SPDX-License-Identifier: Apache-2.0
"""Figures with axes and colour scales: where a forecast is uncertain or wrong, and how a training went.

Figures for pages are SVG: their ink and their lines change with the light or dark of the page they stand on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from torch import Tensor

from framecast.data.files import new_file
from framecast.data.media import viewable
from framecast.video import Clip

# stand-ins in a figure -> what they are on light and on dark paper; the lines after the palette of Okabe and Ito (2008)
_INK, _RULE = "#0a0b01", "#0a0b02"
_INKS = {_INK: ("#222222", "#dddddd"), _RULE: ("#d5d5d5", "#454a52")}
_LINES = {
    "#0a0b11": ("#0063a0", "#5db4ef"),
    "#0a0b12": ("#c04f00", "#ff9a4d"),
    "#0a0b13": ("#00795a", "#36cfa2"),
    "#0a0b14": ("#a8487f", "#ee9ccb"),
    "#0a0b15": ("#8a6d00", "#e6c229"),
    "#0a0b16": ("#555555", "#b0b0b0"),
}
_COLOURS = list(_LINES)
_DASHES = ((0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1.2)))
_THINNED = 600  # most points of a curve


@dataclass(frozen=True)
class Curve:
    """One line of a figure."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # of a shaded band around it
    high: Sequence[float] | None = None
    quiet: bool = False  # thin and dashed: there to compare with


def save_score_maps(
    path: Path | str,
    *,
    pictures: Sequence[tuple[str, Clip]],
    maps: Sequence[tuple[str, Tensor]],
    frames: Sequence[int],
    label: str,
    comment: str = "",
) -> Path:
    """Clips in rows above rows of maps with one colour scale, at some frames.

    Args:
        path: of the PNG; must not exist.
        pictures: rows above the maps, each a name and a clip.
        maps: the rows below, each a name and maps (T, height, width), one per frame of the clips, as fine as they come.
        frames: which are shown, from 0.
        label: what the maps show, with its unit; stands at the scale.
        comment: kept in the file.

    Returns:
        The path.
    """
    figure, cells = _figure(rows=len(pictures) + len(maps), columns=len(frames), size=(1.5, 1.6))
    _draw_maps(figure, cells, pictures, maps, frames, label)
    return _save(figure, Path(path), comment)


def score_maps(
    *, pictures: Sequence[tuple[str, Clip]], maps: Sequence[tuple[str, Tensor]], frames: Sequence[int], label: str
) -> bytes:
    """As `save_score_maps`, with a row of maps for each of several forecasts on one colour scale; SVG.

    Args:
        pictures: rows above the maps, each a name and a clip.
        maps: of each forecast its name and its maps (T, H, W).
        frames: which are shown, from 0.
        label: what the maps show, with its unit; stands at the scale.

    Source: RVD paper, figure 4.
    """
    with _svg_style():
        figure, cells = _figure(rows=len(pictures) + len(maps), columns=len(frames), size=(1.25, 1.3))
        _draw_maps(figure, cells, pictures, maps, frames, label.replace(", ", ",\n"))
        return _svg(figure)


def _draw_maps(
    figure: Any,
    cells: Any,
    pictures: Sequence[tuple[str, Clip]],
    maps: Sequence[tuple[str, Tensor]],
    frames: Sequence[int],
    label: str,
) -> None:
    for (name, clip), line in zip(pictures, cells):
        shown = viewable(clip)
        for i, cell in zip(frames, line):
            cell.imshow(shown[i].permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="none")
        line[0].set_ylabel(fill(name, 16))
    for i, cell in zip(frames, cells[0]):
        cell.set_title(f"frame {i}", fontsize=9)
    top = max(float(values[list(frames)].max()) for _, values in maps) or 1.0
    for (name, values), line in zip(maps, cells[len(pictures) :]):
        for i, cell in zip(frames, line):
            drawn = cell.imshow(values[i].numpy(), cmap="magma", vmin=0, vmax=top, interpolation="none")
        line[0].set_ylabel(fill(name, 16))
    figure.colorbar(drawn, ax=list(cells[len(pictures) :].flat), label=label, fraction=0.02, pad=0.01)
    for cell in cells.flat:
        cell.set_xticks([])
        cell.set_yticks([])


def curves(drawn: Sequence[Curve], *, x: str, y: str, top: float | None = None, logarithmic: bool = False) -> bytes:
    """Lines over one axis, with shaded bands where they have them; SVG.

    Args:
        drawn: the lines; loud ones lie above quiet ones.
        x, y: what the axes show, with their units.
        top: where the upper axis ends; None: where the lines and bands do.
        logarithmic: of the upper axis.
    """
    with _svg_style():
        rows = -(-len(drawn) // 2) if len(drawn) > 1 else 0
        figure, cells = _figure(rows=1, columns=1, size=(4.2, 2.9 + 0.18 * rows))
        axes, quiet, loud = cells[0][0], 0, 0
        for curve in drawn:
            if curve.quiet:
                style: dict[str, Any] = {"linewidth": 1.0, "linestyle": _DASHES[quiet % len(_DASHES)], "zorder": 2}
                colour = _COLOURS[-1 - quiet % (len(_COLOURS) - 1)]
                quiet += 1
            else:
                style = {"linewidth": 2.0, "marker": "o" if len(curve.x) < 40 else "", "markersize": 3.5, "zorder": 3}
                colour = _COLOURS[loud % len(_COLOURS)]
                loud += 1
            if curve.low is not None and curve.high is not None:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0, zorder=1)
            axes.plot(curve.x, curve.y, label=curve.label, color=colour, **style)
        if logarithmic:
            from matplotlib.ticker import LogFormatter

            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the default writes formulas
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        if top is not None:
            axes.set_ylim(top=top)
        _label(figure, axes, x, y, legend=rows > 0)
        return _svg(figure)


def rank_bars(ranks: Sequence[int]) -> bytes:
    """A rank histogram: how often the truth came so and so far among the sorted samples; SVG.

    The line is what samples drawn from the truth's own distribution give. A bowl means too little spread, a hump too
    much, a slope a bias.

    Args:
        ranks: S + 1 counts.

    Source: Hamill (2001).
    """
    with _svg_style():
        figure, cells = _figure(rows=1, columns=1, size=(4.2, 2.9))
        axes = cells[0][0]
        share = np.asarray(ranks, np.float64) / max(1, sum(ranks)) * len(ranks)  # 1: as often as chance has it
        axes.bar(np.arange(len(ranks)), share, 0.85, color=_COLOURS[0])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.axhline(1.0, color=_INK, linewidth=1.0, linestyle=_DASHES[0])
        _label(figure, axes, "samples below the truth", "how often, beside chance", legend=False)
        return _svg(figure)


def _label(figure: Any, axes: Any, x: str, y: str, *, legend: bool) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=2.6)


def training_curves(metrics: Path | str) -> bytes | None:
    """The losses of a run over its steps, as `save_curves` draws them, thinned to their means; SVG.

    Args:
        metrics: the run's `metrics.csv`.

    Returns:
        None where there is nothing to draw yet.
    """
    points = _losses(metrics)
    if not points:
        return None
    drawn = [
        Curve(name, *_thinned(values), quiet=name == "loss" and len(points) > 1) for name, values in points.items()
    ]
    return curves(drawn, x="optimiser step", y="loss", logarithmic=all(min(curve.y) > 0 for curve in drawn))


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Steps and values, neighbours averaged where there are more than can be seen."""
    together = -(-len(points) // _THINNED)
    groups = [points[i : i + together] for i in range(0, len(points), together)]
    means = [np.mean(group, axis=0) for group in groups]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def save_curves(path: Path | str, metrics: Path | str) -> Path | None:
    """The curves of a run: every loss of its `metrics.csv` on one logarithmic axis.

    Args:
        path: of the PNG; an older one is replaced.
        metrics: the CSV file of the run.

    Returns:
        The path; None where there is nothing to draw yet.
    """
    losses = _losses(metrics)
    if not losses:
        return None
    figure, cells = _figure(rows=1, columns=1, size=(7, 4))
    axes = cells[0][0]
    for name, points in losses.items():
        few = len(points) < 50
        axes.plot(*zip(*points), label=name, marker="o" if few else "", linewidth=1.5 if few else 0.8)
    if all(value > 0 for points in losses.values() for _, value in points):
        axes.set_yscale("log")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, Path(path), "Training curves by framecast.", overwrite=True)


def _losses(metrics: Path | str) -> dict[str, list[tuple[int, float]]]:
    """Of a `metrics.csv`: every loss that has more than one value, with its steps."""
    with open(metrics, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else ()) if name.endswith("loss")]
    points = {name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)] for name in names}
    return {name: values for name, values in points.items() if len(values) > 1}


@contextmanager
def _svg_style() -> Iterator[None]:
    """Letters as text, no chance in the file, ink by its stand-in."""
    import matplotlib

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "framecast", **dict.fromkeys(ink, _INK)}
    style |= {"font.size": 9.0, "text.parse_math": False}  # a name may hold a dollar
    with matplotlib.rc_context(style):
        yield


def _svg(figure: Any) -> bytes:
    """The figure without paper, its stand-ins turned into colours that follow the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": "framecast"})
    text = buffer.getvalue()
    themes: list[str] = []
    for which in (0, 1):
        themes.append("".join(f"--i{n}:{pair[which]};" for n, pair in enumerate({**_INKS, **_LINES}.values())))
    for number, stand_in in enumerate({**_INKS, **_LINES}):
        text = text.replace(stand_in, f"var(--i{number})")
    style = f"<style>svg{{{themes[0]}}}@media(prefers-color-scheme:dark){{svg{{{themes[1]}}}}}</style>"
    head, defs, rest = text.partition("<defs>")
    return (head + style + defs + rest).encode()


def save_frame_curve(
    path: Path | str,
    *,
    frames: Sequence[int],
    values: Sequence[float],
    label: str,
    title: str,
    given: Sequence[int] = (),
    starts: Sequence[int] = (),
    comment: str = "",
) -> Path:
    """One value per frame over the frames of a clip, the largest marked.

    Args:
        path: of the PNG; must not exist.
        frames: indices of the frames that have a value.
        values: theirs.
        label: what they are, with their unit.
        title: stands above.
        given: frames without a value that were given; shaded.
        starts: frames at which a new window begins; dotted lines.
        comment: kept in the file.

    Returns:
        The path.
    """
    figure, cells = _figure(rows=1, columns=1, size=(8, 3.6))
    axes = cells[0][0]
    for i, frame in enumerate(given):
        axes.axvspan(frame - 0.5, frame + 0.5, color="tab:green", alpha=0.15, lw=0, label="" if i else "given")
    for i, frame in enumerate(starts):
        axes.axvline(frame - 0.5, color="gray", lw=0.8, ls=":", label="" if i else "next window")
    axes.plot(frames, values, color="tab:blue", lw=1.2, marker="o" if len(frames) <= 100 else "", ms=3)
    top = max(range(len(values)), key=lambda i: values[i])
    axes.plot(frames[top], values[top], "o", color="tab:red", ms=6, label=f"frame {frames[top]}: {values[top]:.2f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("frame")
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, Path(path), comment)


def _figure(*, rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure with cells (rows, columns), each of this size in inches; no window system is asked for."""
    from matplotlib.figure import Figure  # slow to import, and only drawing needs it

    figure = Figure(figsize=(columns * size[0] + 0.8, rows * size[1]), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path, comment: str, *, overwrite: bool = False) -> Path:
    with new_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Comment": comment, "Software": "framecast"})
    return path
