# SPDX-License-Identifier: Apache-2.0
"""Systems side by side at one size: cost of a clip, and how large a batch can train. No torch.

The columns of PVDM's table 5 (section 4.3 of its paper). `passes.py` has what is measured, each thing in a process of
its own; here is which presets, what is made of the measurements, and what the paper has beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from framecast.bench.alone import alone
from framecast.systems import SYSTEMS, preset, resolve

# what is measured when nothing is named: presets, with the steps where the preset's own are not all that are published;
# of a system that is not here its first preset
MAIN: dict[str, tuple[str, ...]] = {
    "ramvid": ("ramvid/ucf64",),
    "rvd": ("rvd/bair64",),
    "pvdm": ("pvdm/ucf101-256-s:100/20", "pvdm/ucf101-256-l:200/200", "pvdm/ucf101-256-l:400/400"),
}
BATCHES = (1, 2, 4, 8, 16, 32)  # clips in optimiser steps whose memory is measured, until it grows by GROWTH
GROWTH = 0.25  # less may be chance, or gradients that come where a small batch's activations were
GB = 1e9

PROTOCOL, PAPER_SIZE = "pvdm-efficiency", 256
# preset and steps -> the row of the paper's table
_METHODS = {
    f"pvdm/{data}-256-{kind}:{steps}": f"PVDM-{kind.upper()} {steps}-s"
    for data in ("ucf101", "sky")
    for kind, steps in (("s", "100/20"), ("l", "200/200"), ("l", "400/400"))
}
PAPER = (
    "The paper's device is an RTX 3090 Ti of 24 GB, and its training batch that of the diffusion stage. Its text says "
    "17.6 times faster and 3.5 times less memory than VDM; its table has 14.3 and 2.6 times for VDM, and 17.6 and 3.5 "
    "times for VideoGPT."
)


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What is to be compared, and how."""

    presets: tuple[str, ...] = ()  # NAME, or NAME:STEPS; none: those of `MAIN`
    size: int = 64  # pixels
    channels: int = 3
    frames: tuple[int, ...] = (16, 128)  # that are drawn
    steps: str | None = None  # of the sampler, where a preset is named without; None: its own
    verb: str = "generate"  # or predict
    memory: float | None = None  # GB that training may take; None: training is not measured
    checkpointing: bool = False  # train with less memory and more time
    device: str = "auto"
    threads: int | None = None  # None: as torch chooses
    repeats: int = 3  # passes that a median is taken of

    @property
    def cases(self) -> dict[str, list[str | None]]:
        """Steps that each preset is reckoned for.

        Raises:
            ValueError: no such preset.

        Example:
            >>> Efficiency(presets=("rvd/bair64:50", "rvd/bair64")).cases
            {'rvd/bair64': ['50', None]}
        """
        found: dict[str, list[str | None]] = {}
        for word in self.presets or main_presets():
            name, _, steps = word.partition(":")
            preset(name)
            found.setdefault(name, []).append(steps or self.steps)
        return found

    def changes(self, name: str) -> dict[str, Any]:
        """Settings that stand in place of the preset's."""
        changes: dict[str, Any] = {"data.size": self.size, "data.channels": self.channels}
        if self.checkpointing:
            changes |= {f"stages.{stage}.checkpointing": True for stage in stages(name)}
        return changes


def main_presets() -> tuple[str, ...]:
    """What is measured when nothing is named: of every system that is present its main presets."""
    return tuple(
        word
        for system, row in SYSTEMS.items()
        if row.presets
        for word in MAIN.get(system, (f"{system}/{next(iter(resolve(row.presets)))}",))
    )


def stages(name: str) -> list[str]:
    """The stages of a preset, in the order of training."""
    experiment: Any = preset(name)
    return [field.name for field in dataclasses.fields(experiment.stages)]


