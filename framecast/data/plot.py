# SPDX-License-Identifier: Apache-2.0
"""Figures with axes and colour scales: where a forecast is uncertain or wrong, and how a training went."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from framecast.data.files import new_file
from framecast.data.media import viewable
from framecast.video import Clip


def save_score_maps(
    path: Path | str,
    *,
    pictures: Sequence[tuple[str, Clip]],
    maps: Tensor,
    frames: Sequence[int],
    label: str,
    comment: str = "",
) -> Path:
    """Clips in rows above a row of maps with a colour scale, at some frames.

    Args:
        path: of the PNG; must not exist.
        pictures: rows above the maps, each a name and a clip.
        maps: (T, H, W), one per frame of the clips.
        frames: which are shown, from 0.
        label: what the maps show, with its unit; stands at the scale.
        comment: kept in the file.

    Returns:
        The path.
    """
    figure, cells = _figure(rows=len(pictures) + 1, columns=len(frames), size=(1.5, 1.6))
    for (name, clip), line in zip(pictures, cells):
        shown = viewable(clip)
        for i, cell in zip(frames, line):
            cell.imshow(shown[i].permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
        line[0].set_ylabel(name)
    for i, cell in zip(frames, cells[0]):
        cell.set_title(f"frame {i}", fontsize=9)
    top = float(maps[list(frames)].max()) or 1.0
    for i, cell in zip(frames, cells[-1]):
        drawn = cell.imshow(maps[i].numpy(), cmap="magma", vmin=0, vmax=top, interpolation="nearest")
    cells[-1][0].set_ylabel(label.split(",")[0])
    figure.colorbar(drawn, ax=list(cells[-1]), label=label, fraction=0.02, pad=0.01)
    for cell in cells.flat:
        cell.set_xticks([])
        cell.set_yticks([])
    return _save(figure, Path(path), comment)


def save_curves(path: Path | str, metrics: Path | str) -> Path | None:
    """The curves of a run: every loss of its `metrics.csv` on one logarithmic axis.

    Args:
        path: of the PNG; an older one is replaced.
        metrics: the CSV file of the run.

    Returns:
        The path; None where there is nothing to draw yet.
    """
    with open(metrics, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else ()) if name.endswith("loss")]
    curves = {name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)] for name in names}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    figure, cells = _figure(rows=1, columns=1, size=(7, 4))
    axes = cells[0][0]
    for name, points in curves.items():
        few = len(points) < 50
        axes.plot(*zip(*points), label=name, marker="o" if few else "", linewidth=1.5 if few else 0.8)
    if all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, Path(path), "Training curves by framecast.", overwrite=True)


def _figure(*, rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure with cells (rows, columns), each of this size in inches; no window system is asked for."""
    from matplotlib.figure import Figure  # slow to import, and only drawing needs it

    figure = Figure(figsize=(columns * size[0] + 0.8, rows * size[1]), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path, comment: str, *, overwrite: bool = False) -> Path:
    with new_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Comment": comment, "Software": "framecast"})
    return path
