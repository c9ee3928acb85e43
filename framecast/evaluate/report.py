# SPDX-License-Identifier: Apache-2.0
"""Results and training runs as one page that needs nothing else: no network, no other file, no script.

Results that answer the same question stand beside each other in one section; others get sections of their own. The same
inputs give the same page. The template lies in `templates/`; tables and pictures are made in modules of their own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framecast import __version__
from framecast.data.files import new_file
from framecast.data.plot import training_curves
from framecast.evaluate.compare import many, unlike
from framecast.evaluate.report_pictures import SHELF, Picture, Shelf, calibration, further, headline, windows
from framecast.evaluate.report_tables import (
    Judged,
    Table,
    between,
    by_motion,
    differences,
    number,
    published,
    scores,
    sets,
    verdicts,
)
from framecast.evaluate.result_folder import Result, distinct_names, is_result, read_result
from framecast.experiment import from_yaml, to_yaml

_LOG_LINES = 30  # of a run's log
_WINDOWS = 3  # of a page with one case; with several, one of each


@dataclass(frozen=True)
class Group:
    """Pictures under one heading."""

    id: str
    title: str
    pictures: Sequence[Picture]
    about: str = ""


@dataclass(frozen=True)
class Case:
    """One case of a section."""

    id: str = ""
    title: str = ""
    titled: bool = False  # whether its name is shown: not where it is the only one
    verdicts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    groups: Sequence[Group] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A protocol with its results, or a training run."""

    id: str
    title: str
    about: str = ""
    deviations: Sequence[str] = ()
    is_not: Sequence[str] = ()
    assumed: Sequence[str] = ()
    cases: Sequence[Case] = ()
    facts: Sequence[tuple[str, str]] = ()
    texts: Sequence[tuple[str, str]] = ()  # titles and what unfolds under them


@dataclass
class _Ids:
    """Anchors, each given once."""

    given: set[str] = field(default_factory=set)

    def __call__(self, text: str) -> str:
        word = "-".join(re.findall(r"[a-z0-9]+", text.lower())) or "part"
        found = next(name for n in range(1, 10_000) if (name := word if n == 1 else f"{word}-{n}") not in self.given)
        self.given.add(found)
        return found