def measured(asked: Efficiency, name: str, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of one preset, one for each number of steps.

    Args:
        asked: what is compared.
        name: of the preset.
        note: told what is being measured, and what cannot be.

    Raises:
        ValueError: no such network can be built at this size, or it cannot draw such clips.
    """
    changes, size = asked.changes(name), f"{asked.size}×{asked.size}×{asked.channels}"
    note(f"{name} at {size}: passes …")
    told = alone(
        "framecast.bench.passes:drawn",
        {
            "preset": name, "changes": changes, "steps": asked.cases[name], "frames": list(asked.frames),
            "verb": asked.verb, "device": asked.device, "repeats": asked.repeats,
        },
        threads=asked.threads,
    )  # fmt: skip
    training = {}
    if asked.memory is not None:
        for stage in stages(name):
            training[stage] = _training(asked, name, stage, note)
    clips = told.pop("clips")
    rows = []
    for steps in dict.fromkeys(clip["steps"] for clip in clips):
        drawn = {str(clip["frames"]): clip for clip in clips if clip["steps"] == steps}
        row = {"what": "efficiency", "case": f"{name}:{steps}" if steps else name, "size": size, "clips": drawn}
        row |= {"measured": "passes, multiplied by the plan of each clip", "training": training}
        rows.append(row | {"paper": paper(name, steps) if asked.size == PAPER_SIZE else {}} | told)
    return rows


def _training(asked: Efficiency, name: str, stage: str, note: Callable[[str], None]) -> dict[str, Any]:
    """Memory of optimiser steps of a stage by batch, and the largest batch that a line through the last two allows."""
    assert asked.memory is not None
    held: dict[int, int] = {}
    told: dict[str, Any] = {"budget_gb": asked.memory}
    for batch in BATCHES:
        note(f"{name}, {stage}: optimiser steps of batch {batch} …")
        arguments = {"preset": name, "changes": asked.changes(name), "stage": stage, "batch": batch}
        try:
            found = alone("framecast.bench.passes:trained", arguments | {"device": asked.device}, threads=asked.threads)
        except ValueError as error:
            note(f"{name}, {stage}, batch {batch}: {error}")
            told["refused"] = str(error)
            break
        grown = bool(held) and found["memory"] >= (1 + GROWTH) * held[max(held)]
        held[batch] = found["memory"]
        told |= {"case": found["case"], "notes": found["notes"], "seconds": found["seconds"]}
        if grown:
            break
    return told | {"memory": held, "largest": largest_batch(held, GB * asked.memory)}


def largest_batch(held: dict[int, int], budget: float) -> int | None:
    """The largest batch by a straight line through bytes held at the last two batches; None where they do not tell.

    Example:
        >>> largest_batch({1: 6, 2: 8}, 15.0), largest_batch({1: 6, 2: 8}, 5.0), largest_batch({1: 6}, 5.0)
        (5, 0, 0)
    """
    if held and held[min(held)] > budget:
        return 0
    if len(held) < 2:
        return None
    before, last = sorted(held)[-2:]
    each = (held[last] - held[before]) / (last - before)
    return max(0, int((budget - held[last]) // each) + last) if each > 0 else None


def paper(name: str, steps: str) -> dict[str, float]:
    """What the paper has for a preset by these steps, by its words for the columns; empty where it has nothing."""
    method = _METHODS.get(f"{name}:{steps}")
    return table_5().get(method, {}) if method else {}


def table_5() -> dict[str, dict[str, float]]:
    """Method -> column -> value of the paper's table; what it leaves out is not there."""
    from framecast.evaluate.protocols import protocol

    found: dict[str, dict[str, float]] = {}
    for row in protocol(PROTOCOL).published:
        if row.value is not None:
            found.setdefault(row.method, {})[row.metric] = row.value
    return found


# ---- tables for people


def head(asked: Efficiency) -> list[str]:
    """Column names of `cells`."""
    lengths = [f"{count} frames: {column}" for count in asked.frames for column in ("s", "GB", "TFLOP")]
    batch = [f"largest batch in {asked.memory:g} GB"] if asked.memory is not None else []
    return ["preset:steps", "parameters", "clips", *lengths, *batch]


def cells(row: dict[str, Any], asked: Efficiency) -> Iterator[str]:
    """A row for people."""
    yield row["case"]
    yield f"{row['parameters'] / 1e6:.4g} M"
    yield "generated" if row["verb"] == "generate" else f"predicted from {row['given']}"
    for count in asked.frames:
        clip = row["clips"][str(count)]
        yield f"{clip['seconds']:.3g}" + _beside(row, f"seconds, {count} frames")
        yield (f"{clip['memory'] / GB:.3g}" if clip["memory"] is not None else "") + _beside(row, f"GB, {count} frames")
        yield f"{clip['operations'] / 1e12:.3g}"
    if asked.memory is not None:
        told = {stage: _batch(found) for stage, found in row["training"].items()}
        yield ", ".join(f"{stage} {batch}" for stage, batch in told.items()) + _beside(row, "training batch")


def _beside(row: dict[str, Any], column: str) -> str:
    """The paper's value behind ours."""
    return f" (paper {row['paper'][column]:g})" if column in row["paper"] else ""


def _batch(found: dict[str, Any]) -> str:
    if found["largest"] is not None:
        return str(found["largest"])
    return "no room to measure" if "refused" in found else "not told by two batches"


PASS_HEAD = ("preset", "pass", "s", "GFLOP", "once per window: s", "GFLOP", "GB")


def pass_cells(row: dict[str, Any]) -> Iterator[list[str]]:
    """Lines about what was measured: one per kind of window, and those of the codec."""
    name = row["case"].partition(":")[0]
    for one in row["passes"]:
        held = f"{one['memory'] / GB:.3g}" if one["memory"] is not None else ""
        each, once = (f"{one[key] / 1e9:.4g}" for key in ("operations", "operations_once"))
        yield [name, one["what"], f"{one['seconds']:.3g}", each, f"{one['once']:.3g}", once, held]
    for verb, one in row["codec"].items():
        yield [name, f"{verb} a clip", f"{one['seconds']:.3g}", f"{one['operations'] / 1e9:.4g}", "", "", ""]


def memory_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the largest batches stand on, a line per stage of a preset."""
    told = {row["case"].partition(":")[0]: row["training"] for row in rows}
    for name, training in told.items():
        for stage, found in training.items():
            held = ", ".join(f"{bytes_ / GB:.3g} GB at batch {batch}" for batch, bytes_ in found["memory"].items())
            notes = [held or "no batch could be measured", *found.get("notes", ())]
            yield f"{name}, {stage}: {'; '.join(note.rstrip('.') for note in notes)}."


def paper_cells() -> tuple[list[str], list[list[str]]]:
    """The paper's whole table: column names, and lines."""
    table = table_5()
    columns = list(dict.fromkeys(column for values in table.values() for column in values))
    lines = [[method, *(f"{values[c]:g}" if c in values else "" for c in columns)] for method, values in table.items()]
    return ["paper", *columns], lines
