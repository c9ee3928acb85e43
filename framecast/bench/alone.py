# SPDX-License-Identifier: Apache-2.0
"""A function called in a fresh process, its answer carried back as JSON; no torch here, only in the function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import framecast
from framecast.systems import resolve

_FULL = ("DefaultCPUAllocator", "bad_alloc", "could not create a memory object")  # torch, C++, oneDNN
_KILLED = "its process was ended by signal {signal}; where that is 9, the machine had no memory left for it."


def alone(target: str, arguments: dict[str, Any], *, threads: int | None = None) -> Any:
    """What `module:function` returns for these keyword arguments, called in a process of its own.

    The process is gone when this returns or raises, Ctrl-C included.

    Args:
        target: `module:function`.
        arguments: plain values.
        threads: of torch and its libraries; None: as they choose.

    Raises:
        ValueError: the function did, or the process was killed.
        RuntimeError: it failed otherwise; the message ends with its last words.

    Example:
        >>> alone("framecast.task:parse_frames", {"text": "0-2,5"})
        [0, 1, 2, 5]
    """
    here = str(Path(framecast.__file__).parents[1])
    paths = [here, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if threads is not None:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # without the folder we are in, where a file may have any name
    words = [sys.executable, "-P", "-W", "ignore", "-m", "framecast.bench.alone", target]
    done = subprocess.run(words, input=json.dumps(arguments), capture_output=True, text=True, env=environment)
    if done.returncode < 0:
        raise ValueError(f"{target.partition(':')[2]}: {_KILLED.format(signal=-done.returncode)}")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"{target} failed without a word"])[-1])
    if not done.stdout.strip():
        raise RuntimeError(f"{target} ended without an answer")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise ValueError(answer["refused"])
    return answer["value"]


def _answer(target: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The function's value, or the sentence by which it refused."""
    try:
        return {"value": resolve(target)(**arguments)}
    except ValueError as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"refused": f"{error.filename}: {error.strerror}." if error.filename else str(error)}
    except (MemoryError, RuntimeError) as error:
        # of the GPU, of Python, of the processor, where torch has no class for it
        full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not full and not any(word in str(error) for word in _FULL):
            raise
        name = target.partition(":")[2]
        return {"refused": f"{name}: there is no memory left for it; take a smaller --preset, or another --device."}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(sys.argv[1], json.load(sys.stdin))) + "\n")
