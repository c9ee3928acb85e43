# SPDX-License-Identifier: Apache-2.0
"""The command that sets systems side by side at one size: what a clip costs, and how large a batch can train."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from framecast.bench.efficiency import (
    PAPER,
    PAPER_SIZE,
    PASS_HEAD,
    Efficiency,
    cells,
    head,
    measured,
    memory_lines,
    paper_cells,
    pass_cells,
)
from framecast.bench.run import append, check_lines
from framecast.cli.bench import machine_line
from framecast.cli.console import Console, table
from framecast.cli.parsing import Command, Parser, above_zero, positive

HOW = (
    "One sample, float32, untrained networks (weights do not change what a pass costs). Passes of each kind of window "
    "were measured and multiplied by the passes that the system's own plan takes, decoding included; memory is the "
    "highest of one window, weights included."
)


def _counts(text: str) -> tuple[int, ...]:
    """Type of `--frames 16,128`."""
    return tuple(dict.fromkeys(positive(piece.strip()) for piece in text.split(",")))


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "presets",
        metavar="PRESET[:STEPS]",
        nargs="*",
        help="untrained networks, and steps of the sampler (default: the main presets of every system)",
    )
    parser.add_argument("--size", type=positive, default=64, metavar="N", help="pixels, of all (default 64)")
    parser.add_argument("--channels", type=positive, default=3, metavar="N", help="of all (default 3)")
    parser.add_argument("--frames", type=_counts, default=(16, 128), metavar="N,N", help="to be drawn (default 16,128)")
    parser.add_argument("--steps", metavar="N", help="of the sampler, where PRESET names none (default: its own)")
    parser.add_argument("--predict", action="store_true", help="predict with every system, also those that generate")
    parser.add_argument(
        "--memory", type=above_zero, metavar="GB", help="find the largest training batch of each stage that fits"
    )
    parser.add_argument("--checkpointing", action="store_true", help="compute again instead of keeping, in training")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="passes per median (default 3)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of the processor (default: as torch chooses)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="add a JSON line per row; what is there stays")


def _run(args: argparse.Namespace, console: Console) -> int:
    asked = Efficiency(
        presets=tuple(args.presets),
        size=args.size,
        channels=args.channels,
        frames=args.frames,
        steps=args.steps,
        verb="predict" if args.predict else "generate",
        memory=args.memory,
        checkpointing=args.checkpointing,
        device=args.device,
        threads=args.threads,
        repeats=args.repeats,
    )
    cases = asked.cases  # refused before anything is measured
    if args.out is not None:
        check_lines(args.out)
    rows: list[dict[str, Any]] = []
    try:
        for name in cases:
            try:
                fresh = measured(asked, name, console.note)
            except ValueError as error:
                console.note(f"{name} is left out at {args.size}×{args.size}: {error}")
                continue
            if args.out is not None:
                append(args.out, fresh)
            rows += fresh
    finally:  # of a comparison that is stopped, what is there
        if rows:
            console.say(_page(rows, asked))
    if not rows:
        raise ValueError(f"none of these can be measured at {args.size}×{args.size}: choose another --size.")
    console.result({"rows": rows})
    return 0


def _page(rows: list[dict[str, Any]], asked: Efficiency) -> str:
    """All tables, and what must be known to read them."""
    parts = [table(head(asked), [list(cells(row, asked)) for row in rows]), HOW]
    if any(row["verb"] != "generate" for row in rows) and asked.verb == "generate":
        parts.append("Rows that say predicted are of systems that cannot generate; their given frames are read, too.")
    lines = dict.fromkeys(tuple(line) for row in rows for line in pass_cells(row))
    parts.append(table(PASS_HEAD, [list(line) for line in lines]))
    if asked.memory is not None:
        again = "computing again in the backward pass" if asked.checkpointing else "as the presets say"
        parts.append(
            "Largest training batch: clips at once (micro-batches are further clips for no more memory), by a straight "
            f"line through the peak memory of real optimiser steps at the last two batches below, {again}.\n"
            + "\n".join(memory_lines(rows))
        )
    if asked.size == PAPER_SIZE and any(row["paper"] for row in rows):
        columns, methods = paper_cells()
        parts += [table(columns, methods), PAPER]
    return "\n\n".join([*parts, machine_line(rows[0])])


EFFICIENCY = Command(
    about="Set systems side by side at one size: seconds, peak memory and operations of clips of 16 and of 128 frames "
    "drawn one sample at a time by the published samplers, and with --memory the largest training batch of every "
    "stage (the columns of table 5 of the PVDM paper, whose values are shown at --size 256). A few passes of every "
    "kind are measured, each preset in a process of its own, and multiplied by the passes that the system's plan "
    "takes. A system that cannot generate predicts. A preset that cannot be built at the size is named and left out.",
    example="framecast efficiency\nframecast efficiency --size 256 --memory 24 --checkpointing --out efficiency.jsonl\n"
    "framecast efficiency rvd/bair64:50 pvdm/ucf101-256-s:100/20 --predict --repeats 1",
    arguments=_arguments,
    run=_run,
)
