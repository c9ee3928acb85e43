# SPDX-License-Identifier: Apache-2.0
"""Features of clips, computed once: kept by what determines them, the pixels and the network.

The same real clips are looked at by every evaluation on a set; a stopped evaluation finds here what it had done.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from framecast.assets import cache_dir

_log = logging.getLogger(__name__)
_BATCH = 16  # clips looked at between two writes


class Network(Protocol):
    """What turns clips into features."""

    @property
    def key(self) -> str: ...  # digest of all that determines the features: weights, settings, preprocessing
    def features(self, clips: UInt8[Tensor, "n t c h w"]) -> Float64[Tensor, "n d"]: ...


class FeatureCache:
    """A file of features.

    Args:
        path: of the file; None: in the user's cache folder. One that cannot be used costs time, nothing else.
    """

    def __init__(self, path: Path | None = None):
        self.path = path or cache_dir() / "features.sqlite"

    def features(
        self,
        network: Network,
        clips: Iterable[UInt8[Tensor, "t c h w"]],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Float64[Tensor, "n d"]:
        """Features of all clips in turn; those that are kept are not computed again.

        Args:
            network: that computes them.
            clips: 8-bit, of one shape; taken one at a time.
            progress: called with the number of clips done.

        Raises:
            ValueError: no clips, or clips the network cannot look at.
        """
        rows: list[Tensor] = []
        batch: list[Tensor] = []
        for clip in clips:
            batch.append(clip)
            if len(batch) == _BATCH:
                rows += self._batch(network, batch)
                batch = []
                if progress is not None:
                    progress(len(rows))
        rows += self._batch(network, batch)
        if not rows:
            raise ValueError("no clips to take features of.")
        return torch.stack(rows)

    def _batch(self, network: Network, clips: list[Tensor]) -> list[Tensor]:
        keys = [_key(network, clip) for clip in clips]
        kept = self._read(keys)
        missing = {key: clip for key, clip in zip(keys, clips) if key not in kept}
        if missing:
            fresh = dict(zip(missing, network.features(torch.stack(list(missing.values()))).cpu()))
            self._write(fresh)
            kept |= fresh
        return [kept[key] for key in keys]

    def _read(self, keys: list[str]) -> dict[str, Tensor]:
        if not self.path.exists():
            return {}
        try:
            with closing(self._open()) as store:
                asked = ",".join("?" * len(keys))
                rows = store.execute(f"select key, value from features where key in ({asked})", keys).fetchall()
        except sqlite3.Error as error:
            _log.info("kept features cannot be read from %s: %s", self.path, error)
            return {}
        return {key: torch.from_numpy(np.frombuffer(value, np.float64).copy()) for key, value in rows}

    def _write(self, fresh: dict[str, Tensor]) -> None:
        rows = [(key, value.numpy().astype(np.float64).tobytes()) for key, value in fresh.items()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as store, store:
                store.executemany("insert or ignore into features values (?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            _log.info("features cannot be kept in %s: %s", self.path, error)

    def _open(self) -> sqlite3.Connection:
        store = sqlite3.connect(self.path, timeout=30)
        store.execute("create table if not exists features (key text primary key, value blob not null)")
        return store


def _key(network: Network, clip: Tensor) -> str:
    whole = hashlib.sha256(f"{network.key} {tuple(clip.shape)} ".encode())
    whole.update(clip.contiguous().numpy().tobytes())
    return whole.hexdigest()
