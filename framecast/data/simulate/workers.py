# SPDX-License-Identifier: Apache-2.0
"""Work on several cores at once: threads, results in the order of the jobs, nothing left running.

Threads and not processes: the compiled solver works without the interpreter's lock and numpy gives it up for the length
of every operation, no user's script has to be fit to be started twice, and an interrupted run leaves nobody behind.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised by a job that was told to stop."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    work: Callable[[Job, Event], Result], jobs: Sequence[Job], *, workers: int
) -> Generator[Result, None, None]:
    """Results of the jobs, in their order, each as soon as it and those before it are there.

    When the iterator is closed or a job fails, jobs at work are told to stop and waited for.

    Args:
        work: computes one job; raises `Stopped` soon after its event is set.
        jobs: what to compute.
        workers: how many at once; one: in the caller's thread.
    """
    stop = Event()
    if min(workers, len(jobs)) <= 1:
        yield from (work(job, stop) for job in jobs)
        return
    with ThreadPoolExecutor(min(workers, len(jobs))) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job, stop))
                if len(waiting) > 2 * workers:  # so that few results wait for a slow one
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
