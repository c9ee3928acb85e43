# SPDX-License-Identifier: Apache-2.0
"""Where the training examples of a micro-batch come from: made anew of its clips, or kept since the clips were first
seen, for stages whose examples depend on the clip alone (`Stage.keeps`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from framecast.data.clips import ClipStream, loader
from framecast.devices import Fabric
from framecast.draws import Draws, draws
from framecast.system import Stage


class Examples(Protocol):
    """Examples of micro-batches, asked for in the order of training."""

    def of(self, positions: Sequence[int], rng: Draws) -> dict[str, Tensor]:
        """Examples of the clips at these positions of the stream, on the device.

        Args:
            positions: the next ones.
            rng: one row per position.
        """
        ...


@contextmanager
def open_examples(
    stage: Stage, stream: ClipStream, fabric: Fabric, places: Iterable[Sequence[int]], *, workers: int
) -> Generator[Examples, None, None]:
    """The examples of micro-batches.

    Args:
        stage: makes them of clips.
        stream: of clips.
        fabric: where they go.
        places: positions of all micro-batches in order, as they will be asked for.
        workers: reading processes.
    """
    if stage.keeps:
        yield Kept(stage, stream, fabric)
        return
    fresh = Fresh(stage, stream, fabric, places, workers=workers)
    try:
        yield fresh
    finally:
        fresh.batches.close()


class Fresh:
    """Examples made anew every time, of clips that are read ahead."""

    def __init__(
        self, stage: Stage, stream: ClipStream, fabric: Fabric, places: Iterable[Sequence[int]], *, workers: int
    ):
        self.stage, self.fabric = stage, fabric
        self.batches = loader(stream, places, workers=workers)

    def of(self, positions: Sequence[int], rng: Draws) -> dict[str, Tensor]:
        clips, valid = self.fabric.to_device(next(self.batches))
        with torch.no_grad(), self.fabric.autocast():
            return self.stage.examples(clips, valid, rng)


class Kept:
    """Examples made once of every training window and kept in this process's memory.

    They are made clip by clip: no bit of them depends on what else is in a batch, or on where a run was resumed.
    """

    def __init__(self, stage: Stage, stream: ClipStream, fabric: Fabric):
        self.stage, self.stream, self.fabric = stage, stream, fabric
        self.kept: dict[int, dict[str, Tensor]] = {}  # by number of the window

    def of(self, positions: Sequence[int], rng: Draws) -> dict[str, Tensor]:
        found = [self._one(position) for position in positions]
        return self.fabric.to_device({name: torch.cat([one[name] for one in found]) for name in found[0]})

    def _one(self, position: int) -> dict[str, Tensor]:
        number = self.stream.number(position)
        if number not in self.kept:
            clip, valid = self.fabric.to_device(self.stream.batch([position]))
            with torch.no_grad(), self.fabric.autocast():
                made = self.stage.examples(clip, valid, draws(0, [number], self.fabric.device))
            self.kept[number] = {name: value.cpu() for name, value in made.items()}
        return self.kept[number]
