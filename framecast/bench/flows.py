# SPDX-License-Identifier: Apache-2.0
"""What simulating flows costs: site updates per second of one core, with and without the compiled solver."""

from __future__ import annotations

import statistics
from typing import Any, Literal

import torch

from framecast.bench.measure import Memory, facts
from framecast.data.simulate.sets import speed

SET = "vortex32"
TICKS = 200
_UPDATES = 1e6  # site updates that the row's seconds are for


def simulator(*, backend: Literal["numba", "numpy"], repeats: int) -> list[dict[str, Any]]:
    """One row.

    Raises:
        ValueError: the compiled solver is not installed.
    """
    memory = Memory(torch.device("cpu"))
    rates = [speed(SET, backend=backend, ticks=TICKS) for _ in range(repeats)]
    rate, held = statistics.median(rates), memory.plain()
    row: dict[str, Any] = {"what": "simulator", "case": f"{SET}, {backend}, one core: 10⁶ site updates"}
    row |= {"seconds": _UPDATES / rate, "spread": [_UPDATES / max(rates), _UPDATES / min(rates)]}
    row |= {"repeats": repeats, **held, "rate": rate, "rate_unit": "site updates/s"}
    return [row | facts(torch.device("cpu"))]
