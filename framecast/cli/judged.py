# SPDX-License-Identifier: Apache-2.0
"""How a result is told in a terminal: what it is not, tables with intervals, published values."""

from __future__ import annotations

import re
from typing import Any

from framecast.cli.console import Console, table
from framecast.cli.draw import many

# what a table shows of a forecast, where it has it
COLUMNS = (
    "crps_fair", "psnr", "psnr_clip", "ssim", "lpips_alex", "lpips_vgg", "mode_coverage",
    "late_variance", "late_spectrum", "late_period", "late_recurring",
)  # fmt: skip


def tell(told: dict[str, Any], console: Console) -> None:
    """All of a result; `told` is what result.json holds."""
    console.say(f"{told['protocol']}: {told['settings']['about']}")
    for line in told["deviations"]:
        console.say(f"  differs: {line}")
    for line in told["assumed"]:
        console.say(f"  assumed: {line}")
    for line in told["is_not"]:
        console.say(f"  not: {line}")
    for case in told["cases"]:
        _tell_case(case, console)
    for line in told["data"]["notes"]:
        console.say(f"  note: {line}")
    for value in told["published"]:
        console.say(f"  published: {published_words(value)}")


def _tell_case(case: dict[str, Any], console: Console) -> None:
    model = case["forecasts"][0]
    scores = model.get("scores", {})
    columns = [name for name in COLUMNS if name in scores]
    columns += [name for name in scores if re.fullmatch(r"best_of_\d+_psnr", name)]
    if columns:
        units = next(iter(scores.values()))["units"]
        count = next(iter(scores.values()))["count"]
        console.say(f"{case['name']}: {many(count, 'window')} of {many(units, 'independent unit')}")
        head = ["", "samples", *(_titled(scores[name]) for name in columns), f"{model['name']} minus this"]
        rows = []
        for forecast in case["forecasts"]:
            own = forecast.get("scores", {})
            paired = _interval(forecast["minus"][columns[0]]) if forecast.get("minus") else ""
            rows.append(
                [forecast["name"], forecast["samples"], *(_scored(own.get(name), count) for name in columns), paired]
            )
        console.say(table(head, rows))
        console.say("(in brackets 95 % intervals, bootstrap over independent units)")
    if any(forecast["sets"] for forecast in case["forecasts"]):
        _tell_sets(case, console)


def _tell_sets(case: dict[str, Any], console: Console) -> None:
    """A table of the random filters' figures, a row per forecast; then a line per other figure."""
    shown = [forecast for forecast in case["forecasts"] if forecast["sets"]]
    figures = {name: figure for forecast in reversed(shown) for name, figure in forecast["sets"].items()}
    first = next(iter(figures.values()))
    console.say(f"{case['name']}: {many(first['n_fake'], 'clip')} beside {many(first['n_real'], 'real one')}")
    random = {name: figure for name, figure in figures.items() if name.startswith("rf3d-v1 ")}  # not rf3d-v1*
    if random:
        rows = [[f["name"], *(_figure(f["sets"].get(name)) for name in random)] for f in shown]
        floors = ["none" if figure["floor"] is None else f"{figure['floor']:.3g}" for figure in random.values()]
        head = ["rf3d-v1", *(figure["label"].removeprefix("rf3d-v1 ") for figure in random.values())]
        console.say(table(head, [*rows, ["(floor)", *floors]]))
        _explain(random, console)
    others = [name for name in figures if name not in random]
    if others:
        rows = []
        for name in others:
            for forecast in (f for f in shown if name in f["sets"]):
                told = forecast["sets"][name]
                floor = "" if told["floor"] is None else f"{told['floor']:.3g}"
                rows.append([told["label"], forecast["name"], _figure(told), floor])
        console.say(table(["", "", "value", "of real clips"], rows))
    notes: dict[str, list[str]] = {}  # note -> labels
    for figure in (figure for figure in figures.values() if figure["note"]):
        notes.setdefault(figure["note"], []).append(figure["label"])
    for note, labels in notes.items():
        console.say(f"  {', '.join(labels)}: {note}")


def tell_figures(figures: dict[str, Any], console: Console) -> None:
    """Figures of one set beside real clips, a line each."""
    rows = []
    for told in figures.values():
        rows.append([told["label"], _figure(told), "" if told["floor"] is None else f"{told['floor']:.3g}"])
    console.say(table(["", "value", "floor"], rows))
    _explain(figures, console)
    for told in figures.values():
        if told["note"]:
            console.say(f"  {told['label']}: {told['note']}")


def _explain(figures: dict[str, Any], console: Console) -> None:
    """What brackets and floor of a table of sets mean."""
    spans = any(figure["low"] is not None for figure in figures.values())
    words = "in brackets 95 % intervals from disjoint folds" if spans else "too few clips for intervals"
    console.say(f"({words}; floor: between two halves of the real clips, see docs/judging.md)")


def _figure(told: dict[str, Any] | None) -> str:
    return _interval(told | {"mean": told["value"]}) if told else ""


def _scored(told: dict[str, Any] | None, count: int) -> str:
    """An interval, and of how many windows where it is not all."""
    short = told and told["count"] != count
    return _interval(told) + (f", {many(told['count'], 'window')}" if told and short else "")


def _titled(score: dict[str, Any]) -> str:
    return f"{score['label']}{', ' + score['unit'] if score['unit'] else ''}"


def _interval(told: dict[str, Any] | None) -> str:
    if not told:
        return ""
    if told["low"] is None:
        return "" if told["mean"] is None else f"{told['mean']:.3g}"
    return f"{told['mean']:.3g} ({told['low']:.3g} to {told['high']:.3g})"


def published_words(value: dict[str, Any]) -> str:
    """A published value in a few words."""
    number = "no number" if value["value"] is None else f"{value['value']:g}"
    spread = "" if value["spread"] is None else f" ± {value['spread']:g}"
    return f"{value['metric']} {value['method']} {number}{spread}" + (f" ({value['note']})" if value["note"] else "")
