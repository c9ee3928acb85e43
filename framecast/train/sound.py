# SPDX-License-Identifier: Apache-2.0
"""Whether groups that learn against each other still do: their losses keep to ranges while training is sound."""

from __future__ import annotations

from collections.abc import Mapping

PATIENCE = 200  # turns of a group in a row out of its range, after which a run is stopped


class Soundness:
    """Counts the turns of groups out of their ranges; its state goes into checkpoints.

    Args:
        ranges: of the loss, by group; others are not watched.

    Example:
        >>> watched = Soundness({"critic": (0.05, 4.0)})
        >>> watched.tick("critic", 0.5, step=7), watched.tick("critic", 0.01, step=9), watched.since
        (False, False, 9)
    """

    def __init__(self, ranges: Mapping[str, tuple[float, float]]):
        self.ranges = dict(ranges)
        self.state: dict[str, list[int]] = {}  # group -> [turns out of range, step of the first of them]

    def tick(self, turn: str, loss: float, *, step: int) -> bool:
        """Take in the loss of a group's turn; returns whether its patience is over."""
        low, high = self.ranges.get(turn, (-float("inf"), float("inf")))
        if low <= loss <= high:
            self.state.pop(turn, None)
            return False
        turns, first = self.state.get(turn, [0, step])
        self.state[turn] = [turns + 1, first]
        return turns + 1 >= PATIENCE

    @property
    def since(self) -> int | None:
        """The first step out of range; None where all is sound."""
        return min((first for _, first in self.state.values()), default=None)
