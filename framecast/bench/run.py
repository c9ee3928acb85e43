# SPDX-License-Identifier: Apache-2.0
"""Which measurements there are, each run in a process of its own, one row of plain values after another; no torch here.

Read next: `network.py`, `drawing.py`, `codes.py`, `reading.py`, `flows.py`, `features.py`, `sensitivity.py` (what is
measured), `measure.py` (how). `efficiency.py` sets systems side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framecast.bench.alone import alone

WHAT = (
    "matmul", "forward", "step", "encode", "decode", "denoise", "codes", "sampling", "horizon", "reading", "simulator",
    "features", "crps", "rf3d",
)  # fmt: skip
PRECISIONS = ("32", "bf16")
FILES = ("mp4, key frame every 25", "mp4, key frame every 250", "gif", "webp", "folder of png", "npz", "npy")
BACKENDS = ("numba", "numpy")
HORIZONS = (16, 128)  # frames; the longer one must need no more memory


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is to be measured, and how."""

    what: tuple[str, ...] = WHAT  # of `WHAT`
    preset: str | None = None  # None: the yardstick of `network.py`
    stage: str | None = None  # in `forward` and `step`; None: the first
    changes: dict[str, Any] = field(default_factory=dict)  # settings by dotted key, in place of the preset's
    model: str | None = None  # that draws; None: the bundled one, or an untrained one of `preset`
    steps: str | None = None  # of the sampler; None: the model's own
    futures: int = 8  # drawn at once in `denoise` and `codes`, which are measured for one as well
    clip: str | None = None  # read this one instead of clips made for it
    repeats: int = 5
    device: str = "auto"
    precision: str = "32"
    threads: int | None = None  # None: as torch chooses


@dataclass(frozen=True)
class Task:
    """One measurement: a function to be called by itself."""

    label: str
    target: str
    arguments: dict[str, Any]
    optional: bool = False  # where it refuses, that is told and the rest goes on


def tasks(bench: Bench) -> list[Task]:
    """The measurements of a bench, in order.

    Raises:
        ValueError: no such clip.
    """
    if bench.clip is not None and not Path(bench.clip).exists():
        raise ValueError(f"{bench.clip}: there is no such file or folder.")
    return [task for word in WHAT if word in bench.what for task in _tasks(word, bench)]


def _tasks(word: str, bench: Bench) -> list[Task]:
    if word == "reading":
        repeats = {"repeats": bench.repeats}
        if bench.clip is not None:
            return [Task(f"reading {bench.clip}", "framecast.bench.reading:found", {"path": bench.clip, **repeats})]
        return [Task(f"reading {kind}", "framecast.bench.reading:made", {"kind": kind, **repeats}) for kind in FILES]
    if word == "simulator":
        target = "framecast.bench.flows:simulator"
        return [
            Task(f"simulator {backend}", target, {"backend": backend, "repeats": bench.repeats}, optional=True)
            for backend in BACKENDS
        ]
    if word in ("features", "crps"):
        return [Task(word, f"framecast.bench.features:{word}", {"device": bench.device, "repeats": bench.repeats})]
    if word == "rf3d":
        return [Task("rf3d-v1", "framecast.bench.sensitivity:sensitivity", {"device": bench.device})]
    return _network_tasks(word, bench)


