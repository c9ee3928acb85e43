# SPDX-License-Identifier: Apache-2.0
"""Results side by side: refused where they do not answer the same question, else with paired intervals.

A difference is taken window by window and then bootstrapped over independent units, so that it says which model is
better and not how much windows differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from framecast.data.image_file import write_image
from framecast.data.media import Row, grid, save_view, strip
from framecast.evaluate.intervals import Interval, bootstrap
from framecast.evaluate.result_folder import Result, Shown, Windows, distinct_names, model_forecast

# settings that change nothing of what is measured; figures that only one result has are noted, not compared
_PROSE = ("name", "about", "source", "published", "is_not", "metrics")
_WORDS = ("label", "unit", "better", "how", "note")  # of a figure
_TOLD = 3  # differences named in one sentence
SETS = (  # what a figure of sets and its floor are
    "95 % intervals from disjoint folds, conservative near the floor; floor: between two halves of the real clips, "
    "half as many each, so that Fréchet distances are about twice as high there as they would be with all"
)


@dataclass(frozen=True)
class Metric:
    """One figure of every result."""

    label: str
    unit: str
    better: str  # lower, higher or none
    values: tuple[Mapping[str, Any], ...]  # one per result: mean (or value), low, high, …
    minus_first: tuple[Interval, ...] = ()  # of the second result on; empty where windows cannot be paired

    @classmethod
    def of(cls, key: str, values: Sequence[Mapping[str, Any]], minus: tuple[Interval, ...] = ()) -> Metric:
        """A figure of every result, under the words that the first has for it."""
        first = values[0] if values else {}
        label, unit = str(first.get("label") or key), str(first.get("unit") or "")
        return cls(label, unit, str(first.get("better", "none")), tuple(values), minus)

    @property
    def heading(self) -> str:
        """Label, unit and direction."""
        arrow = {"lower": " ↓", "higher": " ↑"}.get(self.better, "")
        return f"{self.label}, {self.unit}{arrow}" if self.unit else f"{self.label}{arrow}"


@dataclass(frozen=True)
class Case:
    """What all results say of one case."""

    name: str
    scores: Mapping[str, Metric]  # means over windows
    sets: Mapping[str, Metric]  # distances of whole sets of clips, which have no pairs


@dataclass(frozen=True)
class Comparison:
    """Results that answer the same question."""

    protocol: str  # its name, with `-partial` where any of them deviates
    deviations: tuple[str, ...]  # of the question, the same for all
    names: tuple[str, ...]  # of the results, all different
    of_models: tuple[tuple[str, ...], ...]  # of each result: deviations of its model, which may differ
    cases: tuple[Case, ...]
    notes: tuple[str, ...]  # what could not be compared

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "protocol": self.protocol,
            "deviations": list(self.deviations),
            "names": list(self.names),
            "model_deviations": {name: list(lines) for name, lines in zip(self.names, self.of_models)},
            "minus": self.names[0],
            "cases": [
                {
                    "name": case.name,
                    "scores": {key: self._plain(metric) for key, metric in case.scores.items()},
                    "sets": {key: self._plain(metric) for key, metric in case.sets.items()},
                }
                for case in self.cases
            ],
            "notes": list(self.notes),
        }

    def _plain(self, metric: Metric) -> dict[str, Any]:
        about = {"label": metric.label, "unit": metric.unit, "better": metric.better}
        minus = dict(zip(self.names[1:], (interval.plain() for interval in metric.minus_first)))
        values = {
            name: {key: figure for key, figure in value.items() if key not in _WORDS}
            for name, value in zip(self.names, metric.values)
        }
        return {**about, "values": values, "minus_first": minus}


def unlike(first: Result, other: Result, names: Sequence[str] = ("the first", "the second")) -> str:
    """In what two results do not answer the same question, in words; empty where they do.

    Compared are the protocol, its settings (not their prose), the deviations but those of the models (how many steps
    one draws with is no part of the question), the data and the weights of metrics that both have used.
    """
    return "; ".join(list(_differences(first, other, *names))[:_TOLD])


def _differences(a: Result, b: Result, first: str, second: str) -> Iterator[str]:
    if a.told["settings"].get("name") != b.told["settings"].get("name"):
        yield f"{first} was judged by {a.protocol}, {second} by {b.protocol}"
        return  # everything else differs with it
    told = [_flat({k: v for k, v in one.told["settings"].items() if k not in _PROSE}) for one in (a, b)]
    for key in {**told[0], **told[1]}:
        if (x := told[0].get(key)) != (y := told[1].get(key)):
            yield f"{first} used {key} {_said(x)}, {second} {_said(y)}"
    if (x := a.told["data"].get("windows")) != (y := b.told["data"].get("windows")):
        yield f"{first} used {many(x, 'window')}, {second} {_said(y)}"
        return  # numbers of clips and means follow from it
    for has, lacks, one, two in ((a, b, first, second), (b, a, second, first)):
        for deviation in has.of_question:
            if deviation not in lacks.of_question:
                yield f"{one} deviates from the protocol ({deviation}), {two} does not do so"
    if (x := a.told["data"].get("sha256")) != (y := b.told["data"].get("sha256")):
        yield f"{first} was judged on other frames than {second} (data {str(x)[:12]}…, {str(y)[:12]}…)"
    yield from _other_sets(a, b, first, second)
    for metric in sorted(set(a.told.get("weights", {})) & set(b.told.get("weights", {}))):
        told = [_flat(one.told["weights"][metric] or {}) for one in (a, b)]
        for key in {**told[0], **told[1]}:
            if (x := told[0].get(key)) != (y := told[1].get(key)):
                yield f"{first} used {metric} weights of {key} {_said(x)}, {second} {_said(y)}"


def _other_sets(a: Result, b: Result, first: str, second: str) -> Iterator[str]:
    """Other real clips, or other numbers of clips, of cases that both say this of."""
    one, two = (result.told["data"].get("sets", {}) for result in (a, b))
    for case in (case for case in one if case in two):
        for key, what in (("real", "real clip"), ("judged", "judged clip")):
            x, y = one[case].get(key), two[case].get(key)
            if x != y and None not in (x, y):
                yield f"{first} used sets of {many(x, what)} ({case}), {second} {y}"
        p, q = (str(sets[case].get("real_sha256") or "") for sets in (one, two))
        if p != q and p and q:
            yield f"{first} was judged beside other real clips than {second} ({case}: {p[:12]}…, {q[:12]}…)"


def many(number: Any, thing: str) -> str:
    """A number of things in words: `1 window`, `2 windows`."""
    text = f"{number:,}" if isinstance(number, int) else _said(number)
    return f"{text} {thing}" + ("s" if number != 1 else "")


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of plain values; lists of plain values stay whole."""
    items: Any = values.items() if isinstance(values, dict) else enumerate(values)
    found: dict[str, Any] = {}
    for key, value in items:
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def compare(results: Sequence[Result]) -> Comparison:
    """Put results beside each other.

    Args:
        results: at least two, of one protocol; the first is what the others are compared with.

    Raises:
        ValueError: fewer than two, or results that do not answer the same question; the first differences are named.
    """
    if len(results) < 2:
        raise ValueError("a comparison needs at least two results: name the folders of both.")
    names = distinct_names(results)
    for other, name in zip(results[1:], names[1:]):
        if told := unlike(results[0], other, (names[0], name)):
            raise ValueError(f"cannot compare: {told}.")
    shared = [case["name"] for case in results[0].told["cases"] if all(r.case(case["name"]) for r in results)]
    if not shared:
        raise ValueError(f"cannot compare: {names[0]} and the others have no case in common.")
    notes: list[str] = []
    cases = tuple(_case(name, results, names, notes) for name in shared)
    protocol = next((result.protocol for result in results if result.deviations), results[0].protocol)
    of_models = tuple(tuple(result.of_model) for result in results)
    return Comparison(
        protocol, tuple(results[0].of_question), tuple(names), of_models, cases, tuple(dict.fromkeys(notes))
    )


