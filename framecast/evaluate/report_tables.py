# SPDX-License-Identifier: Apache-2.0
"""The tables of a report as plain rows and cells, and the sentences above them.

What counts here is what must not be said: rf3d figures never stand beside published ones, and every published value
beside a run that deviates from its protocol is marked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framecast.evaluate.compare import SETS, Metric, many, paired
from framecast.evaluate.result_folder import Result, model_forecast

_OPEN = "rf3d"  # metrics whose names begin so are the project's own and have no published values


@dataclass(frozen=True)
class Cell:
    """A figure and what stands small beside it."""

    text: str
    small: str = ""
    best: bool = False
    mark: str = ""  # a warning that belongs to this figure


@dataclass(frozen=True)
class Table:
    """Rows of one head cell and others."""

    caption: str
    head: tuple[str, ...]  # of all columns, the first included
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""
    footnotes: tuple[str, ...] = ()  # [1], [2], … in heads of rows and in cells


@dataclass(frozen=True)
class Judged:
    """One result of a group, under the name it goes by, and its case."""

    name: str
    result: Result
    case: Mapping[str, Any]

    @property
    def model(self) -> dict[str, Any]:
        """Its model's forecast."""
        return model_forecast(self.case)

    @property
    def simple(self) -> list[Mapping[str, Any]]:
        """The simple forecasts beside it."""
        return [one for one in self.case["forecasts"] if one["name"] != self.model["name"]]


def beside(judged: Sequence[Judged]) -> list[Mapping[str, Any]]:
    """The simple forecasts of the first result that are not judged themselves."""
    names = {one.model["name"] for one in judged}
    return [simple for simple in judged[0].simple if simple["name"] not in names]


def number(value: float | None) -> str:
    """A figure to three digits, thousands in full, with a true minus sign.

    Example:
        >>> number(1.2294), number(-12.66), number(1351.2), number(None)
        ('1.23', '−12.7', '1,351', '–')
    """
    if value is None or value != value:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def span(told: Mapping[str, Any]) -> str:
    """The interval of a figure in words; empty where it has none."""
    if told.get("low") is None or told.get("high") is None:
        return ""
    return f"{number(told['low'])} to {number(told['high'])}"


def heading(told: Mapping[str, Any], key: str) -> str:
    """Label, unit and direction of a metric, the arrow on the line of the last word."""
    return re.sub(" ([↓↑])$", "\u00a0\\1", Metric.of(key, [told]).heading)


def scores(judged: Sequence[Judged]) -> Table:
    """Every metric of every model, and of the simple forecasts of the first one."""
    columns = [(one.name, one.model) for one in judged] + [(s["name"], s) for s in beside(judged)]
    keys = list(dict.fromkeys(key for _, one in columns for key in one.get("scores", {})))
    rows = []
    for key in keys:
        told = [one.get("scores", {}).get(key) for _, one in columns]
        about = next(one for one in told if one is not None)
        best = _best([None if one is None else one["mean"] for one in told], str(about.get("better")))
        cells = [Cell("–") if one is None else Cell(number(one["mean"]), span(one)) for one in told]
        cells = [Cell(c.text, c.small, best=i == best) for i, c in enumerate(cells)]
        rows.append((heading(about, key), tuple(cells)))
    rows.append(("samples of each window", tuple(Cell(str(one.get("samples", "–"))) for _, one in columns)))
    rows += _differs(judged, [name for name, _ in columns])
    units = max((one.get("units") or 0 for one in judged[0].model.get("scores", {}).values()), default=0)
    note = f"Small: 95 % intervals, bootstrap over {many(units, 'independent unit')}. Bold: the best mean of the row."
    return Table("Means over windows and frames", ("", *(name for name, _ in columns)), tuple(rows), note)


def _differs(judged: Sequence[Judged], columns: Sequence[str]) -> list[tuple[str, tuple[Cell, ...]]]:
    """A row with what each model does otherwise than the protocol states; none for one model, or where none does."""
    lines = {one.name: "; ".join(one.result.of_model) for one in judged}
    if len(judged) < 2 or not any(lines.values()):
        return []
    return [("the model differs from the protocol", tuple(Cell("", lines.get(name, "")) for name in columns))]


def _best(values: Sequence[float | None], better: str) -> int | None:
    known = [(value, i) for i, value in enumerate(values) if value is not None]
    if len(known) < 2 or better not in ("lower", "higher"):
        return None
    return (min if better == "lower" else max)(known)[1]