def _network_tasks(word: str, bench: Bench) -> list[Task]:
    how: dict[str, Any] = {"device": bench.device, "repeats": bench.repeats}
    if word in ("matmul", "forward", "step"):
        how["precision"] = bench.precision
        if word != "matmul":
            how |= {"preset": bench.preset, "stage": bench.stage, "changes": bench.changes}
        return [Task(word, f"framecast.bench.network:{word}", how)]
    how |= {"preset": bench.preset, "model": bench.model, "changes": bench.changes}
    target = f"framecast.bench.drawing:{word}"
    if word in ("encode", "decode"):
        # not every model has a codec, so this is no reason to stop where everything is measured
        return [Task(word, target, how, optional=bench.what == WHAT)]
    if word == "codes":
        target, optional = "framecast.bench.codes:codes", bench.what == WHAT
        numbers = dict.fromkeys((bench.futures, 1))
        return [Task(f"codes {n}", target, how | {"futures": n}, optional=optional) for n in numbers]
    if word == "denoise":
        return [Task(f"denoise {n}", target, how | {"futures": n}) for n in dict.fromkeys((bench.futures, 1))]
    how["steps"] = bench.steps
    if word == "horizon":
        # as many frames in all, since the peak of more windows is a little higher by chance (the allocator's)
        return [
            Task(f"horizon {n}", target, how | {"frames": n, "repeats": bench.repeats * (max(HORIZONS) // n)})
            for n in HORIZONS
        ]
    return [Task(word, target, how)]


def measure(task: Task, *, threads: int | None) -> tuple[list[dict[str, Any]], str]:
    """Rows of a measurement, and a sentence where an optional one cannot be made.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        return alone(task.target, task.arguments, threads=threads), ""
    except ValueError as error:
        if not task.optional:
            raise
        return [], f"{task.label}: {error}"


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a file of JSON lines; what is in it stays.

    Raises:
        ValueError: the file holds something else.
    """
    check_lines(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_lines(path: Path) -> None:
    """Raise ValueError where rows cannot be added to a file: a folder, or a file that is not JSON lines."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, for example --out {path / 'bench.jsonl'}.")
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            first = file.readline()
        try:
            fine = not first or isinstance(json.loads(first), dict)
        except ValueError:
            fine = False
        if not fine:
            raise ValueError(
                f"{path} holds something else than JSON lines, and is left as it is: choose another --out."
            )


def cells(row: dict[str, Any]) -> Iterator[str]:
    """A row for people: what, case, time, spread, memory, operations, share of matmul, rate, remark."""
    low, high = row["spread"]
    yield row["what"]
    yield row["case"]
    yield _scaled(row["seconds"], "s")
    yield f"{_scaled(low, 's')} – {_scaled(high, 's')}"
    yield _scaled(row["memory"], "B") if row["memory"] is not None else ""
    yield _scaled(row["operations"], "flop") if "operations" in row else ""
    yield f"{100 * row['share_of_matmul']:.0f} %" if "share_of_matmul" in row else ""
    yield _rate(row)
    yield _remark(row)


HEAD = ("what", "case", "time", "from – to", "memory", "operations", "of matmul", "rate", "")


def _rate(row: dict[str, Any]) -> str:
    if "rate" in row:
        rate = row["rate"]
        return f"{rate:.3g} {row['rate_unit']}" if rate < 1000 else f"{_scaled(rate, '').strip()} {row['rate_unit']}"
    return _scaled(row["operations_per_second"], "flop/s") if "operations_per_second" in row else ""


def _remark(row: dict[str, Any]) -> str:
    if "share_of_permitted" in row:
        permitted = f"{100 * row['share_of_permitted']:.0f} % of what its key frames permit"
        return f"{row['times_from_start']:.1f} × from the start, {permitted}"
    if "scores" in row:
        return ", ".join(
            f"{part} {told['frechet']:.3f} (coverage {told['coverage']:.2f})" for part, told in row["scores"].items()
        )
    if "notes" in row:
        return " ".join(row["notes"])
    if "matmul" in row:
        before, after = (_scaled(row["matmul"][when]["rate"], "flop/s") for when in ("before", "after"))
        return f"matmul before {before}, after {after}"
    return ""


def _scaled(number: float, unit: str) -> str:
    """Three digits with a unit.

    Example:
        >>> _scaled(0.01234, "s"), _scaled(1.7e9, "B"), _scaled(250, "B")
        ('12.3 ms', '1.7 GB', '250 B')
    """
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if abs(number) >= size and not (unit == "s" and size > 1):
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"