def _case(name: str, results: Sequence[Result], names: Sequence[str], notes: list[str]) -> Case:
    found = [result.case(name) for result in results]
    told = [model_forecast(case) for case in found if case is not None]
    windows = [result.windows(name, one["name"]) for result, one in zip(results, told)]
    for who, forecast, one in zip(names, told, windows):
        if one is None and forecast.get("scores"):  # of sets alone there are no windows
            notes.append(f"{who} has no windows.csv, so its differences have no interval")
    scores = {}
    for key in _shared([one.get("scores", {}) for one in told], names, notes):
        minus = tuple(paired(windows[0], other, key) for other in windows[1:])
        whole = tuple(interval for interval in minus if interval is not None)
        scores[key] = Metric.of(key, [one["scores"][key] for one in told], whole if len(whole) == len(minus) else ())
    some = _shared([one.get("sets") or {} for one in told], names, notes)
    if any("*" in key for key in some) and len({str(result.told["model"].get("sha256")) for result in results}) > 1:
        notes.append("figures with a star are beside what each model's own codec makes of real clips, which differs")
    return Case(name, scores, {key: Metric.of(key, [one["sets"][key] for one in told]) for key in some})


def _shared(told: Sequence[Mapping[str, Any]], names: Sequence[str], notes: list[str]) -> list[str]:
    """Metrics that all have; the others are noted."""
    alone: dict[str, list[str]] = {}  # results that have it, in words -> keys
    for key in dict.fromkeys(key for one in told for key in one):
        having = [name for name, one in zip(names, told) if key in one]
        if len(having) < len(told):
            alone.setdefault(", ".join(having), []).append(key)
    notes += [f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} only in {who}" for who, keys in alone.items()]
    return [key for key in told[0] if all(key in one for one in told)]


