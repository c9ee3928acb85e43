# SPDX-License-Identifier: Apache-2.0
"""Averaged weights, which usually sample better than those the optimiser leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from framecast.checkpoint import fill
from framecast.experiment import EmaConfig


def ema_decay(config: EmaConfig, update: int) -> float:
    """Share of the average that is left after update number `update` (from 0) of the weights.

    0, a copy of the weights, before update `start`; 1 where `update` is no multiple of `every`; else
    min(decay, (1 + n) / (warmup + n)), with n counted from the first average on: the warm-up forgets the random first
    weights quickly, where a constant 0.9999 still holds a third of them after 10,000 updates.

    Example:
        >>> ema_decay(EmaConfig(), 0), ema_decay(EmaConfig(), 10**6)
        (0.1, 0.9999)
        >>> [ema_decay(EmaConfig(decay=0.99, warmup=0.0, every=2, start=3), update) for update in range(7)]
        [0.0, 0.0, 0.0, 1.0, 0.99, 1.0, 0.99]
    """
    if update < config.start:
        return 0.0
    if update % config.every:
        return 1.0
    if not config.warmup:
        return config.decay
    n = update // config.every - -(-config.start // config.every)  # start / every, rounded up, is the first
    return min(config.decay, (1 + n) / (config.warmup + n))


class Average:
    """The average of some modules' weights; buffers are copied, not averaged.

    After update n: average += (1 - d_n) (weights - average), see `ema_decay`.
    """

    def __init__(self, modules: Mapping[str, nn.Module], config: EmaConfig):
        self.modules = dict(modules) if config.decay else {}
        self.config = config
        self.kept = {name: [own.detach().clone() for own in _tensors(module)] for name, module in self.modules.items()}

    def update(self, name: str, update: int) -> None:
        """Take in module `name` after its update number `update`."""
        pairs = list(zip(self.kept[name], _tensors(self.modules[name])))
        weights = [(kept, own.data) for kept, own in pairs if isinstance(own, nn.Parameter)]
        if fresh := 1.0 - ema_decay(self.config, update):
            torch._foreach_lerp_([k for k, _ in weights], [w for _, w in weights], fresh)  # 1 copies every bit
        for kept, own in pairs:
            if not isinstance(own, nn.Parameter):
                kept.copy_(own)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the modules hold their averages: to sample with or to write them."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        # Pointers change hands, no memory is copied: the optimiser holds the Parameter objects, which stay.
        for name, module in self.modules.items():
            for kept, own in zip(self.kept[name], _tensors(module)):
                own.data, kept.data = kept.data, own.data

    def load(self, name: str, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Set the average of module `name`.

        Raises:
            ValueError: tensors of other names or shapes.
        """
        with self.in_place():
            fill(self.modules[name], tensors, where=where)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Weights and saved buffers, each once even where two names share it."""
    return list({id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values())
