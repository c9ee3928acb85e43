# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations as they lie in folders: what `compare` and `report` read of them.

Hides the files (`result.json`, `windows.csv`, `shown/`), so that no other module knows how they are laid out, and which
of them may be missing. Nothing here computes a score.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.evaluate.result_shape import astray
from framecast.video import Clip

FORMAT = 2  # format_version of result.json
_NEEDED = ("protocol", "deviations", "settings", "data", "model", "cases")
_WHOSE = ("case", "forecast", "window", "unit")  # columns of windows.csv; the others are metrics
_AGAIN = "run framecast evaluate again"


@dataclass(frozen=True)
class Windows:
    """Figures of one forecast, window by window."""

    units: Mapping[str, str]  # window -> the independent unit it belongs to
    values: Mapping[str, Mapping[str, float]]  # metric -> window -> value; windows without a value are not there


@dataclass(frozen=True)
class Shown:
    """One window of which the frames are kept."""

    folder: Path
    name: str
    known: tuple[int, ...]  # given frames

    def truth(self) -> Clip | None:
        """What really followed, the given frames first; None where the protocol has no truth."""
        read = _array(self.folder / "truth.npz")
        return None if read is None else Clip(read[0], read[1], read[2])

    def samples(self, forecast: str) -> list[Clip]:
        """The drawn videos of a forecast; none where it was not kept."""
        read = _array(self.folder / array_name(forecast))
        if read is None:
            return []
        video = read[0] if read[0].ndim == 5 else read[0][None]
        return [Clip(sample, read[1], read[2]) for sample in video]

    def mask(self, frames: int) -> list[bool]:
        """For every frame, whether it was given."""
        return [i in self.known for i in range(frames)]


@dataclass(frozen=True)
class Result:
    """One evaluation: a model under a protocol."""

    path: Path  # its folder
    told: dict[str, Any]  # result.json

    @property
    def name(self) -> str:
        """Of the model."""
        return str(self.told["model"].get("name", self.path.name))

    @property
    def protocol(self) -> str:
        """Its name, with `-partial` where the run deviates from it."""
        return str(self.told["protocol"])

    @property
    def deviations(self) -> list[str]:
        """In what the run differs from its protocol."""
        return list(self.told["deviations"])

    @property
    def of_model(self) -> list[str]:
        """Those deviations that say how this model draws, and leave the question as it is."""
        return [line for line in self.told.get("model_deviations", ()) if line in self.told["deviations"]]

    @property
    def of_question(self) -> list[str]:
        """Those that change what was asked: windows, samples, sizes, weights, …"""
        return [line for line in self.deviations if line not in self.of_model]

    def case(self, name: str) -> dict[str, Any] | None:
        """The case of this name."""
        return next((case for case in self.told["cases"] if case["name"] == name), None)

    def windows(self, case: str, forecast: str) -> Windows | None:
        """What `windows.csv` says of a forecast; None where there is no such file, or no score to stand in it.

        Raises:
            ValueError: the file is not as it was written: columns or windows are missing, or it was cut.
        """
        path, count = self.path / "windows.csv", self._scored(case, forecast)
        if not path.is_file() or not count:
            return None
        metrics, lines = _lines(path)
        rows = [line for line in lines if line["case"] == case and line["forecast"] == forecast]
        if len(rows) != count:
            told = f"windows of {forecast} ({case}): {len(rows)} here, {count} there"
            raise ValueError(f"{path} does not fit result.json ({told}): {_AGAIN}.")
        values: dict[str, dict[str, float]] = {metric: {} for metric in metrics}
        for row in rows:
            for metric in metrics:
                number = _number(row[metric], f"{path}: {metric} of window {row['window']}")
                if not math.isnan(number):
                    values[metric][row["window"]] = number
        return Windows({row["window"]: row["unit"] for row in rows}, values)

    def _scored(self, case: str, forecast: str) -> int:
        """How many windows a forecast was scored on."""
        forecasts = (self.case(case) or {}).get("forecasts", ())
        scores: dict[str, Any] = next((one.get("scores", {}) for one in forecasts if one["name"] == forecast), {})
        return max((int(score.get("count") or 0) for score in scores.values()), default=0)

    def shown(self, case: str) -> list[Shown]:
        """The windows of a case of which frames are kept."""
        numbers = [i for i, one in enumerate(self.told["cases"]) if one["name"] == case]
        folder = self.path / "shown" / str(numbers[0] if numbers else "")
        if not numbers or not folder.is_dir():
            return []
        places = sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
        found = []
        for place in places:
            try:
                told = json.loads((place / "about.json").read_text(encoding="utf-8"))
                found.append(Shown(place, str(told["name"]), tuple(told["known"])))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # pictures are never worth an error
        return found


def array_name(forecast: str) -> str:
    """The file in a window's folder that holds the samples of a forecast.

    Example:
        >>> array_name("someone/flow-model")
        'someone~flow-model.npz'
    """
    return forecast.replace("/", "~") + ".npz"


