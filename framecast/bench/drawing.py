# SPDX-License-Identifier: Apache-2.0
"""What drawing costs: one prediction, one step of its sampler, a horizon of many frames.

A step is what passes between two calls of the network that a sampler calls again and again: an evaluation, what the
sampler makes of it, fresh noise. What is done once per window or frame (reading what is known, preparing conditions) is
no part of it. That holds for every system whose options have `steps`. All in float32, as drawing is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch

import framecast
from framecast.bench.measure import Memory, Timed, beside_matmul, facts, operations, settle, timed
from framecast.bench.network import Changes, untrained
from framecast.checkpoint import bundled
from framecast.devices import pick_device
from framecast.draws import draws
from framecast.experiment import SampleOptions
from framecast.generate import Model, complete, stream
from framecast.system import System
from framecast.task import Task
from framecast.video import Video

DEFAULT_MODEL, CODEC_MODEL = "vortex-ramvid", "vortex-pvdm"  # what is measured when nothing is named
_SHORTEST = 2  # steps in which no step is both the first and the last


def sampling(
    *,
    preset: str | None,
    model: str | None,
    steps: str | None,
    device: str,
    repeats: int,
    changes: Changes = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """A prediction as long as the model makes it by itself, one sample."""
    where, row = pick_device(device), dict[str, Any]()
    with beside_matmul(row, where, torch.float32):
        memory = Memory(where)
        name, drawing = model_of(preset, model, where, changes)
        system, options = drawing.system, options_of(drawing, steps)
        context = system.context
        horizon = system.horizon(context)
        work = partial(drawn, system, options, rows=1, context=context, horizon=horizon)
        with called(system) as calls:
            row["operations"] = operations(work)  # warms up, too
        row |= {**timed(work, repeats=repeats, device=where).plain(), **memory.plain()}
    row |= {"what": "sampling", "case": f"{name}: {context} → {horizon} frames, {_how(options)}, float32"}
    row |= {"rate": horizon / row["seconds"], "rate_unit": "frames/s", "network_calls": sum(map(len, calls.values()))}
    return [row | facts(where)]


def denoise(
    *,
    preset: str | None,
    model: str | None,
    futures: int,
    device: str,
    repeats: int,
    changes: Changes = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One step of the model's sampler for so many futures at once.

    Raises:
        ValueError: a model that draws without steps.
    """
    where, row = pick_device(device), dict[str, Any]()
    with beside_matmul(row, where, torch.float32):
        memory = Memory(where)
        name, drawing = model_of(preset, model, where, changes)
        system = drawing.system
        one = partial(_steps, drawing, rows=futures)
        counts, calls = [], []
        for steps in (_SHORTEST, _SHORTEST + 1):  # warms up, too
            with called(system) as at:
                counts.append(operations(partial(one, steps)))
            calls.append(max(map(len, at.values())))
        if calls[0] == calls[1]:
            raise ValueError(f"{name} draws without steps of a sampler, so there is none to measure.")
        row["operations"] = (counts[1] - counts[0]) // (calls[1] - calls[0])
        with called(system) as at:
            one(repeats + 1)
        starts = max(at.values(), key=len)
        row |= {**Timed(_between(starts)[-repeats:]).plain(), **memory.plain()}
    v = drawing.video
    many = f"{futures} futures" if futures > 1 else "1 future"
    size = f"{v.width}×{v.height}×{v.channels}, {many}"
    row |= {"what": "denoise", "case": f"{name}: {size}, one step of {_how(system.options, steps=False)}, float32"}
    return [row | facts(where)]


