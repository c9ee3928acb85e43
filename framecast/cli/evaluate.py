# SPDX-License-Identifier: Apache-2.0
"""The commands that judge: a model by a protocol, and its samplers by quality and cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, duration, table
from framecast.cli.draw import argument_device, load_model, many, out_folder
from framecast.cli.parsing import Command, Parser, UsageError, apply_settings, positive, whole

if TYPE_CHECKING:
    from framecast.evaluate.run import Scores


def _arguments_data(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="bundled name, model or run folder, hub id, simple forecast")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the protocol's set (default data/<set>)")
    parser.add_argument("--protocol", default="smoke-lbm", metavar="NAME", help="default smoke-lbm")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<what>; nothing is overwritten")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and what it costs")


def _evaluate_arguments(parser: Parser) -> None:
    _arguments_data(parser)
    parser.add_argument("--windows", type=positive, metavar="N", help="the first N only (default: the protocol's)")
    parser.add_argument("--samples", type=positive, metavar="N", help="of each window (default: the protocol's)")
    parser.add_argument("--seed", type=whole, default=0, help="of all noise (default 0)")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="samples drawn at once (default 8)")
    parser.add_argument("--steps", metavar="N", help="sampler steps (default: the model's own)")
    parser.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, … (default: the model's own)")
    argument_device(parser)


def _evaluate(args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.protocols import protocol
    from framecast.evaluate.run import judge, result, simple_forecasts
    from framecast.evaluate.windows import windows
    from framecast.generate import network_calls

    chosen = protocol(args.protocol)
    if chosen.paired is None:
        raise UsageError(f"{chosen.name} compares no window with its truth: choose another --protocol.")
    case = chosen.cases[0]
    data = args.data or Path("data") / chosen.set
    model = load_model(args)
    cut = windows(chosen, case, chosen.paired, data)
    if args.windows and args.windows > len(cut):
        raise UsageError(f"--windows is {args.windows}; {chosen.name} has {len(cut)}.")
    cut = cut.first(args.windows or len(cut))
    out = out_folder(args, f"{chosen.name}-{model.name}")
    settings = [("sample.steps", args.steps), ("sample.sampler", args.sampler)]
    given = [(key, text) for key, text in settings if text is not None] + args.settings
    reference = data / "train"
    if not reference.is_dir():
        console.note(f"{reference} is not there: the analog forecasts are left out.")
        reference = None
    options = apply_settings(model.system.options, given, where="sample")
    samples = args.samples or chosen.paired.samples
    calls = network_calls(options, model.system) * -(-samples // args.batch) * len(cut)
    size = f"{many(len(cut), 'window')} × {many(samples, 'sample')}"
    console.note(f"{size}, {many(calls, 'network call')}; output: {out}")
    if args.dry_run:
        console.result({"dry_run": True, "windows": len(cut), "samples": samples, "network_calls": calls})
        return 0
    with console.progress(f"{model.name} on {chosen.name}", unit="windows") as progress:
        mine = judge(
            model, cut, case.known, samples=samples, options=options, seed=args.seed, batch=args.batch,
            progress=progress,
        )  # fmt: skip
    with console.progress("simple forecasts", unit="forecasts") as progress:
        others = simple_forecasts(cut, case.known, reference=reference, besides=model.name, progress=progress)
    told = result(chosen, mine, others)
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    _tell(told, mine, others, console)
    console.say(f"{out}/result.json; drawn in {duration(mine.seconds)}")
    console.result({"out": str(out), **told})
    return 0


def _tell(told: dict[str, Any], mine: Scores, others: list[Scores], console: Console) -> None:
    names = ", ".join([told["protocol"], *told["deviations"]])
    units = mine.interval("crps_fair").units
    console.say(f"{names}: {many(told['windows'], 'window')} of {many(units, 'unseen flow')}")
    rows = []
    for scores in (mine, *others):
        paired = "" if scores is mine else str(mine.less(scores))
        rows.append([scores.name, scores.samples, *map(str, map(scores.interval, ("crps_fair", "psnr"))), paired])
    console.say(table(["", "samples", "fair CRPS, 8-bit units", "PSNR dB", f"{mine.name} minus this"], rows))
    console.say("(in brackets 95 % intervals, bootstrap over flows; lower CRPS is better)")


EVALUATE = Command(
    about="Judge a model by a protocol: scores with intervals, beside the simple forecasts on the same windows. The "
    "set that it needs is made first: framecast data simulate vortex32 data/vortex32.",
    example="framecast evaluate vortex-ramvid --protocol smoke-lbm",
    arguments=_evaluate_arguments,
    run=_evaluate,
    settings=("sample",),
)


def _samplers(args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.protocols import protocol
    from framecast.evaluate.samplers import cost, report, study
    from framecast.evaluate.windows import windows

    chosen = protocol(args.protocol)
    model = load_model(args)
    if not hasattr(model.system.options, "sampler"):
        raise ValueError(f"{model.name} has no sampler, so there is nothing to compare: name a diffusion model.")
    if chosen.paired is None:
        raise UsageError(f"{chosen.name} compares no window with its truth: choose another --protocol.")
    case = chosen.cases[0]
    cut = windows(chosen, case, chosen.paired, args.data or Path("data") / chosen.set)
    out = args.out or Path("out") / f"samplers-{model.name}"
    console.note(f"{cost()} network calls of one sample each; output: {out}, where a stopped study goes on")
    if args.dry_run:
        console.result({"dry_run": True, "network_calls": cost(), "out": str(out)})
        return 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        with console.progress(f"samplers of {model.name}", unit="network calls") as progress:
            rows = report(study(model, cut, case.known, folder=out / "cases", progress=progress))
    except KeyboardInterrupt:
        console.note(
            f"Stopped. Finished cases are kept in {out}/cases; the same command goes on after the last of them."
        )
        return 130
    (out / "samplers.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    head = [
        "sampler",
        "steps",
        "windows × samples",
        "fair CRPS",
        "PSNR dB",
        "s a sample",
        "CRPS, shared",
        "minus longest",
    ]
    lines = []
    for row in rows:
        crps, psnr, shared, less = (_said(row[k]) for k in ("crps_fair", "psnr", "crps_fair_shared", "minus_longest"))
        size = f"{row['windows']} × {row['samples']}"
        lines.append([row["sampler"], row["steps"], size, crps, psnr, row["seconds_per_sample"], shared, less])
    console.say(table(head, lines))
    console.say(
        "(in brackets 95 % intervals, bootstrap over flows; CRPS in 8-bit units, lower is better; shared: on the "
        "windows that all cases have seen, where the difference from the longest chain is taken)"
    )
    console.say(f"{out}: samplers.json, cases/ (kept: the same command goes on from there)")
    console.result({"out": str(out), "rows": rows})
    return 0


def _said(told: dict[str, Any]) -> str:
    from framecast.evaluate.intervals import Interval

    return str(Interval(**told))


def _samplers_arguments(parser: Parser) -> None:
    _arguments_data(parser)
    argument_device(parser)


SAMPLERS = Command(
    about="Compare samplers and numbers of steps on one model: fair CRPS and PSNR with intervals, beside seconds. A "
    "stopped study goes on from its folder.",
    example="framecast samplers vortex-ramvid --data data/vortex32",
    arguments=_samplers_arguments,
    run=_samplers,
)