def write_report(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write one page about results and runs.

    Args:
        sources: folders of results (or their `result.json`) and of training runs, in any order.
        out: the page, ends in .html.
        overwrite: replace a file that is there.
        progress: called with sections done and in all.

    Raises:
        ValueError: nothing to report, or a source that is neither a result nor a run.
        FileExistsError: `out` exists and `overwrite` is False.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: a report is a web page; name it .html.")
    results, runs = _sorted([Path(source) for source in sources])
    grouped = _grouped(list(zip(distinct_names(results), results)))
    cases = sum(len(_case_names(group)) for group in grouped)
    share, ids, shelf = SHELF / (cases + len(runs)), _Ids(), Shelf(0)
    trained, judged = list[Section](), list[Section]()

    def done() -> None:
        if progress is not None:
            progress(len(trained) + len(judged), len(grouped) + len(runs))

    for run in runs:  # first: the place that they leave is the results'
        shelf.place += share
        trained.append(_run_section(run, shelf, ids))
        done()
    for group in grouped:
        judged.append(_judged_section(group, shelf, share, ids, windows_each=_WINDOWS if cases == 1 else 1))
        done()
    sections = judged + trained
    page = _rendered(sections, grouped, runs)
    with new_file(out, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _sorted(sources: Sequence[Path]) -> tuple[list[Result], list[Path]]:
    """Results, and folders of runs."""
    results, runs = [], []
    for source in sources:
        if is_result(source):
            results.append(read_result(source))
        elif source.is_dir() and any((source / name).is_file() for name in ("metrics.csv", "config.yaml")):
            runs.append(source)
        else:
            raise ValueError(
                f"{source} is neither a result (a folder with result.json, of framecast evaluate) nor a training run "
                "(a folder with metrics.csv)."
            )
    if not sources:
        raise ValueError("there is nothing to report: name folders of results or of training runs.")
    return results, runs


def _grouped(named: Sequence[tuple[str, Result]]) -> list[list[tuple[str, Result]]]:
    """Results that answer the same question, together; in the order of the first of each."""
    groups: list[list[tuple[str, Result]]] = []
    for name, result in named:
        like = next((group for group in groups if not unlike(group[0][1], result)), None)
        if like is None:
            groups.append([(name, result)])
        else:
            like.append((name, result))
    return groups


def _case_names(group: Sequence[tuple[str, Result]]) -> list[str]:
    return list(dict.fromkeys(case["name"] for _, result in group for case in result.told["cases"]))


def _judged_section(
    group: Sequence[tuple[str, Result]], shelf: Shelf, share: float, ids: _Ids, *, windows_each: int
) -> Section:
    """One protocol and the results under it."""
    first = group[0][1]
    settings, names = first.told["settings"], _case_names(group)
    several = len(group) > 1
    protocol = next((result.protocol for _, result in group if result.deviations), first.protocol)
    title = f"Results under {protocol}" if several else f"{group[0][0]} under {first.protocol}"
    anchor, cases = ids(title), []
    for name in names:
        judged = [Judged(who, result, case) for who, result in group if (case := result.case(name)) is not None]
        shelf.place += share
        cases.append(_case(name, judged, shelf, ids, titled=len(names) > 1, count=windows_each))
    data = first.told["data"]
    described = str(settings.get("about", ""))
    about = [" | ".join(name for name, _ in group) if several else "", described[:1].upper() + described[1:]]
    about += [", ".join(str(settings[key]) for key in ("set", "split") if settings.get(key))]
    if data.get("windows"):
        about.append(f"{many(data['windows'], 'window')} of {many(data.get('units', '–'), 'independent unit')}")
    return Section(
        id=anchor,
        title=title,
        about=" · ".join(text.rstrip(".") for text in about if text),
        deviations=_gathered(_deviations(group), [case["name"] for case in first.told["cases"]]),
        is_not=first.told.get("is_not", ()),
        assumed=first.told.get("assumed", ()),
        cases=cases,
        texts=_settings(group),
    )


def _deviations(group: Sequence[tuple[str, Result]]) -> list[str]:
    """Of the question, which all of a group share; then a line for each model that has its own."""
    if len(group) == 1:
        return group[0][1].deviations
    models = [f"{name}: {'; '.join(result.of_model)}" for name, result in group if result.of_model]
    return [*group[0][1].of_question, *models]


def _gathered(deviations: Sequence[str], cases: Sequence[str]) -> list[str]:
    """Deviations, those that hold in every case said once."""
    ends = [f" ({name})" for name in cases]
    told: dict[str, None] = {}
    for line in deviations:
        bare = next((line.removesuffix(end) for end in ends if line.endswith(end)), line)
        everywhere = len(cases) > 1 and bare != line and all(bare + end in deviations for end in ends)
        told[f"{bare} (in every case)" if everywhere else line] = None
    return list(told)


def _case(name: str, judged: Sequence[Judged], shelf: Shelf, ids: _Ids, *, titled: bool, count: int) -> Case:
    before = shelf.left_out
    # what comes first has its place on the page for certain
    curves = headline(judged, shelf)
    maps, films = windows(judged, shelf, count=count)
    sure, rest = calibration(judged, shelf), further(judged, shelf)
    groups = [
        Group(ids(f"{name} frame by frame"), "Frame by frame", curves + rest),
        Group(ids(f"{name} calibration"), "Does the forecast know how sure it is?", sure),
        Group(ids(f"{name} maps"), "Where the forecasts are wrong", maps),
        Group(ids(f"{name} videos"), "The forecasts themselves", films),
    ]
    tables = [scores(judged) if any(one.model.get("scores") for one in judged) else None]
    tables.append(between(judged) if len(judged) > 1 else None)
    tables += [differences(one) for one in judged]
    tables += [by_motion(judged), sets(judged), published(judged)]
    lost = shelf.left_out - before
    notes = [f"Left out to keep this page small: {lost} of the pictures." if lost else ""]
    if not films:
        notes.append("No frames were kept with this result, so there are no strips and videos.")
    seconds = [f"{one.name} {number(one.model['seconds'])} s" for one in judged if one.model.get("seconds")]
    notes.append(f"Time of drawing: {', '.join(seconds)}." if seconds else "")
    return Case(
        id=ids(f"case {name}"),
        title=name,
        titled=titled,
        verdicts=verdicts(judged),
        tables=[table for table in tables if table is not None],
        groups=groups,
        note=" ".join(note for note in notes if note),
    )


def _settings(group: Sequence[tuple[str, Result]]) -> list[tuple[str, str]]:
    """What unfolds under a section: the protocol, and how each result came about."""
    told = group[0][1].told
    texts = [("Every setting of the protocol", to_yaml(told["settings"]))]
    for name, result in group:
        keys = ("model", "data", "weights", "machine", "versions", "commit")
        texts.append((f"How {name} was judged", to_yaml({key: result.told.get(key) for key in keys})))
    return texts


def _run_section(run: Path, shelf: Shelf, ids: _Ids) -> Section:
    """One training run: its curves, what it made of held-out clips, its settings and its log."""
    name = run.resolve().name
    title = f"Training of {name}"
    anchor, found, before = ids(title), list[Picture](), shelf.left_out
    metrics = run / "metrics.csv"
    if metrics.is_file() and (svg := training_curves(metrics)) is not None:
        caption = "Losses over optimiser steps, neighbours averaged."
        shelf.add(svg, ".svg", alt=f"Training curves of {name}.", caption=caption, to=found)
    groups = [Group(ids(f"{name} curves"), "Training curves", found)]
    previews = _previews(run, shelf)
    groups.append(Group(ids(f"{name} previews"), "What it makes of held-out clips", previews))
    notes = [] if found else ["There is nothing to draw yet: metrics.csv is missing or holds fewer than two steps."]
    if lost := shelf.left_out - before:
        notes.append(f"Left out to keep this page small: {lost} of the pictures.")
    if not previews and not lost:
        notes.append("This folder holds no previews.")
    texts = [("Every setting", _text(run / "config.yaml")), ("Machine and versions", _text(run / "env.json"))]
    log = _text(run / "log.txt").splitlines()
    texts.append((f"The last {min(_LOG_LINES, len(log))} lines of the log", "\n".join(log[-_LOG_LINES:])))
    return Section(
        id=anchor,
        title=title,
        facts=_facts(run),
        cases=[Case(groups=groups, note=" ".join(notes))],
        texts=[(head, text) for head, text in texts if text],
    )


def _previews(run: Path, shelf: Shelf) -> list[Picture]:
    """Of the latest step that has any."""
    steps = sorted((run / "samples").glob("step_*")) if (run / "samples").is_dir() else []
    found: list[Picture] = []
    for name, words in (("grid.mp4", "Video"), ("sheet.png", "Film strip")):
        files = [step / name for step in steps if (step / name).is_file()]
        if files:
            step = int(re.sub(r"\D", "", files[-1].parent.name) or 0)
            what = f"held-out clips (truth) and what the model makes of them (model) at step {step:,}"
            alt, caption = f"{words} of {what}.", f"{what[0].upper()}{what[1:]}."
            shelf.add(files[-1].read_bytes(), Path(name).suffix, alt=alt, caption=caption, wide=True, to=found)
    return found


def _facts(run: Path) -> list[tuple[str, str]]:
    """The few figures of a run that everybody asks for."""
    facts: list[tuple[str, str]] = []
    try:
        config = from_yaml(_text(run / "config.yaml"))
    except ValueError:
        config = {}
    facts += [(key, str(config[key])) for key in ("system", "source") if config.get(key)]
    data = config.get("data") or {}
    if data.get("dir"):
        facts.append(("data", f"{data['dir']}, size {data.get('size')}, channels {data.get('channels')}"))
    last = _last_values(run / "metrics.csv")
    facts += [(key.replace("_", " "), f"{value} (step {step:,})") for key, (step, value) in last.items()]
    return facts


def _last_values(metrics: Path) -> dict[str, tuple[int, str]]:
    """The last loss of every kind, and the step it is of."""
    found: dict[str, tuple[int, str]] = {}
    if metrics.is_file():
        with open(metrics, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for key, text in row.items():
                    if key.endswith("loss") and text and row["step"].isdecimal():
                        found[key] = int(row["step"]), number(float(text))
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def _rendered(sections: Sequence[Section], groups: Sequence[Sequence[tuple[str, Result]]], runs: Sequence[Path]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    where = Environment(
        loader=PackageLoader("framecast.evaluate"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    title = sections[0].title if len(sections) == 1 else "framecast report"
    counts = [(sum(map(len, groups)), "evaluation"), (len(runs), "training run")]
    lead = " and ".join(many(n, what) for n, what in counts if n)
    contents = [(section.id, section.title) for section in sections if len(sections) > 1]
    for section in sections:
        for case in section.cases:
            contents += [(case.id, case.title)] if case.titled else []
            if len(sections) == 1 and not case.titled:
                contents += [(group.id, group.title) for group in case.groups if group.pictures]
    versions = {str(r.told.get("versions", {}).get("framecast", "")) for group in groups for _, r in group} - {""}
    measured = f" Measured with framecast {', '.join(sorted(versions))}." if versions else ""
    return where.get_template("report.html").render(
        title=title,
        lead=lead[:1].upper() + lead[1:] + ".",
        contents=contents,
        sections=sections,
        closing=f"Written by framecast {__version__}.{measured} Frames with red edges are drawn, not recorded.",
    )