def horizon(
    *,
    preset: str | None,
    model: str | None,
    steps: str | None,
    frames: int,
    device: str,
    repeats: int,
    changes: Changes = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """So many frames drawn one window after another and thrown away: time, and memory that must not grow with them."""
    where = pick_device(device)
    memory = Memory(where)
    name, drawing = model_of(preset, model, where, changes)
    system, options = drawing.system, options_of(drawing, steps)
    context = system.context

    def work() -> None:
        task = Task.predict(context, frames)
        for _ in stream(system, _given(system, 1, context), task, rng=_noise(system, 1), options=options):
            pass

    times = timed(work, repeats=repeats, device=where)
    row: dict[str, Any] = {"what": "horizon", "case": f"{name}: {context} → {frames} frames, {_how(options)}, float32"}
    row |= {**times.plain(), **memory.plain(), "rate": frames / times.median, "rate_unit": "frames/s"}
    return [row | facts(where)]


def encode(
    *, preset: str | None, model: str | None, device: str, repeats: int, changes: Changes = MappingProxyType({})
) -> list[dict[str, Any]]:
    """One clip of the model's length to its code.

    Raises:
        ValueError: a model without a codec.
    """
    return [_coding("encode", preset, model, pick_device(device), repeats, changes)]


def decode(
    *, preset: str | None, model: str | None, device: str, repeats: int, changes: Changes = MappingProxyType({})
) -> list[dict[str, Any]]:
    """One code to the clip of the model's length.

    Raises:
        ValueError: a model without a codec.
    """
    return [_coding("decode", preset, model, pick_device(device), repeats, changes)]


def _coding(
    verb: str, preset: str | None, model: str | None, where: torch.device, repeats: int, changes: Changes
) -> dict[str, Any]:
    row = dict[str, Any]()
    with beside_matmul(row, where, torch.float32), torch.no_grad():
        memory = Memory(where)
        name, coding = model_of(preset, model, where, changes, CODEC_MODEL)
        codec, v = coding.system.codec, coding.video
        if codec is None:
            raise ValueError(
                f"{name} has no encoder and decoder, so there is nothing to measure: name a model that reconstructs."
            )
        clip = _given(coding.system, 1, v.clip_frames)
        work: Callable[[], object] = partial(codec.encode, clip)
        if verb == "decode":
            work = partial(codec.decode, codec.encode(clip))
        row["operations"] = operations(work)  # warms up, too
        row |= {**timed(work, repeats=repeats, device=where).plain(), **memory.plain()}
    row |= {"what": verb, "case": f"{name}: {v.clip_frames} frames of {v.width}×{v.height}×{v.channels}, float32"}
    row |= {"rate": v.clip_frames / row["seconds"], "rate_unit": "frames/s"}
    return row | facts(where)


def _steps(model: Model, steps: int, *, rows: int) -> None:
    """One frame, or the window that it takes, by so many steps."""
    drawn(model.system, options_of(model, str(steps)), rows=rows, context=model.context, horizon=1)


def drawn(system: System, options: SampleOptions, *, rows: int, context: int, horizon: int) -> None:
    """So many predictions from frames of zeros, thrown away."""
    given = _given(system, rows, context)
    complete(system, given, Task.predict(context, horizon), rng=_noise(system, rows), options=options)


def _given(system: System, rows: int, context: int) -> Video:
    v = system.video
    return torch.zeros(rows, context, v.channels, v.height, v.width, device=system.device)


def _noise(system: System, rows: int) -> Any:
    return draws(0, range(rows), system.device)


@contextmanager
def called(system: System, meter: Callable[[], float] = time.perf_counter) -> Iterator[dict[str, list[float]]]:
    """What a meter shows at each call of each part of a system while the body runs, all work before it done.

    Args:
        system: whose parts are watched.
        meter: a clock in seconds unless told otherwise.
    """
    at: dict[str, list[float]] = {name: [] for name in system.parts()}

    def note(name: str, *_: object) -> None:
        settle(system.device)
        at[name].append(meter())

    hooks = [part.register_forward_pre_hook(partial(note, name)) for name, part in system.parts().items()]
    try:
        yield at
    finally:
        for hook in hooks:
            hook.remove()


def _between(starts: list[float]) -> tuple[float, ...]:
    return tuple(after - before for before, after in pairwise(starts))


def options_of(model: Model, steps: str | None) -> SampleOptions:
    """The model's own, with other steps where they are asked for."""
    if steps is None or not hasattr(model.system.options, "steps"):
        return model.system.options
    return model.options({"steps": int(steps) if steps.isdecimal() else steps})


def _how(options: SampleOptions, *, steps: bool = True) -> str:
    words = [getattr(options, "sampler", ""), getattr(options, "steps", "") if steps else ""]
    return " ".join(str(word) for word in words if word)


def model_of(
    name: str | None,
    model: str | None,
    where: torch.device,
    changes: Changes = MappingProxyType({}),
    default: str = DEFAULT_MODEL,
) -> tuple[str, Model]:
    """The model asked for, else the bundled one (or, for a preset, that network with fresh weights)."""
    if model is None and name is None and default in bundled():
        model = default
    if model is not None:
        loaded = framecast.load(model, device=str(where))
        if not loaded.nets:
            raise ValueError(f"{model} has no network, so there is nothing to measure: name a trained model.")
        return model, loaded
    bench = untrained(name, changes=changes)
    return f"{bench.name} (untrained)", Model(bench.system.to(where), name=bench.name)
