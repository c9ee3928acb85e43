# SPDX-License-Identifier: Apache-2.0
"""The commands that put results side by side: compare, and report as one page."""

from __future__ import annotations

import argparse
import json
import os
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
    from framecast.evaluate.compare import SETS, compare, save_pictures
    from framecast.evaluate.result_folder import read_result

    if len(args.results) < 2:
        raise UsageError("compare needs at least two results: framecast compare RESULT RESULT.")
    if len({path.resolve() for path in args.results}) < len(args.results):
        raise UsageError("compare was given a result twice: name different ones.")
    results = [read_result(path) for path in args.results]
    told = compare(results)
    out = out_folder(args, f"compare-{told.protocol}")
    console.say(", ".join([told.protocol, *told.deviations]))
    numbers = {line: n for n, line in enumerate(dict.fromkeys(line for some in told.of_models for line in some), 1)}
    for case in told.cases:
        console.say(f"\n{case.name}\n{_tables(told, case, numbers)}")
    for line, number in numbers.items():
        console.say(f"[{number}] {line}")
    if any(case.scores for case in told.cases):
        console.say("(in brackets 95 % intervals, bootstrap over independent units; differences are paired by window)")
    if any(case.sets for case in told.cases):
        console.say(f"(sets: in brackets {SETS})")
    for note in told.notes:
        console.note(f"{note}.")
    with new_folder(out):
        files = [out / "comparison.json", *save_pictures(results, told, out)]
        files[0].write_text(json.dumps(told.plain(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.say(f"{out}: {', '.join(path.name for path in files)}")
    console.result({**told.plain(), "out": str(out), "files": [str(path) for path in files]})
    return 0


def _tables(told: Comparison, case: Case, numbers: Mapping[str, int]) -> str:
    """Means over windows, with every model's figure and the others minus the first; then sets, with their floors."""
    marks = [" ".join(f"[{numbers[line]}]" for line in some) for some in told.of_models]
    differs = [["differs in", *marks]] if numbers else []
    minus = [f"{name}, minus the first" for name in told.names[1:]]
    scores, sets = list(differs), list(differs if not case.scores else ())
    for metric in case.scores.values():
        scores.append([metric.heading, *map(_figure, metric.values), *map(str, metric.minus_first)])
    for metric in case.sets.values():
        sets.append([metric.heading, *map(_figure, metric.values), _figure({"value": metric.values[0].get("floor")})])
    parts = [(scores, minus)] if case.scores or not case.sets else []
    parts += [(sets, ["floor"])] if case.sets else []
    return "\n\n".join(_table(["", *told.names, *last], rows) for rows, last in parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return table(head, [row + [""] * (len(head) - len(row)) for row in rows])


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
    if args.out:
        _check_page(out, name=f"report-{args.sources[0].resolve().name}.html")
    with console.progress("report", unit="sections") as progress:
        written = write_report(args.sources, _free(out), progress=progress)
    size = written.stat().st_size
    console.say(f"{written}: {many(len(args.sources), 'source')}, {size / 1e6:.1f} MB, opens without a network")
    console.result({"out": str(written), "bytes": size})
    return 0


def _check_page(out: Path, *, name: str) -> None:
    """Refuse a place where no page can be written, and name one where it can."""
    nearest = next((folder for folder in out.parents if folder.exists()), Path())
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name the page in it, --out {_free(out / name)}.")
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file, and no page can lie in it: use --out {_free(Path(out.name))}.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: a report is a web page; name it .html: --out {_free(out.with_suffix('.html'))}.")
    if out.exists():
        raise ValueError(f"{out} exists already, and nothing is overwritten: use --out {_free(out)}.")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"nothing can be written to {nearest}: choose another place with --out FILE.html.")


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
