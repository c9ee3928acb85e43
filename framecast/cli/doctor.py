# SPDX-License-Identifier: Apache-2.0
"""The command that looks at the installation: one block of text to paste where help is asked for."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framecast.cli.console import Console
from framecast.cli.parsing import Command, Parser


def _arguments(parser: Parser) -> None:
    return


def _run(args: argparse.Namespace, console: Console) -> int:
    from framecast.assets import cache_dir
    from framecast.devices import hardware, pick_device, versions

    checks = {
        **{f"write and read {kind}": _attempt(probe) for kind, probe in _formats().items()},
        "write here": _attempt(lambda: _writable(Path.cwd())),
        "write cache": _attempt(lambda: _writable(cache_dir())),
    }
    facts: dict[str, Any] = {
        "versions": versions(),
        "hardware": hardware(pick_device("auto")),
        "python": sys.executable,
        "cache": str(cache_dir()),
        "checks": checks,
    }
    for title in ("versions", "hardware", "checks"):
        width = max(map(len, facts[title]))
        console.say("\n".join([title, *(f"  {key.ljust(width)}  {value}" for key, value in facts[title].items())]))
    console.say(f"python  {facts['python']}\ncache   {facts['cache']}")
    console.result(facts)
    return 0 if all(value == "ok" for value in checks.values()) else 3


def _attempt(probe: Callable[[], None]) -> str:
    """`ok`, or what went wrong; the doctor goes on either way."""
    try:
        probe()
    except Exception as error:
        return f"failed ({type(error).__name__}: {error})"
    return "ok"


def _formats() -> dict[str, Callable[[], None]]:
    """A round trip through every kind of file that forecasts are written to."""
    import torch

    from framecast.data.array_file import write_array
    from framecast.data.clip_file import read_clip
    from framecast.data.media import save_view
    from framecast.video import Clip

    frames = torch.randint(0, 256, (5, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def trip(suffix: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"probe{suffix}"
            if suffix == ".npz":
                write_array(path, frames, fps=5.0, value_range=None, generated_by={"by": "framecast doctor"})
            else:
                save_view(path, Clip(frames, fps=5.0), comment="framecast doctor")
            found = tuple(read_clip(path).frames.shape)
            if found != tuple(frames.shape):
                raise ValueError(f"wrote {tuple(frames.shape)}, read {found}")

    kinds = {"mp4 (H.264)": ".mp4", "webp": ".webp", "gif": ".gif", "npz": ".npz"}
    return {name: (lambda suffix=suffix: trip(suffix)) for name, suffix in kinds.items()}  # type: ignore[misc]


def _writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"framecast")


DOCTOR = Command(
    about="Look at this installation: versions, devices, formats it can write and read, write access. Exit code 3 if "
    "something does not work.",
    example="framecast doctor",
    arguments=_arguments,
    run=_run,
)
