# SPDX-License-Identifier: Apache-2.0
"""Where the arithmetic runs: one device for sampling, a Fabric of one or several for training and evaluation.

Hides Lightning Fabric (launching processes, wrapping modules for gradient averaging, autocast) and the checks that a
device asked for is there.
"""

from __future__ import annotations

import inspect
import logging
import os
import platform
import re
import subprocess
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Fabric", "build_fabric", "first_process", "hardware", "memory", "pick_device", "versions"]

# Fabric reports on its own doings as it starts; what matters of it, the plan of a run tells.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

PACKAGES = ("framecast", "torch", "lightning-fabric", "numpy", "safetensors", "av", "pillow")


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`.

    Args:
        name: `auto` (the first GPU, else the Apple GPU, else the processor), `cpu`, `mps`, `cuda` or `cuda:1`.

    Raises:
        ValueError: no such device on this machine.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, …, mps.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: this machine has no Apple GPU that PyTorch can use; take --device cpu.")
    if name.startswith("cuda"):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not found:
            raise ValueError(f"device {name}: PyTorch sees no NVIDIA or AMD GPU here; take --device cpu.")
        if int(name.partition(":")[2] or 0) >= found:
            raise ValueError(f"device {name}: there are only {found} GPUs here, cuda:0 to cuda:{found - 1}.")
    return torch.device(name)


def build_fabric(*, device: str = "auto", devices: int = 1, precision: Literal["32", "bf16"] = "32") -> Fabric:
    """A Fabric that is not launched yet.

    Several devices are driven by one process each, which average gradients (distributed data parallel). Fabric starts
    the other processes itself by running the same command again, unless a launcher such as torchrun already did.

    Args:
        device: as for `pick_device`.
        devices: how many of them; under a launcher that counts processes itself, its count wins.
        precision: of the networks' arithmetic; weights stay float32.

    Raises:
        ValueError: such devices are not there, or cannot compute in this precision.
    """
    if precision not in ("32", "bf16"):
        raise ValueError(f"precision is {precision!r}; it can be 32 or bf16.")
    where = pick_device(device)
    nodes = 1
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun: one process per device already runs
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    _check_count(where, devices)
    if precision == "bf16" and where.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("precision bf16: this GPU cannot compute in bfloat16; set precision to 32.")
    chosen: Any = [where.index] if where.index is not None else devices
    return Fabric(
        accelerator=where.type,
        devices=chosen,
        num_nodes=nodes,
        strategy=_averaging() if devices * nodes > 1 else "auto",
        plugins=[_Bf16("bf16-mixed", where.type)] if precision == "bf16" else [],
    )


class _Bf16(MixedPrecision):
    """Autocast to bfloat16, which takes clips, noise and noise schedules as they are: Fabric's own rounds them, too."""

    def convert_input(self, data: Any) -> Any:
        return data


def _averaging() -> DDPStrategy:
    """Averages gradients only: stages keep their statistics equal on every process themselves."""
    takes = inspect.signature(DistributedDataParallel.__init__).parameters
    # torch 2.13 renames the switch that copies buffers from the first process before every forward pass
    name = "forward_sync_buffers" if "forward_sync_buffers" in takes else "broadcast_buffers"
    switch: dict[str, Any] = {name: False}
    # kernels of one pixel lie in memory alike with channels first and last, but their strides are told differently
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DDPStrategy(**switch)


def first_process() -> bool:
    """Whether this process is the one that talks: of several that train together, only the first does."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name, "0")) == 0 for name in ranks)


def _check_count(where: torch.device, devices: int) -> None:
    if devices < 1:
        raise ValueError(f"devices is {devices}; it must be 1 or more.")
    if devices > 1 and where.index is not None:
        raise ValueError(f"device {where} names one GPU, but devices is {devices}; take --device cuda.")
    if devices > 1 and where.type == "mps":
        raise ValueError(f"devices is {devices}, but an Apple machine has one GPU; take --devices 1.")
    if where.type == "cuda" and devices > (found := torch.cuda.device_count()):
        raise ValueError(f"devices is {devices}, but there are only {found} GPUs here.")


def hardware(where: torch.device) -> dict[str, Any]:
    """What a result should tell about the machine: system, processor cores, and the accelerator's name."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(where),
    }
    if where.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(where)
        facts["gpu_memory_gb"] = round(torch.cuda.get_device_properties(where).total_memory / 2**30, 1)
        facts["cuda"] = torch.version.cuda
    return facts


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """The commit of framecast itself, where it runs from a checkout; for the record."""
    source = Path(__file__).parents[1]
    if not (source / ".git").exists():
        return None
    words = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def memory(where: torch.device) -> int | None:
    """Most bytes the process has held on a GPU so far; None where PyTorch does not count them."""
    return torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None