def differences(one: Judged) -> Table | None:
    """A model minus each simple forecast, paired by window."""
    others = [simple for simple in one.simple if simple.get("minus")]
    if not others:
        return None
    keys = list(dict.fromkeys(key for simple in others for key in simple["minus"]))
    rows = []
    for key in keys:
        about = one.model.get("scores", {}).get(key, {})
        cells = [_difference(simple["minus"].get(key), str(about.get("better"))) for simple in others]
        rows.append((heading(about, key), tuple(cells)))
    head = ("", *(f"minus {simple['name']}" for simple in others))
    return Table(f"{one.name} minus the simple forecasts, paired by window", head, tuple(rows), _BOLD)


def between(judged: Sequence[Judged]) -> Table | None:
    """Every further model minus the first, paired by window."""
    windows = [one.result.windows(one.case["name"], one.model["name"]) for one in judged]
    rows = []
    for key, about in judged[0].model.get("scores", {}).items():
        found = [paired(windows[0], other, key) for other in windows[1:]]
        if any(found):
            better = str(about.get("better"))
            cells = tuple(_difference(None if f is None else f.plain(), better) for f in found)
            rows.append((heading(about, key), cells))
    head = ("", *(f"{one.name} minus {judged[0].name}" for one in judged[1:]))
    return Table("Models beside each other, paired by window", head, tuple(rows), _BOLD) if rows else None


_BOLD = "Small: 95 % intervals, bootstrap over units. Bold: better, and the interval excludes zero."


def _difference(told: Mapping[str, Any] | None, better: str) -> Cell:
    if told is None:
        return Cell("–")
    return Cell(number(told["mean"]), span(told), best=_wins(told, better))


def _wins(told: Mapping[str, Any], better: str) -> bool:
    """Whether an interval of differences lies wholly on the good side of zero."""
    if told.get("low") is None or told.get("high") is None:
        return False
    return told["high"] < 0 if better == "lower" else told["low"] > 0 if better == "higher" else False


def _loses(told: Mapping[str, Any], better: str) -> bool:
    """Whether it lies wholly on the bad side."""
    return _wins(told, {"lower": "higher", "higher": "lower"}.get(better, better))


def verdicts(judged: Sequence[Judged]) -> list[str]:
    """In one sentence for each model: how it does beside the simple forecasts, by its first metric."""
    told = []
    for one in judged:
        others = [simple for simple in one.simple if simple.get("minus")]
        key = next((k for k in one.model.get("scores", {}) if others and k in others[0]["minus"]), None)
        if key is None:
            continue
        about, better = one.model["scores"][key], str(one.model["scores"][key].get("better"))
        wins = [simple["name"] for simple in others if _wins(simple["minus"].get(key, {}), better)]
        worse = [simple["name"] for simple in others if _loses(simple["minus"].get(key, {}), better)]
        open_ = [simple["name"] for simple in others if simple["name"] not in (*wins, *worse)]
        words = f"{one.name}: {about.get('label', key)} {number(about['mean'])}"
        words += f" ({span(about)})" if span(about) else ""
        words += f", better than {len(wins)} of {len(others)} simple forecasts by paired 95 % intervals"
        words += f"; worse than {', '.join(worse)}" if worse else ""
        told.append(words + (f"; no clear difference from {', '.join(open_)}." if open_ else "."))
    return told


def sets(judged: Sequence[Judged]) -> Table | None:
    """Distances of whole sets of clips, and beside them that of real clips from real ones."""
    columns: list[tuple[str, Mapping[str, Any]]] = [(one.name, one.model) for one in judged]
    columns += [(s["name"], s) for s in beside(judged)]
    columns = [(name, one) for name, one in columns if one.get("sets")]
    if not columns:
        return None
    rows = []
    footnotes: dict[str, int] = {}  # note -> its number
    counts = {_counts(figure) for _, one in columns for figure in one["sets"].values()}
    for key in dict.fromkeys(key for _, one in columns for key in one["sets"]):
        told = [one["sets"].get(key) for _, one in columns]
        known = [one for one in told if one is not None]
        notes = list(dict.fromkeys(str(one["note"]) for one in known if one.get("note")))
        for note in notes:
            footnotes.setdefault(note, len(footnotes) + 1)
        shared = len(notes) == 1 and all(one.get("note") for one in known)  # of the row, not of cells
        head = heading(known[0], key) + (f" [{footnotes[notes[0]]}]" if shared else "")
        marks = [f"[{footnotes[str(one['note'])]}]" if one and one.get("note") and not shared else "" for one in told]
        cells = [_set_cell(one, mark, counted=len(counts) > 1) for one, mark in zip(told, marks)]
        rows.append((head, (*cells, Cell(number(known[0].get("floor"))))))
    if not any(one.model.get("scores") for one in judged):
        rows += _differs(judged, [name for name, _ in columns])
    caption = f"Sets of clips: {counts.pop()}" if len(counts) == 1 else "Sets of clips"
    head_row = ("", *(name for name, _ in columns), "floor")
    return Table(caption, head_row, tuple(rows), f"Small: {SETS}.", tuple(footnotes))


