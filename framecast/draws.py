# SPDX-License-Identifier: Apache-2.0
"""Every random number of the library comes through here, so that a row's noise does not depend on its neighbours.

Row i of any draw comes from row i's own stream, made on the CPU: the same numbers for any batch size, number of samples
or kind of device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable  # the tests check annotations at run time
class Draws(Protocol):
    """A source of random numbers with one independent stream per row."""

    rows: list[int]  # the rows' own numbers: samples count from 0, whatever batch they are drawn in
    shared: torch.Generator  # one draw for the whole optimiser step, equal on every rank and micro-batch

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 numbers; shape[0] is the number of rows."""
        ...

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Float32 numbers from [0, 1); shape[0] is the number of rows."""
        ...

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Int64 numbers from low to high - 1; shape[0] is the number of rows."""
        ...


def mix(*parts: int | str) -> int:
    """A 63-bit seed from several numbers or words; equal parts give equal seeds on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class _RowDraws:
    def __init__(self, seed: int, rows: Iterable[int], device: torch.device | str, step: int):
        self.device = torch.device(device)
        self.rows = [int(row) for row in rows]
        self.streams = [torch.Generator().manual_seed(mix("row", seed, row)) for row in self.rows]
        self.shared = torch.Generator().manual_seed(mix("shared", seed, step))

    def _rows(self, shape: Sequence[int]) -> list[tuple[torch.Generator, tuple[int, ...]]]:
        if not shape or shape[0] != len(self.streams):
            raise ValueError(f"a draw of shape {tuple(shape)} needs {len(self.streams)} rows, one per stream.")
        return [(stream, tuple(shape[1:])) for stream in self.streams]

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(rest, generator=g) for g, rest in self._rows(shape)]).to(self.device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.rand(rest, generator=g) for g, rest in self._rows(shape)]).to(self.device)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        drawn = [torch.randint(low, high, rest, generator=g) for g, rest in self._rows(shape)]
        return torch.stack(drawn).to(self.device)


def draws(seed: int, rows: Iterable[int], device: torch.device | str = "cpu", *, step: int = 0) -> Draws:
    """Random numbers for these rows.

    Args:
        seed: of the whole run or request.
        rows: the row's own number, sample number when sampling, position in the stream of clips when training.
        device: where the numbers are put; they are always made on the CPU.
        step: optimiser step, which only the `shared` stream depends on.

    Example:
        >>> both, second = draws(7, rows=[0, 1]), draws(7, rows=[1])
        >>> bool((both.normal((2, 3))[1] == second.normal((1, 3))[0]).all())
        True
    """
    return _RowDraws(seed, rows, device, step)
