# SPDX-License-Identifier: Apache-2.0
"""The command that tells what things cost on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

from framecast.bench.run import HEAD, PRECISIONS, WHAT, Bench, append, cells, check_lines, measure, tasks
from framecast.cli.console import Console, table
from framecast.cli.parsing import Command, Parser, UsageError, apply_settings, positive
from framecast.experiment import nearest, to_plain
from framecast.systems import preset


def _arguments(parser: Parser) -> None:
    parser.add_argument("what", metavar="WHAT", nargs="*", help=f"{', '.join(WHAT)} (default: all)")
    parser.add_argument("--preset", metavar="NAME", help="untrained network (default: a yardstick of 64×64)")
    parser.add_argument("--stage", metavar="NAME", help="of the preset, in forward and step (default: its first)")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="that draws (default: untrained --preset, else vortex-ramvid where it is there)",
    )
    parser.add_argument(
        "--steps", metavar="N", help="of the sampler, in sampling and horizon (default: the model's own)"
    )
    parser.add_argument(
        "--futures", type=positive, default=8, metavar="N", help="of denoise and codes, beside 1 (default 8)"
    )
    parser.add_argument("--clip", metavar="PATH", help="read this clip instead of clips made for it")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="of every measurement (default 5)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="of networks (default 32)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of the processor (default: as torch chooses)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="add a JSON line per row; what is there stays")


def _run(args: argparse.Namespace, console: Console) -> int:
    for word in args.what:
        if word not in WHAT:
            raise UsageError(f"{word!r} is not something to measure.{nearest(word, WHAT)} It can be {', '.join(WHAT)}.")
    changes = _changes(args)  # refused before anything is measured
    if args.out is not None:
        check_lines(args.out)  # before anything is measured
    bench = Bench(
        what=tuple(args.what) or WHAT,
        preset=args.preset,
        stage=args.stage,
        changes=changes,
        model=args.model,
        steps=args.steps,
        futures=args.futures,
        clip=args.clip,
        repeats=args.repeats,
        device=args.device,
        precision=args.precision,
        threads=args.threads,
    )
    rows: list[dict[str, Any]] = []
    try:
        for task in tasks(bench):
            console.note(f"{task.label} …")
            fresh, why_not = measure(task, threads=args.threads)
            if why_not:
                console.note(why_not)
            if args.out is not None:
                append(args.out, fresh)
            rows += fresh
    finally:  # of a bench that is stopped, what is there
        if rows:
            console.say(f"{table(HEAD, [list(cells(row)) for row in rows])}\n{machine_line(rows[0])}")
            if args.out is not None:
                console.note(f"{len(rows)} line{'s' if len(rows) > 1 else ''} added to {args.out}")
    console.result({"rows": rows})
    return 0


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the command line as typed values by dotted key."""
    if args.preset is None:
        if args.settings or args.stage:
            raise UsageError("settings and --stage are those of a preset: name one with --preset.")
        return {}
    experiment: Any = preset(args.preset)
    stages = [field.name for field in dataclasses.fields(experiment.stages)]
    if args.stage is not None and args.stage not in stages:
        raise UsageError(f"{args.preset} has no stage {args.stage!r}. Its stages: {', '.join(stages)}.")
    plain = to_plain(apply_settings(experiment, args.settings)) if args.settings else {}
    return {key: functools.reduce(lambda at, word: at[word], key.split("."), plain) for key, _ in args.settings}


def machine_line(row: dict[str, Any]) -> str:
    """Where it was measured, in one line."""
    m, v = row["machine"], row["versions"]
    threads = f"threads: {m['threads']}"
    return (
        f"{m['processor']}, {m['cores_used']} of {m['cores']} cores, {threads}, {m['memory_gb']} GB; "
        f"{m.get('gpu', 'no GPU used')}; framecast {v['framecast']}, torch {v['torch']}, Python {v['python']}"
    )


BENCH = Command(
    about="Measure what networks, drawing, reading and simulating cost on this machine: time (median), peak memory, "
    "counted operations (2 × multiply-adds of convolutions and matrix products), and their share of the rate at which "
    "the same run multiplies square matrices. denoise is one step of a sampler for several futures at once; codes are "
    "those of a clip (video_vqvae), drawn beside a whole pass for each; horizon draws 16 and 128 frames and throws "
    "them away; rf3d tells what the distance rf3d-v1 sees of known changes. Each measurement has a process of its own. "
    "step has a row for each group of a stage that takes turns with others (autoencoder and discriminators). Settings "
    "of the preset can be changed.",
    example="framecast bench\nframecast bench encode decode denoise --preset pvdm/ucf101-256-s --futures 4\n"
    "framecast bench step --preset pvdm/ucf101-256-l --stage autoencoder --stages.autoencoder.checkpointing true\n"
    "framecast bench step denoise --preset rvd/bair64 --threads 2 --out bench.jsonl\n"
    "framecast bench codes --preset video_vqvae/cpu64 --futures 32\n"
    "framecast bench horizon --model vortex-ramvid\nframecast bench reading --clip my.mp4",
    arguments=_arguments,
    run=_run,
    settings=("data", "model", "stages", "sample"),
)
