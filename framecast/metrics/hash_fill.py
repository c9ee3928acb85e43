# SPDX-License-Identifier: Apache-2.0
"""Weights from a formula: every number is a hash of the tensor's name and the place in it, the same on any machine.

They make networks comparable without any file: random features that are the same for everyone (`rf3d.py`), and
stand-ins for published weights in tests.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn


def uniform(name: str, count: int) -> np.ndarray:
    """The first `count` values in (-1, 1) that belong to a name, float64.

    u(name, i) = (h(h(i) xor crc32(name)) + 1/2) / 2^31 - 1, where h mixes the bits of 32-bit numbers.

    Example:
        >>> uniform("conv1a/W", 2).round(9).tolist()
        [0.434875665, -0.244149567]
    """
    numbers = np.arange(count, dtype=np.uint32)
    return (_mixed(_mixed(numbers) ^ np.uint32(zlib.crc32(name.encode()))) + 0.5) / 2.0**31 - 1.0


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor of this name and shape, values in C order.

    Matrices and kernels are scaled by sqrt(6 / fan-in); running variances lie around 1, so do the scales of a batch
    norm; other vectors are small.
    """
    u = uniform(name, math.prod(shape)).reshape(shape)
    if len(shape) >= 2:
        values = u * math.sqrt(6.0 / math.prod(shape[1:]))
    elif name.endswith(".running_var"):
        values = 1.0 + 0.5 * u
    elif name.endswith(".weight"):
        values = 1.0 + 0.1 * u
    else:
        values = 0.1 * u
    return torch.from_numpy(values.astype(np.float32))


@torch.no_grad()
def fill(module: nn.Module, *, prefix: str = "") -> None:
    """Fill all parameters and buffers of a network, each under its own name; counters stay 0."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.copy_(filled(prefix + name, tuple(tensor.shape)))