def by_motion(judged: Sequence[Judged]) -> Table | None:
    """The first metric over windows that move least, a middle third, and windows that move most."""
    columns = [(one.name, one.model) for one in judged] + [(s["name"], s) for s in beside(judged)]
    columns = [(name, one) for name, one in columns if one.get("by_motion")]
    metric = next(iter(judged[0].model.get("scores", {})), "")
    if not columns or metric not in columns[0][1]["by_motion"]:
        return None
    motion, about = columns[0][1]["by_motion"]["motion"], judged[0].model["scores"][metric]
    rows = []
    for third, words in enumerate(("least motion", "middle", "most motion")):
        cells = [Cell(number(one["by_motion"].get(metric, [None] * 3)[third])) for _, one in columns]
        rows.append((f"{words} ({number(motion[third])})", tuple(cells)))
    caption = f"{heading(about, metric)} by how much the window moves"
    note = "In brackets: mean absolute difference of neighbouring frames of the truth, in 8-bit levels."
    return Table(caption, ("", *(name for name, _ in columns)), tuple(rows), note)


def _counts(told: Mapping[str, Any]) -> str:
    return f"{told.get('n_real') or 0:,} real, {told.get('n_fake') or 0:,} judged"


def _set_cell(told: Mapping[str, Any] | None, mark: str, *, counted: bool) -> Cell:
    if told is None:
        return Cell("–")
    parts = [" ".join(filter(None, (span(told), mark))), _counts(told) if counted else ""]
    return Cell(number(told["value"]), "; ".join(part for part in parts if part))


def published(judged: Sequence[Judged]) -> Table | None:
    """Ours above the values that papers print for this protocol; each of those is marked where a run deviates."""
    told = [row for row in judged[0].result.told.get("published", ()) if not row["metric"].startswith(_OPEN)]
    if not told:
        return None
    metrics = list(dict.fromkeys(row["metric"] for row in told))
    mark = "not comparable: ours is partial" if any(one.result.deviations for one in judged) else ""
    rows = []
    for one in judged:
        name = f"{one.name} ({one.result.protocol})" if one.result.deviations else one.name
        rows.append((name, tuple(_ours(one.model, metric) for metric in metrics)))
    for method in dict.fromkeys(row["method"] for row in told):
        cells = []
        for metric in metrics:
            found = [row for row in told if row["method"] == method and row["metric"] == metric]
            text = "; ".join(_printed(row) for row in found) or "–"
            small = "; ".join(dict.fromkeys(str(row["note"]) for row in found if row.get("note")))
            cells.append(Cell(text, small, mark=mark if text != "–" else ""))
        rows.append((method, tuple(cells)))
    source = judged[0].result.told["settings"].get("source", "")
    note = f"Source: {source}" if source else ""
    return Table("Beside published values", ("method", *metrics), tuple(rows), note)


def _ours(model: Mapping[str, Any], metric: str) -> Cell:
    """The model's own figure of a metric, which may be a mean over windows or of a set."""
    found = model.get("sets", {}).get(metric)
    if found is not None:
        return Cell(number(found["value"]), span(found))
    plain = {key: value for key, value in model.get("scores", {}).items() if key == metric}
    plain = plain or {k: v for k, v in model.get("scores", {}).items() if k.startswith(f"{metric}_")}
    first = next(iter(plain.items()), None)
    if first is None:
        return Cell("–", "not measured")
    key, value = first
    named = "" if key == metric else f"{value.get('label', key)}; "
    return Cell(number(value["mean"]), f"{named}{span(value)}".strip("; "))


def _printed(row: Mapping[str, Any]) -> str:
    spread = f" ± {number(row['spread'])}" if row.get("spread") is not None else ""
    return f"{number(row.get('value'))}{spread}"
