"""Functions to be called in a process of their own."""

import os
import time
from pathlib import Path


def allocate(megabytes: int, before: int = 0) -> dict:
    """Hold and drop some memory, then measure holding some more."""
    import torch

    from framecast.bench.measure import Memory

    torch.ones(before, 1_000_000, dtype=torch.uint8)
    memory = Memory(torch.device("cpu"))
    torch.ones(megabytes, 1_000_000, dtype=torch.uint8)
    return memory.plain()


def refuse() -> None:
    raise ValueError("no such thing here.")


def fail() -> None:
    raise KeyError("x")


def fill() -> None:
    raise MemoryError


def die() -> None:
    os.kill(os.getpid(), 9)


def threads() -> str:
    print("a line of somebody else's")
    return os.environ["OMP_NUM_THREADS"]


def wait(path: str) -> None:
    """Say who we are, then do nothing for long."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)


def beyond() -> None:
    """Ask twice for more than half of the memory that is free, and touch none of it."""
    import torch

    from framecast.bench.passes import _confine

    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    _confine(torch.device("cpu"))
    kept = [torch.empty(int(0.6 * free), dtype=torch.uint8) for _ in range(2)]
    raise AssertionError(len(kept))
