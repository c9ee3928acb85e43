# SPDX-License-Identifier: Apache-2.0
"""What every reader and writer of clips shares: the error of a bad clip, files written whole or not at all, the rate
at which a video is shown.

A file of the user's is never replaced unless the caller says so, and an interrupted write leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def view_rate(fps: float | None) -> float:
    """Frames per second at which a video is shown: its own; 10 where it has none, or one slower than anybody watches.

    Example:
        >>> view_rate(25.0), view_rate(None), view_rate(1 / 86_400)
        (25.0, 10.0, 10.0)
    """
    return fps if fps is not None and fps >= 0.1 else 10.0


class BadClip(ValueError):
    """A file that cannot be used as a clip; the message is one sentence: the file, what is wrong, what to do."""


class UnknownRange(BadClip):
    """Numbers that are not bytes, of a range nobody told."""


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A folder to fill; if the block ends with an error, what lies in it and the folders made for it are gone again.

    Args:
        path: does not exist, or is an empty folder.
    """
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except BaseException:
        for inside in path.iterdir():
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        for folder in made:
            with suppress(OSError):  # somebody has put something else into it meanwhile
                folder.rmdir()
        raise


@contextmanager
def new_file(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path with the same suffix beside `path`, which takes its place when the block ends without error.

    Args:
        path: where the finished file goes; missing folders are made.
        overwrite: replace a file that is there already.

    Raises:
        FileExistsError: something is there already and `overwrite` is False.
    """
    path = Path(path)
    _refuse(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".writing-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _refuse(path, overwrite)  # it may have appeared meanwhile
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or pass overwrite=True to replace it.")
