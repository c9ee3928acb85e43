# SPDX-License-Identifier: Apache-2.0
"""The folder of a simulated set: what it says it is, and which of its files are there already.

A folder belongs to one set of one seed and length; whatever else is found is left alone and told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framecast.data.files import new_file


@dataclass(frozen=True)
class Made:
    """What `simulate` did."""

    folder: Path
    written: int  # files
    kept: int  # files that were there already
    seconds: float


def claim(folder: Path, description: Mapping[str, Any]) -> None:
    """Write `set.json` into a new folder, or see that the one there describes the same set.

    Raises:
        ValueError: the folder is another set's, or holds files and no `set.json`.
    """
    note = folder / "set.json"
    text = json.dumps(description, indent=2) + "\n"
    if note.is_file():
        if note.read_text(encoding="utf-8") != text:
            said = _said(note)
            raise ValueError(
                f"{folder} holds another set ({said}); {description['set']} with seed {description['seed']} and"
                f" {description['frames']} frames needs a folder of its own."
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds other files and no set.json; give a new or empty folder.")
    with new_file(note) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _said(note: Path) -> str:
    """What a set.json says it is, in a few words."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        runs = f"{found['runs']} runs, " if "runs" in found else ""
        return f"{found['set']}, seed {found['seed']}, {runs}{found['frames']} frames, or other settings"
    except (ValueError, KeyError, TypeError):
        return "its set.json is not one of ours"


def is_made(path: Path, expected: Mapping[str, Any]) -> bool:
    """Whether this clip is in its place already.

    Raises:
        ValueError: something else is in its place.
    """
    if not path.exists():
        return False
    try:
        with np.load(path, allow_pickle=False) as entries:
            told = json.loads(str(entries["generated_by"]))
            same = "frames" in entries.files and all(told[key] == value for key, value in expected.items())
    except Exception:  # a zip or a JSON can be broken in many ways, and all mean the same here
        same = False
    if not same:
        raise ValueError(f"{path} is not the clip that belongs there; move it away or give another folder.")
    return True
