# SPDX-License-Identifier: Apache-2.0
"""What a person sees: lines, tables, bars with the time left; for machines one JSON object on stdout.

Everything but results and tables goes to stderr, so that stdout can be piped. rich is loaded only for a bar, and a bar
is drawn only on a terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

_ESTIMATE_FROM = 10.0  # seconds; shorter work is not announced


class Progress(Protocol):
    """How far some work is, and what else there is to tell of it."""

    def __call__(self, done: int, total: int, told: str = "") -> None: ...


@dataclass(frozen=True)
class Console:
    """How a command talks."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    def note(self, line: str) -> None:
        """Something worth knowing along the way."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A result for people."""
        if not self.json:
            print(text, flush=True)

    def result(self, values: dict[str, Any]) -> None:
        """The result for machines."""
        if self.json:
            print(json.dumps(values, ensure_ascii=False), flush=True)

    @contextmanager
    def progress(self, label: str, *, unit: str = "steps") -> Iterator[Progress]:
        """A callback that shows how far some work is: a bar on a terminal, a few lines elsewhere."""
        if self.quiet:
            yield lambda done, total, told="": None
        elif sys.stderr.isatty():
            with _bar(label, unit) as update:
                yield update
        else:
            yield _lines(label, unit, self.note)

    @contextmanager
    def training(self) -> Iterator[Training]:
        """What `framecast.train.run` tells: the plan, notes, and a bar or lines for the steps."""
        with self.progress("training", unit="steps") as update:
            yield Training(self, update)


@dataclass
class Training:
    """Shows the progress of a training run."""

    console: Console
    update: Progress

    def plan(self, plan: Any) -> None:
        for line in plan.lines():
            self.console.note(line)

    def step(self, step: int, max_steps: int, loss: float, rate: float) -> None:
        self.update(step, max_steps, f", loss {loss:.3g}")

    def note(self, text: str) -> None:
        self.console.note(text)

    def done(self, trained: Any) -> None: ...


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console as Screen
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Screen(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total, told="": bar.update(task, description=label + told, completed=done, total=total)


def _lines(label: str, unit: str, note: Callable[[str], None]) -> Progress:
    """An estimate after the first steps, then a line at every quarter of long work.

    Work that tells something of itself, as training does, makes its own estimate.
    """
    began, state = time.perf_counter(), {"first": 0.0, "estimated": False, "quarter": 0}

    def update(done: int, total: int, told: str = "") -> None:
        now = time.perf_counter()
        if not state["first"]:
            began_at = began if total == 1 else now  # the first call also warms up
            state["first"], state["at"] = began_at, done
            return
        left = (now - state["first"]) / max(1, done - state["at"]) * (total - done)
        if not state["estimated"] and (now - began > 1.0 or done - state["at"] >= 3):
            state["estimated"] = True
            if left > _ESTIMATE_FROM and not told:
                note(f"{label}: {total} {unit}, about {duration(left)}.")
        if (quarter := 4 * done // max(1, total)) > state["quarter"] and now - began > _ESTIMATE_FROM:
            state["quarter"] = quarter
            rest = f", about {duration(left)} left" if done < total else f", {duration(now - began)}"
            note(f"{label}: {done} of {total} {unit}{told}{rest}.")

    return update


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(4.26), duration(75), duration(7300)
        ('4.3 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns side by side; numbers to the right.

    Example:
        >>> print(table(["model", "steps"], [["a", 5], ["bcd", 120]]))
        model  steps
        a          5
        bcd      120
    """
    cells = [list(head), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = [all(isinstance(row[i], (int, float)) for row in rows) and bool(rows) for i in range(len(head))]
    lines = ("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
