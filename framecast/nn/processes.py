# SPDX-License-Identifier: Apache-2.0
"""Sums over the processes of a run, for statistics that must not depend on how a batch is spread over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def several() -> bool:
    """Whether this is one process of a group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _Summed(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total


def summed(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradient; itself where there is one only."""
    if not several():
        return x
    total: Tensor = _Summed.apply(x)
    return total


def of_first(x: Tensor) -> Tensor:
    """What the first process holds, without gradient; itself where there is one only."""
    if several():
        x = x.clone()
        distributed.broadcast(x, src=0)
    return x
