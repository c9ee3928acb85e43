# SPDX-License-Identifier: Apache-2.0
"""What drawing and training of a preset's network cost, from a few passes of it and the system's own account of passes.

A window of a system's plan costs what is done once in it (reading, encoding, decoding) and so many equal passes of the
network that its sampler calls again and again. Both are measured with few steps, for each kind of window in the plan;
`System.calls` tells how many more passes the wanted steps make, and by these they are multiplied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from framecast.bench.drawing import called, options_of
from framecast.bench.measure import Memory, counting, facts, operations, settle, timed
from framecast.bench.network import Changes, Training, fresh, taking_turns, untrained
from framecast.devices import pick_device
from framecast.draws import draws
from framecast.experiment import SampleOptions
from framecast.generate import Model, plan
from framecast.system import Carry, System, UnsupportedTask
from framecast.task import Task, Window

_SHORTEST = 2  # steps in which a pass lies between two calls
_FREE = Path("/proc/meminfo")


@dataclass(frozen=True)
class Cost:
    """Of a window drawn with few steps."""

    what: str
    calls: int  # of the network that the sampler calls again and again
    seconds: float  # from one of these calls to the next
    once: float  # seconds of all else in the window
    operations: int  # of one pass
    operations_once: int
    memory: int | None  # most bytes held, weights included
    counted: int  # what `System.calls` says of the window with these few steps
    carry: Carry

    def plain(self) -> dict[str, Any]:
        """For a row."""
        keys = ("what", "seconds", "once", "operations", "operations_once", "memory")
        return {key: getattr(self, key) for key in keys}


class Costs:
    """Costs of the windows of plans, each kind measured when first asked for.

    Args:
        system: on its device, in evaluation mode.
        bare: of the process before anything was built.
        repeats: passes that the median is taken of.
    """

    def __init__(self, system: System, bare: Memory, *, repeats: int):
        self.system, self.bare, self.repeats = system, bare, repeats
        self.kinds: dict[tuple[tuple[bool, ...], bool], Cost] = {}

    def of(self, windows: Sequence[Window], options: SampleOptions) -> list[tuple[Window, Cost]]:
        """Each window with the cost of its kind: which frames it knows, and whether one before it hands over a state.

        Args:
            windows: a whole plan.
            options: of drawing; of their steps nothing is taken.
        """
        found, carry = [], None
        for window in windows:
            kind = (window.known, carry is not None)
            if kind not in self.kinds:
                self.kinds[kind] = self._measured(window, options, carry)
            found.append((window, self.kinds[kind]))
            carry = self.kinds[kind].carry
        return found

    def _measured(self, window: Window, options: SampleOptions, carry: Carry) -> Cost:
        system, v = self.system, self.system.video
        frames = torch.zeros(1, len(window.frames), v.channels, v.height, v.width, device=system.device)
        known = torch.tensor(window.known, device=system.device)

        def work(options: SampleOptions) -> Carry:
            made = system.sample(frames, known, rng=draws(0, [0], system.device), options=options, carry=carry)
            settle(system.device)
            return made[1]

        memory = Memory(system.device)
        few = in_steps(options, _SHORTEST)
        with counting() as counted, called(system, counted) as at:  # warms up, too
            work(few)
        each, calls = _between(at)
        rest = counted() - calls * each
        more = in_steps(options, max(_SHORTEST, self.repeats + 1))
        with called(system) as at:
            began = time.perf_counter()
            after = work(more)
            whole = time.perf_counter() - began
        seconds, calls = _between(at)
        most, before = memory.plain()["memory_of_process"], self.bare.before
        return Cost(
            what=_words(window, carry), calls=calls, seconds=seconds, once=max(0.0, whole - calls * seconds),
            operations=int(each), operations_once=int(rest), memory=most and max(0, most - before),
            counted=system.calls(window, more), carry=after,
        )  # fmt: skip


def drawn(
    *,
    preset: str,
    changes: Changes,
    steps: Sequence[str | None],
    frames: Sequence[int],
    verb: str,
    device: str,
    repeats: int,
) -> dict[str, Any]:
    """One clip of each of some lengths drawn by each of some numbers of steps: passes measured, then multiplied out.

    Args:
        preset: whose untrained network it is.
        changes: settings in place of the preset's, by dotted key.
        steps: of the sampler; None: the preset's own.
        frames: that are drawn.
        verb: generate, or predict; a system that cannot generate predicts from as many frames as it takes by itself.
        device: where.
        repeats: passes that the median is taken of.

    Returns:
        verb, given (frames), parameters, passes (one per kind of window), codec, clips (one per steps and frames), and
        the machine.

    Raises:
        ValueError: no network can be built so, or it cannot draw such clips.
    """
    where = pick_device(device)
    _confine(where)
    bare = Memory(where)
    system = untrained(preset, changes=changes).system.to(where)
    model, costs = Model(system, name=preset), Costs(system, bare, repeats=repeats)
    clips = []
    for asked in steps:
        options = options_of(model, asked)
        for count in frames:
            task = asked_for(system, count, verb)
            used = costs.of(plan(system, task, options), options)
            clip = {"steps": str(getattr(options, "steps", "")), "frames": count, "windows": len(used)}
            clips.append(clip | _multiplied(system, used, options))
    return {
        "verb": task.verb,
        "given": sum(task.known),
        "parameters": sum(p.numel() for part in system.parts().values() for p in part.parameters()),
        "passes": [cost.plain() for cost in costs.kinds.values()],
        "codec": _codec(system, repeats=repeats),
        "clips": clips,
        **facts(where),
    }


def trained(*, preset: str, changes: Changes, stage: str, batch: int, device: str) -> dict[str, Any]:
    """Most memory that optimiser steps of a stage hold, with so many clips in a step at once.

    Two steps, since the first one ends with what the optimiser remembers and the second one begins with it; of every
    group, where several take turns.

    Returns:
        memory (bytes, beyond the bare process), seconds (of the last step), case and notes.

    Raises:
        ValueError: it cannot be built or trained so.
    """
    where = pick_device(device)
    _confine(where)
    bare = Memory(where)
    bench = fresh(preset, device=device, precision="32", stage=stage, batch=batch, changes=changes)
    turns = dict(taking_turns(bench))
    training = Training(bench, first=min(turns.values(), default=0))
    training.steps(2 * max(1, len(turns)))
    told = {"memory": bare.plain()["memory"], "seconds": training.seconds[-1], "case": bench.case}
    return told | {"notes": list(bench.stage.notes)}


def asked_for(system: System, frames: int, verb: str) -> Task:
    """So many frames from nothing, or, of a system that cannot do so, as a prediction."""
    if verb == "generate":
        try:
            task = Task.generate(frames)
            plan(system, task)
            return task
        except UnsupportedTask:
            pass
    return Task.predict(system.context, frames)


def in_steps(options: SampleOptions, steps: int) -> Any:
    """The options with so many steps, where they have steps."""
    return replace(options, steps=steps) if hasattr(options, "steps") else options  # type: ignore[call-arg]


def _multiplied(system: System, used: Sequence[tuple[Window, Cost]], options: SampleOptions) -> dict[str, Any]:
    """Seconds, operations, calls and memory of a whole plan."""
    seconds, count, calls = 0.0, 0, 0
    for window, cost in used:
        passes = cost.calls + system.calls(window, options) - cost.counted
        seconds += cost.once + passes * cost.seconds
        count += cost.operations_once + passes * cost.operations
        calls += system.calls(window, options)
    held = [cost.memory for _, cost in used if cost.memory is not None]
    return {"seconds": seconds, "operations": count, "calls": calls, "memory": max(held, default=None)}


def _between(at: dict[str, list[float]]) -> tuple[float, int]:
    """What passed between two calls of the part called most often, and how often it was; the low median, since between
    the frames of a window more is done.
    """
    calls = max(at.values(), key=len)
    return median_low([after - before for before, after in pairwise(calls)] or [0]), len(calls)


def _words(window: Window, carry: Carry) -> str:
    known = sum(window.known)
    told = [f"{len(window.known) - known} frames"]
    if known:
        told.append(f"given {known}")
    if carry is not None:
        told.append("after a window")
    return ", ".join(told)


def _codec(system: System, *, repeats: int) -> dict[str, Any]:
    """Seconds and operations of encoding and of decoding a clip; empty where there is no codec."""
    codec, v = system.codec, system.video
    if codec is None:
        return {}
    clip = torch.zeros(1, v.clip_frames, v.channels, v.height, v.width, device=system.device)
    with torch.no_grad():
        works: dict[str, Callable[[], object]] = {"encode": partial(codec.encode, clip)}
        works["decode"] = partial(codec.decode, codec.encode(clip))
        return {
            verb: {"operations": operations(work)} | timed(work, repeats=repeats, device=system.device).plain()
            for verb, work in works.items()
        }


def _confine(where: torch.device) -> None:
    """Let torch refuse, in words, what the machine has no memory for; else Linux would end this process, or another."""
    if where.type != "cpu" or not _FREE.is_file():
        return
    import resource

    free = next(line for line in _FREE.read_text().splitlines() if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(free.split()[1]), resource.getrlimit(resource.RLIMIT_DATA)[1]))
