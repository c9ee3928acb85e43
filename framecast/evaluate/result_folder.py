# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations as they lie in folders: what `compare` and `report` read of them.

Hides the files (`result.json`, `windows.csv`, `shown/`), so that no other module knows how they are laid out, and which
of them may be missing. Nothing here computes a score.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.video import Clip

FORMAT = 2  # format_version of result.json
_NEEDED = ("protocol", "deviations", "settings", "data", "model", "cases")


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

    def case(self, name: str) -> dict[str, Any] | None:
        """The case of this name."""
        return next((case for case in self.told["cases"] if case["name"] == name), None)

    def windows(self, case: str, forecast: str) -> Windows | None:
        """What `windows.csv` says of a forecast; None where there is no such file or forecast."""
        path = self.path / "windows.csv"
        if not path.is_file():
            return None
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("case") == case and row.get("forecast") == forecast]
        if not rows:
            return None
        metrics = [key for key in rows[0] if key not in ("case", "forecast", "window", "unit")]
        values = {
            metric: {row["window"]: number for row in rows if not math.isnan(number := _number(row[metric]))}
            for metric in metrics
        }
        return Windows({row["window"]: row["unit"] for row in rows}, values)

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
    if version != FORMAT:
        what = "run framecast evaluate again" if version < FORMAT else "it needs a newer framecast"
        raise ValueError(f"{file} is of format {version}, and this framecast reads format {FORMAT}: {what}.")
    missing = [key for key in _NEEDED if key not in told]
    if missing or not told["cases"] or not all(case.get("forecasts") for case in told["cases"]):
        raise ValueError(f"{file} lacks {', '.join(missing) or 'forecasts'}: run framecast evaluate again.")
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
    return {"seed": model.get("seed"), **sample, "weights": str(model.get("sha256") or "")[:8]}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


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
