# SPDX-License-Identifier: Apache-2.0
"""Protocols as data: which windows of which set, what is known, how many samples.

A protocol's name stands for all of its settings. A run that differs in one is called `-partial`, with the differences.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from framecast.data.clip_file import read_clip
from framecast.data.simulate.sets import window_starts
from framecast.experiment import nearest
from framecast.video import Clip


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is asked of a model, on what, how often."""

    name: str
    set: str  # an open set
    seed: int = 0  # that it is made from
    split: Literal["validation", "test"] = "test"
    known: tuple[int, ...]  # given frames of a window, from 0
    frames: int  # of a window
    flows: int  # independent units
    windows_per_flow: int  # a quarter of the shedding period apart
    samples: int  # futures of each window
    source: str

    @property
    def windows(self) -> int:
        """In all."""
        return self.flows * self.windows_per_flow


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="smoke-lbm",
            set="vortex32",
            known=(0, 1, 2, 3),
            frames=16,
            flows=32,
            windows_per_flow=4,
            samples=8,
            source="framecast's open sets: prediction 4 -> 12 of unseen flows, quick size",
        ),
    )
}


@dataclass(frozen=True)
class Windows:
    """The windows of a protocol, by flow in turn: the first few come from different flows."""

    clips: Sequence[Clip]
    units: Sequence[str]  # the flow of each

    def __len__(self) -> int:
        return len(self.clips)

    def first(self, count: int) -> Windows:
        """The first `count` of them."""
        return Windows(self.clips[:count], self.units[:count])

    def digest(self) -> str:
        """sha256 over all frames: sets of different seeds have flows of the same names."""
        whole = hashlib.sha256()
        for clip in self.clips:
            whole.update(clip.frames.contiguous().numpy().tobytes())
        return whole.hexdigest()


def protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}.{nearest(name, PROTOCOLS)} Protocols: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def windows(chosen: Protocol, dir: Path | str) -> Windows:
    """Read the windows of a protocol.

    Args:
        chosen: the protocol.
        dir: folder of its set, as `framecast data simulate` writes it.

    Raises:
        ValueError: the set is not there, is another one, or has too few flows or frames; the message says how to make
            it.
    """
    folder = Path(dir)
    make = f"make it: framecast data simulate {chosen.set} {folder}"
    files = sorted((folder / chosen.split).glob("flow_*.npz"))[: chosen.flows]
    if len(files) < chosen.flows:
        raise ValueError(f"{folder} holds {len(files)} of the {chosen.flows} {chosen.split} flows; {make}")
    cut = [_windows_of(path, chosen, make) for path in files]
    turns = [(turn, flow) for turn in range(chosen.windows_per_flow) for flow in range(len(files))]
    return Windows([cut[flow][turn] for turn, flow in turns], [files[flow].stem for _, flow in turns])


def _windows_of(path: Path, chosen: Protocol, make: str) -> list[Clip]:
    clip = read_clip(path)
    with np.load(path, allow_pickle=False) as entries:
        told = json.loads(str(entries["generated_by"])) if "generated_by" in entries.files else {}
    if told.get("set") != chosen.set or told.get("split") != chosen.split or told.get("seed") != chosen.seed:
        raise ValueError(f"{path} is not a {chosen.split} flow of {chosen.set} with seed {chosen.seed}; {make}")
    if not math.isfinite(told.get("period", math.nan)):
        raise ValueError(f"{path} does not say how long its flow sheds for, so its windows have no place; {make}")
    starts = window_starts(told["period"], chosen.windows_per_flow)
    if starts[-1] + chosen.frames > len(clip):
        raise ValueError(f"{path} has {len(clip)} frames, {starts[-1] + chosen.frames} are needed; {make}")
    return [clip[start : start + chosen.frames] for start in starts]
