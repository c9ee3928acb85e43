"""Random numbers that were recorded elsewhere, replayed in order."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Recorded:
    """Draws that hand out given tensors, each once, in order; a wrong shape or too many draws fail.

    Args:
        normal, uniform, integers: what the calls of that name return.
    """

    def __init__(
        self, normal: Sequence[Tensor] = (), *, uniform: Sequence[Tensor] = (), integers: Sequence[Tensor] = ()
    ):
        self.left = {"normal": list(normal), "uniform": list(uniform), "integers": list(integers)}
        self.rows: list[int] = []  # numbers of no rows are recorded
        self.shared = torch.Generator().manual_seed(0)

    def _next(self, kind: str, shape: Sequence[int]) -> Tensor:
        assert self.left[kind], f"more {kind} draws than recorded"
        found = self.left[kind].pop(0)
        assert tuple(found.shape) == tuple(shape), f"a {kind} draw of {tuple(shape)}, recorded {tuple(found.shape)}"
        return found.clone()

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._next("normal", shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._next("uniform", shape)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        return self._next("integers", shape)