def model_forecast(case: Mapping[str, Any]) -> dict[str, Any]:
    """The forecast of the model that was judged; the others of a case are simple ones."""
    return dict(next((one for one in case["forecasts"] if one.get("kind") == "model"), case["forecasts"][0]))


def is_result(path: Path) -> bool:
    """Whether a path is, or holds, the result of an evaluation."""
    file = path if path.is_file() else path / "result.json"
    return file.is_file() and file.suffix == ".json"


def read_result(path: Path | str) -> Result:
    """Read a result by its folder or its `result.json`.

    Raises:
        ValueError: there is none, or it is not of an evaluation, or of another version of the format.
    """
    path = Path(path)
    file = path if path.is_file() else path / "result.json"
    if not file.is_file():
        raise ValueError(f"{path} holds no result.json: name a folder that framecast evaluate has written.")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{file} is not JSON: name a result that framecast evaluate has written.") from None
    if not isinstance(told, dict) or "protocol" not in told:
        raise ValueError(f"{file} has no protocol, so it is not the result of an evaluation (framecast evaluate).")
    version = told.get("format_version", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(f"{file}: format_version is {version!r}, expected a whole number: {_AGAIN}.")
    if version != FORMAT:
        what = _AGAIN if version < FORMAT else "it needs a newer framecast"
        raise ValueError(f"{file} is of format {version}, and this framecast reads format {FORMAT}: {what}.")
    missing = [key for key in _NEEDED if key not in told]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}: {_AGAIN}.")
    if wrong := astray(told):
        raise ValueError(f"{file}: {wrong}: {_AGAIN}.")
    if not told["cases"] or not all(case["forecasts"] for case in told["cases"]):
        raise ValueError(f"{file} lacks forecasts: {_AGAIN}.")
    return Result(file.parent, told)


def distinct_names(results: Sequence[Result]) -> list[str]:
    """A name for each result: its model's, and where several share it, what sets them apart.

    That is the seed, the sampling settings or the weights, as far as they differ; else the folder, else a number.
    """
    names = [result.name for result in results]
    for name in set(names):
        places = [i for i, other in enumerate(names) if other == name]
        if len(places) > 1:
            for i, label in zip(places, _apart([results[i] for i in places])):
                names[i] = f"{name}, {label}"
    return names


def _apart(results: Sequence[Result]) -> list[str]:
    """What sets results of models of one name apart."""
    facts = [_facts(result) for result in results]
    keys = [key for key in facts[0] if len({str(fact.get(key)) for fact in facts}) > 1]
    labels = [", ".join(f"{key} {fact.get(key)}" for key in keys) for fact in facts]
    if len(set(labels)) < len(labels):
        labels = [result.path.resolve().name for result in results]
    if len(set(labels)) < len(labels):
        labels = [f"no. {i + 1}" for i in range(len(results))]
    return labels


def _facts(result: Result) -> dict[str, Any]:
    model = result.told["model"]
    sample = model.get("sample") or {}
    sample = sample if isinstance(sample, dict) else {"sample": sample}
    return {"seed": model.get("seed"), **sample, "weights": str(model.get("sha256") or "")[:8]}


def _lines(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The metrics of a windows.csv and all of its lines, each of them whole."""
    try:
        text = path.read_bytes().decode("utf-8")
        table = csv.DictReader(io.StringIO(text, newline=""))
        columns, lines = list(table.fieldnames or ()), list(table)
    except (ValueError, csv.Error):
        raise ValueError(f"{path} is not a table in UTF-8: {_AGAIN}.") from None
    missing = [name for name in _WHOSE if name not in columns]
    if missing:
        raise ValueError(f"{path} has no column {' and no column '.join(missing)}: {_AGAIN}.")
    uneven = next((n for n, line in enumerate(lines, 2) if None in line or None in line.values()), None)
    if uneven is not None or not text.endswith("\n"):
        where = len(lines) + 1 if uneven is None else uneven
        raise ValueError(f"{path} is cut short or damaged in line {where}: {_AGAIN}.")
    return [name for name in columns if name not in _WHOSE], lines


def _number(text: str, what: str) -> float:
    """A figure; where there is none, not a number."""
    try:
        return float(text or "nan")
    except ValueError:
        raise ValueError(f"{what} is {text!r}, not a number: {_AGAIN}.") from None


def _array(path: Path) -> tuple[Tensor, float | None, tuple[float, float] | None] | None:
    """Frames, rate and range; a file that cannot be read counts as missing."""
    try:
        with np.load(path, allow_pickle=False) as entries:
            fps = float(entries["fps"]) if "fps" in entries.files else None
            limits = entries["value_range"].reshape(-1).tolist() if "value_range" in entries.files else None
            frames = torch.from_numpy(entries["frames"])
    except Exception:  # a spoiled archive fails in the words of any module it passes through
        return None
    return frames, fps, (limits[0], limits[1]) if limits else None
