# SPDX-License-Identifier: Apache-2.0
"""Files that come from outside the package: where they are kept and how they are recognised."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


def cache_dir() -> Path:
    """`$FRAMECAST_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("FRAMECAST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "framecast"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Assets:
    """Feature networks and the like that a stage may need, each a file the user supplies."""

    dir: Path

    def file(self, name: str, digest: str | None = None) -> Path:
        """The file `name`.

        Raises:
            ValueError: it is not there, or its content differs from the sha256 `digest`.
        """
        path = self.dir / name
        if not path.is_file():
            raise ValueError(f"{name} is needed and not in {self.dir}: put the file there.")
        if digest is not None and (found := sha256(path)) != digest:
            raise ValueError(
                f"{path}: sha256 is {found[:12]}…, expected {digest[:12]}…; the download is not the file meant."
            )
        return path
