# SPDX-License-Identifier: Apache-2.0
"""What a run writes down while it runs: log.txt, metrics.csv, and TensorBoard files where tensorboard is installed."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Means:
    """Running means of logged values since they were last taken; its state goes into checkpoints."""

    def __init__(self) -> None:
        self.state: dict[str, list[float]] = {}  # name -> [sum, count]

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the values of one step."""
        for name, value in values.items():
            total, count = self.state.get(name, (0.0, 0))
            self.state[name] = [total + value, count + 1]

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means = {name: total / count for name, (total, count) in self.state.items()}
        self.state = {}
        return means


class RunLog:
    """The log files of a run folder.

    Args:
        dir: the run folder.
        step: optimiser steps done: what metrics.csv holds beyond them (after a crash) is cut off.
    """

    def __init__(self, dir: Path, *, step: int = 0):
        self.path = dir / "metrics.csv"
        self.columns: list[str] = ["step"]
        self.text = logging.FileHandler(dir / "log.txt", encoding="utf-8")
        self.text.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        # Library notes (a file that broke while it was read, say) go into the same file.
        logging.getLogger("framecast").addHandler(self.text)
        self._truncate(step)
        self.board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(dir / "tensorboard"), purge_step=step + 1 if step else None)

    def note(self, text: str) -> None:
        """One line of log.txt."""
        self.text.emit(logging.LogRecord("framecast", logging.INFO, "", 0, text, None, None))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.csv; a value of a new name opens a new column."""
        fresh = [name for name in values if name not in self.columns]
        if fresh or not self.path.exists():
            self.columns += fresh
            self._rewrite(self._rows())
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(
                {"step": step, **{name: f"{value:.7g}" for name, value in values.items()}}
            )
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the files."""
        logging.getLogger("framecast").removeHandler(self.text)
        self.text.close()
        if self.board is not None:
            self.board.close()

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _truncate(self, step: int) -> None:
        rows = self._rows()
        if rows:
            self.columns = list(rows[0])
            # The last line may be half written: a row without a number is dropped too.
            self._rewrite([row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        fresh = self.path.with_name(f".metrics.{os.getpid()}.csv")
        with open(fresh, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        fresh.replace(self.path)


class Pace:
    """Optimiser steps per second, recent ones counting more; the first steps (warming up, compiling) are left out."""

    def __init__(self, skip: int = 2):
        self.skip, self.rate, self.last = skip, 0.0, 0.0

    def tick(self, seconds: float) -> float:
        """Note that a step is done, after so many seconds spent on steps; returns the rate, 0 while it is unknown."""
        latest, self.last = 1.0 / max(seconds - self.last, 1e-9), seconds
        if self.skip:
            self.skip -= 1
            return 0.0
        # averaged over seconds per step, as times add up
        self.rate = latest if not self.rate else 1.0 / (0.95 / self.rate + 0.05 / latest)
        return self.rate
