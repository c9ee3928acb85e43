# SPDX-License-Identifier: Apache-2.0
"""The windows that a protocol speaks of, cut from a folder of its set."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from framecast.data.clip_file import read_clip
from framecast.data.simulate.sets import window_starts
from framecast.evaluate.terms import Case, Cut, Protocol
from framecast.experiment import VideoSpec
from framecast.video import Clip


@dataclass(frozen=True)
class Windows:
    """Windows by unit in turn: the first few come from different units."""

    clips: Sequence[Clip]
    units: Sequence[str]  # the independent unit of each, a flow or a file
    names: Sequence[str] = ()  # of each, for example flow_0003@5
    found: int = 0  # clips in the split
    futures: Callable[[int], Tensor] | None = None  # window -> its true futures (n, frames, c, h, w), 8-bit
    notes: tuple[str, ...] = ()  # what the user should know of how they were read

    def __len__(self) -> int:
        return len(self.clips)

    def first(self, count: int) -> Windows:
        """The first `count` of them."""
        return replace(self, clips=self.clips[:count], units=self.units[:count], names=self.names[:count])

    def digest(self) -> str:
        """sha256 over all frames: sets of different seeds have flows of the same names."""
        whole = hashlib.sha256()
        for clip in self.clips:
            whole.update(clip.frames.contiguous().numpy().tobytes())
        return whole.hexdigest()


def windows(protocol: Protocol, case: Case, cut: Cut, dir: Path | str, *, like: VideoSpec | None = None) -> Windows:
    """Cut windows of a protocol.

    Args:
        protocol: what set, which split.
        case: how many frames a window has.
        cut: which windows.
        dir: folder of the set.
        like: clips are fitted to this; None: to the protocol's size and channels.

    Raises:
        ValueError: the set is not there, is another one, or has too few flows or frames; the message says how to make
            it.
    """
    folder = Path(dir)
    make = f"make it: framecast data simulate {protocol.set} {folder}"
    files = sorted((folder / protocol.split).glob("flow_*.npz"))[: cut.clips]
    if len(files) < (cut.clips or 1):
        raise ValueError(f"{folder} holds {len(files)} of the {cut.clips} {protocol.split} flows; {make}")
    found = [_windows_of(path, protocol, case, cut, make) for path in files]
    turns = [(turn, flow) for turn in range(cut.per_clip) for flow in range(len(files))]
    return Windows(
        [found[flow][turn][1] for turn, flow in turns],
        [files[flow].stem for _, flow in turns],
        [f"{files[flow].stem}@{found[flow][turn][0]}" for turn, flow in turns],
        found=len(files),
    )


def _windows_of(path: Path, chosen: Protocol, case: Case, cut: Cut, make: str) -> list[tuple[int, Clip]]:
    clip = read_clip(path)
    with np.load(path, allow_pickle=False) as entries:
        told = json.loads(str(entries["generated_by"])) if "generated_by" in entries.files else {}
    if told.get("set") != chosen.set or told.get("split") != chosen.split or told.get("seed") != chosen.seed:
        raise ValueError(f"{path} is not a {chosen.split} flow of {chosen.set} with seed {chosen.seed}; {make}")
    if not math.isfinite(told.get("period", math.nan)):
        raise ValueError(f"{path} does not say how long its flow sheds for, so its windows have no place; {make}")
    starts = window_starts(told["period"], cut.per_clip)
    if starts[-1] + case.frames > len(clip):
        raise ValueError(f"{path} has {len(clip)} frames, {starts[-1] + case.frames} are needed; {make}")
    return [(start, clip[start : start + case.frames]) for start in starts]
