# SPDX-License-Identifier: Apache-2.0
"""The commands that put results side by side: compare, and report as one page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, table
from framecast.cli.draw import many, out_folder
from framecast.cli.parsing import Command, Parser, UsageError

if TYPE_CHECKING:
    from framecast.evaluate.compare import Case, Comparison


def _compare_arguments(parser: Parser) -> None:
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT", help="folders of framecast evaluate")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: out/compare-<protocol>; nothing is overwritten"
    )


def _compare(args: argparse.Namespace, console: Console) -> int:
    from framecast.data.files import new_folder
    from framecast.evaluate.compare import compare, save_pictures
    from framecast.evaluate.result_folder import read_result

    if len(args.results) < 2:
        raise UsageError("compare needs at least two results: framecast compare RESULT RESULT.")
    results = [read_result(path) for path in args.results]
    told = compare(results)
    out = out_folder(args, f"compare-{told.protocol}")
    console.say(", ".join([told.protocol, *told.deviations]))
    for case in told.cases:
        console.say(f"\n{case.name}\n{_table(told, case)}")
    console.say("(in brackets 95 % intervals, bootstrap over independent units; differences are paired by window)")
    for note in told.notes:
        console.note(f"{note}.")
    with new_folder(out):
        files = [out / "comparison.json", *save_pictures(results, told, out)]
        files[0].write_text(json.dumps(told.plain(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.say(f"{out}: {', '.join(path.name for path in files)}")
    console.result({**told.plain(), "out": str(out), "files": [str(path) for path in files]})
    return 0


def _table(told: Comparison, case: Case) -> str:
    """A line per metric: every model's figure, then the others minus the first."""
    rows = []
    for metric in [*case.scores.values(), *case.sets.values()]:
        minus = [str(interval) for interval in metric.minus_first] or [""] * len(told.names[1:])
        rows.append([metric.heading, *map(_figure, metric.values), *minus])
    return table(["", *told.names, *(f"{name}, minus the first" for name in told.names[1:])], rows)


def _figure(told: Mapping[str, Any]) -> str:
    """A figure with its interval, where it has one."""
    value = told.get("mean", told.get("value"))
    if value is None:
        return "none"
    interval = None not in (told.get("low"), told.get("high"))
    return f"{value:.3g} ({told['low']:.3g} to {told['high']:.3g})" if interval else f"{value:.3g}"


COMPARE = Command(
    about="Put results of one protocol side by side: a table with paired intervals, a video and a strip with a row per "
    "model. Results that do not answer the same question are refused.",
    example="framecast compare out/smoke-lbm-vortex-ramvid out/smoke-lbm-analog-8",
    arguments=_compare_arguments,
    run=_compare,
)


def _report_arguments(parser: Parser) -> None:
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="RUN|RESULT", help="folders of framecast evaluate and framecast train"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: out/report-<name>.html")


def _report(args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.report import write_report

    out = args.out or Path("out") / f"report-{args.sources[0].resolve().name}.html"
    if out.exists() and args.out:
        raise ValueError(f"{out} exists already, and nothing is overwritten: use --out {_free(out)}.")
    with console.progress("report", unit="sections") as progress:
        written = write_report(args.sources, _free(out), progress=progress)
    size = written.stat().st_size
    console.say(f"{written}: {many(len(args.sources), 'source')}, {size / 1e6:.1f} MB, opens without a network")
    console.result({"out": str(written), "bytes": size})
    return 0


def _free(path: Path) -> Path:
    """`path` if nothing is there, else the first free one of `path-2`, `path-3`, …"""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


REPORT = Command(
    about="Write one page about results and training runs: settings, curves, tables beside published values, strips, "
    "videos. It holds everything it needs; results that do not answer the same question get sections of their own.",
    example="framecast report out/smoke-lbm-vortex-ramvid runs/latest --out report.html",
    arguments=_report_arguments,
    run=_report,
)
