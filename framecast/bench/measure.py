# SPDX-License-Identifier: Apache-2.0
"""Clock, memory, counted operations, and the matrix product rate that all rates are compared with.

Operations are 2 × multiply-adds of convolutions and matrix products; everything else a network does (norms, copies,
activations) counts as nothing, so that the share of the machine's matmul rate says what it costs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from framecast.devices import hardware, revision, versions

_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}  # of the square matrices
_TRIES = 4  # products of each size; the best counts
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
aten = torch.ops.aten


@dataclass(frozen=True)
class Timed:
    """Repeated measurements of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def plain(self) -> dict[str, Any]:
        """Median and spread for a row."""
        return {"seconds": self.median, "spread": [min(self.seconds), max(self.seconds)], "repeats": len(self.seconds)}


def timed(work: Callable[[], object], *, repeats: int, device: torch.device) -> Timed:
    """Seconds of `repeats` calls; the caller has warmed up."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        settle(device)
        seconds.append(time.perf_counter() - began)
    return Timed(tuple(seconds))


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Memory:
    """Most memory held since it was made, beyond what was held then.

    On CUDA that of the GPU, else resident memory of the process. Linux lets the peak be forgotten; elsewhere a higher
    peak from before hides what comes, and the answer is a lower bound.
    """

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        with suppress(AttributeError, OSError):  # glibc: freed memory that it keeps would hide what comes
            ctypes.CDLL(None).malloc_trim(0)
        try:
            _RESET.write_text("5")
            self.before = _status("VmRSS")
        except OSError:
            self.before = _peak()

    def plain(self) -> dict[str, int | None]:
        """Bytes for a row: of this measurement, and of the whole process."""
        if self.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.device)
        else:
            most = _peak()
        return {"memory": max(0, most - self.before) if most else None, "memory_of_process": most or None}


def _status(field: str) -> int:
    """Bytes of one line of Linux's account of the process."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _peak() -> int:
    """Most resident bytes so far; 0 where the system does not say."""
    if _STATUS.is_file():
        return _status("VmHWM")
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def operations(work: Callable[[], object]) -> int:
    """2 × multiply-adds of the convolutions and matrix products that `work` makes, backward passes included.

    Attention counts as its products QK and PV, and twice that backward, whatever a kernel computes again. Products with
    a row of ones, our way to sum, count nothing.

    Example:
        >>> a = torch.ones(2, 3)
        >>> operations(lambda: a @ a.T)
        24
    """
    with counting() as counted:
        work()
    return counted()


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count operations, as `operations` does, while the body runs; the function given tells how many there were."""
    counter = FlopCounterMode(display=False, custom_mapping=_COUNTS)
    with counter, torch.compiler.set_stance("force_eager"):
        yield counter.get_total_flops


def _attention(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return 2 * sdpa_flop_count(q, k, v)


def _products(a: Any, b: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    batch, rows, inner = a
    return 0 if rows == 1 and inner > 1 else 2 * batch * rows * inner * b[-1]


_FORMS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_COUNTS: dict[Any, Callable[..., int]] = {
    aten.bmm: _products,
    **{getattr(aten, f"_scaled_dot_product_{form}"): _attention for form in _FORMS},
    **{getattr(aten, f"_scaled_dot_product_{form}_backward"): _attention_backward for form in _FORMS},
}


def matmul_rate(device: torch.device, dtype: torch.dtype, *, sizes: tuple[int, ...] = ()) -> dict[str, Any]:
    """The best rate at which square matrices are multiplied, in operations per second.

    On CUDA float32 products may round as convolutions there may by default (TF32): networks are compared with what
    their convolutions could reach.

    Args:
        device: where.
        dtype: of the matrices.
        sizes: tried; default: sizes that fill such a device.

    Returns:
        rate, the size it was reached at, and how it was computed.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    tf32 = device.type == "cuda" and dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        best = max((_rate(n, device, dtype), n) for n in sizes or _SIZES[device.type])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"rate": best[0], "size": best[1], "kind": "tf32" if tf32 else str(dtype).removeprefix("torch.")}


def _rate(n: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = timed(lambda: torch.mm(a, b, out=out), repeats=_TRIES + 1, device=device).seconds
    return 2 * n**3 / min(times[1:])  # the first warms up


@contextmanager
def beside_matmul(row: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Measure the matmul rate before and after the block, and complete the row that the block fills with its share.

    The share is of the better of the two rates; the block gets the one before.
    """
    before = matmul_rate(device, dtype)
    yield before
    after = matmul_rate(device, dtype)
    row["matmul"] = {"before": before, "after": after}
    row["operations_per_second"] = row["operations"] / row["seconds"]
    row["share_of_matmul"] = row["operations_per_second"] / max(before["rate"], after["rate"])


def facts(device: torch.device) -> dict[str, Any]:
    """Machine, versions, revision and time, for every row."""
    machine = {**hardware(device), "processor": _processor(), "cores_used": _cores(), "memory_gb": _gigabytes()}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"machine": machine, "versions": versions(), "commit": revision(), "date": date}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [s.partition(":")[2].strip() for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _cores() -> int | None:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _gigabytes() -> float | None:
    """Main memory of the machine."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None
