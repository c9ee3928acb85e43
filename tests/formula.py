"""Weights and inputs from a formula (integer hash of name and position), so that figures need no stored tensors."""

import zlib
from math import prod

import numpy as np
import torch
from torch import Tensor, nn


def hashed(x: np.ndarray) -> np.ndarray:
    """Mixes 32-bit whole numbers."""
    x = x.astype(np.uint64)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Float32 numbers in -1 to 1, the same on every machine."""
    count = prod(shape)
    mixed = hashed(hashed(np.arange(count)) ^ np.uint64(zlib.crc32(name.encode())))
    values = (mixed.astype(np.float64) + 0.5) / 2.0**31 - 1.0
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def normal(name: str, shape: tuple[int, ...]) -> Tensor:
    """Roughly standard normal numbers: three uniform ones added."""
    return sum(uniform(f"{name}/{i}", shape) for i in range(3))  # type: ignore[return-value]


def fill(module: nn.Module) -> nn.Module:
    """Set every parameter by the formula."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            u = uniform(name, tuple(p.shape))
            if p.ndim >= 2:
                p.copy_(u * (6 / prod(p.shape[1:])) ** 0.5)
            else:
                p.copy_(1 + 0.1 * u if name.endswith("weight") else 0.1 * u)
    return module