def paired(first: Windows | None, other: Windows | None, metric: str) -> Interval | None:
    """Mean of other minus first over the windows that both have, bootstrapped over units; None where there are none."""
    if first is None or other is None:
        return None
    a, b = first.values.get(metric, {}), other.values.get(metric, {})
    both = [window for window in a if window in b]
    if not both:
        return None
    return bootstrap([b[window] - a[window] for window in both], [first.units[window] for window in both])


def save_pictures(results: Sequence[Result], comparison: Comparison, folder: Path) -> list[Path]:
    """Write side-by-side.mp4 (a line per window) and strip.png (a row per model, truth first) of what is kept.

    Of the second case on, the names carry its number. A case of which a result keeps no frames gets no pictures.
    """
    comment = f"Rows named truth: recorded clips. The others: generated by framecast, {', '.join(comparison.names)}."
    files: list[Path] = []
    for number, case in enumerate(comparison.cases, 1):
        end = "" if number == 1 else f"-{number}"
        lines = [rows for rows in shown_rows(results, comparison.names, case.name) if len(rows) > 1]
        if not lines:
            continue
        board = grid([row for rows in lines for row in rows], columns=len(lines[0]))
        files.append(save_view(folder / f"side-by-side{end}.mp4", board, comment=comment))
        files.append(write_image(folder / f"strip{end}.png", strip(lines[0]), comment=comment))
    return files


def shown_rows(results: Sequence[Result], names: Sequence[str], case: str) -> list[list[Row]]:
    """For every window that all results keep: the truth, then the first sample of every model."""
    kept = [{window.name: window for window in result.shown(case)} for result in results]
    found = [one for result in results if (one := result.case(case)) is not None]
    forecasts = [model_forecast(one)["name"] for one in found]
    shared = [name for name in (kept[0] if kept else ()) if all(name in windows for windows in kept)]
    lines = [_line([windows[name] for windows in kept], forecasts, names) for name in shared]
    return [line for line in lines if all(len(a) == len(b) for a, b in pairwise([lines[0], line]))]


def _line(windows: Sequence[Shown], forecasts: Sequence[str], names: Sequence[str]) -> list[Row]:
    truth = windows[0].truth()
    rows = [Row("truth", truth)] if truth is not None else []
    for window, forecast, name in zip(windows, forecasts, names):
        if samples := window.samples(forecast):
            rows.append(Row(name, samples[0], window.mask(len(samples[0]))))
    return rows
