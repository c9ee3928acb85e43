# SPDX-License-Identifier: Apache-2.0
"""The commands that judge: samples by a protocol, and a model's samplers by quality and cost."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, duration, table
from framecast.cli.draw import argument_device, load_model, many, out_folder
from framecast.cli.judged import published_words, tell
from framecast.cli.parsing import Command, Parser, UsageError, apply_settings, positive, two_numbers, whole

if TYPE_CHECKING:
    from framecast.evaluate.plan import Networks, Plan
    from framecast.evaluate.samples import Computed, Source
    from framecast.evaluate.terms import Case, Protocol
    from framecast.generate import Model

_OUT = "FRAMECAST_EVALUATE_OUT"  # where processes that one command has started write


def _arguments_data(parser: Parser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the protocol's set (default data/<set>)")
    parser.add_argument("--protocol", default="smoke-lbm", metavar="NAME", help="default smoke-lbm; `list` lists all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<what>; nothing is overwritten")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and what it costs")


def _evaluate_arguments(parser: Parser) -> None:
    what = "bundled name, model or run folder, hub id, simple forecast; or a folder (or array) of stored samples"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=what)
    _arguments_data(parser)
    parser.add_argument(
        "--windows",
        type=positive,
        metavar="N",
        help="the first N only, typical or not (default: all)",
    )
    parser.add_argument("--samples", type=positive, metavar="N", help="of each window (default: the protocol's)")
    parser.add_argument("--seed", type=whole, default=0, help="of all noise (default 0)")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="samples drawn at once (default 8)")
    parser.add_argument("--steps", metavar="N", help="sampler steps (default: the protocol's, or the model's own)")
    parser.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, … (default: the protocol's, or the model's own)")
    parser.add_argument("--i3d", type=Path, metavar="FILE", help="I3D weights, for FVD")
    parser.add_argument(
        "--i3d-eps", type=float, metavar="X", help="batch-norm epsilon of I3D weights that do not tell it"
    )
    parser.add_argument("--c3d", type=Path, metavar="FILE", help="C3D weights, for the Inception Score")
    parser.add_argument("--c3d-mean", type=Path, metavar="FILE", help="mean clip that goes with C3D weights")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="backbone weights (AlexNet, or VGG-16) for LPIPS")
    parser.add_argument("--report", action="store_true", help="also write the page of framecast report")
    parser.add_argument("--lossy", action="store_true", help="take stored samples from videos, too; the result tells")
    parser.add_argument("--value-range", type=two_numbers, metavar="LOW,HIGH", help="of stored samples that are floats")
    argument_device(parser)
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="how many of them draw (default 1)")


def _evaluate(args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.plan import Plan
    from framecast.evaluate.protocols import PROTOCOLS, protocol
    from framecast.evaluate.stored import samples_in

    if args.protocol == "list" or args.model is None:
        return _list(PROTOCOLS.values(), console, asked=args.protocol == "list")
    rules = protocol(args.protocol)
    if rules.task == "record":
        return _record(rules, console)
    stored = samples_in(Path(args.model))
    model = None if stored is not None else load_model(args, verb=rules.task)
    plan = Plan(
        rules=rules,
        data=args.data or Path("data") / rules.set,
        like=model.video if model is not None and model.video.height else None,
        windows=args.windows,
        samples=args.samples,
        networks=_networks(args, rules),
    )
    if model is not None:
        return _judge_model(plan, model, args, console)
    assert stored is not None
    return _judge_stored(plan, stored, args, console)


def _judge_model(plan: Plan, model: Model, args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.kept import Kept, identity
    from framecast.evaluate.samples import Computed

    rules = plan.rules
    options = _options(plan, model, args)
    how: dict[str, Any] = {"task": rules.task, "quantise": rules.quantise, "seed": args.seed, "batch": args.batch}
    computed = Computed(model, options=options, **how)
    whose = identity(rules, computed)
    out = _out(args, f"{rules.name}-{model.name}", whose)
    if args.devices > 1 and model.system.parts() and not args.dry_run:
        return _judge_together(plan, computed, whose, out, args, console)
    _tell_cost(plan, model, options, args, out, console)
    if args.dry_run:
        return 0
    source: Source = Kept(computed, out / "samples", whose) if model.system.parts() else computed
    return _run(plan, source, out, args, console, device=model.system.device)


def _judge_together(
    plan: Plan, computed: Computed, whose: dict[str, Any], out: Path, args: argparse.Namespace, console: Console
) -> int:
    """Several processes draw, each on its device; the first one judges."""
    from framecast.devices import build_fabric
    from framecast.evaluate.kept import Kept
    from framecast.evaluate.run import draw_share

    os.environ[_OUT] = str(out)  # the other processes run this same command, and must not choose another folder
    fabric = build_fabric(device=args.device, devices=args.devices)
    fabric.launch()
    first, model = fabric.is_global_zero, computed.model
    model.system.to(fabric.device)
    if first:
        _tell_cost(plan, model, computed.options, args, out, console)
        Kept(computed, out / "samples", whose)  # claims the folder
    fabric.barrier()
    source = Kept(computed, out / "samples", whose)
    share: dict[str, Any] = {"rank": fabric.global_rank, "of": fabric.world_size}
    try:
        if first:
            draw_share(plan, source, **share, stage=lambda label, unit: console.progress(label, unit=unit))
        else:
            draw_share(plan, source, **share)
    except KeyboardInterrupt:
        if first:
            _tell_stopped(out, console)
        return 130
    fabric.barrier()
    return _run(plan, source, out, args, console, device=fabric.device) if first else 0


def _judge_stored(plan: Plan, path: Path, args: argparse.Namespace, console: Console) -> int:
    import torch

    from framecast.evaluate.kept import ABOUT, told
    from framecast.evaluate.stored import Stored
    from framecast.experiment import VideoSpec, from_plain

    if args.steps or args.sampler or args.settings or args.devices > 1:
        raise UsageError(
            f"{path} holds samples that are drawn already: --steps, --sampler and --devices say nothing here."
        )
    rules = plan.rules
    if (path / ABOUT).exists() and (video := told(path / ABOUT).get("video")):
        plan = dataclasses.replace(plan, like=from_plain(VideoSpec, video, where=str(path / ABOUT)))
    names: dict[str, Sequence[str]] = {case.slug: _names(plan, case) for case in rules.cases}
    main = rules.paired or rules.sets
    enough = 1 if rules.task == "generate" or main is None else len(plan.cut(rules.cases[0], main))
    how: dict[str, Any] = {"enough": enough, "lossy": args.lossy, "value_range": args.value_range}
    source = Stored(path, rules, names, **how)
    plan = dataclasses.replace(plan, windows=min(source.windows, args.windows or source.windows), _cuts={})
    out = _out(args, f"{rules.name}-{source.name}", {})
    console.note(f"stored samples of {path}: {many(source.windows, 'window')}; output: {out}")
    if args.dry_run:
        console.result({"dry_run": True, "windows": source.windows, "out": str(out)})
        return 0
    return _run(plan, source, out, args, console, device=torch.device("cpu"))


def _names(plan: Plan, case: Case) -> list[str]:
    """All windows that may be asked for, those compared with their truth first; of clips from nothing, numbers."""
    rules = plan.rules
    if rules.task == "generate":
        return [str(i) for i in range(next(count for _, count, _ in _asked(plan, case)))]
    cuts = [plan.cut(case, cut).names for cut in (rules.paired, rules.sets) if cut is not None]
    return list(dict.fromkeys(name for names in cuts for name in names))


def _run(plan: Plan, source: Source, out: Path, args: argparse.Namespace, console: Console, *, device: Any) -> int:
    from framecast.evaluate.start import finish

    began = time.perf_counter()
    plan = dataclasses.replace(plan, shown=out / "shown")
    try:
        told = finish(plan, source, out, device=device, stage=lambda label, unit: console.progress(label, unit=unit))
    except KeyboardInterrupt:
        _tell_stopped(out, console)
        return 130
    tell(told, console)
    files = [path.name for path in sorted(out.iterdir()) if path.is_file()]
    console.say(f"{out}: {', '.join(files)}, shown/, in {duration(time.perf_counter() - began)}")
    if args.report:
        from framecast.evaluate.report import write_report

        page = write_report([out], out / "report.html", overwrite=True)
        console.say(f"{page}: one page, opens without a network")
    else:
        console.say(f"see it: framecast report {out}")
    console.result({"out": str(out), **told})
    return 0


def _tell_stopped(out: Path, console: Console) -> None:
    kept = f"What was drawn is kept in {out}; the" if (out / "samples").exists() else "The"
    console.note(f"Stopped. {kept} same command goes on from there.")


def _options(plan: Plan, model: Model, args: argparse.Namespace) -> Any:
    """The model's options, the protocol's sampler where it states one that the model has, and what the user says."""
    from framecast.evaluate.plan import sampling

    chosen = [("sample.steps", args.steps), ("sample.sampler", args.sampler)]
    given = [(key, text) for key, text in chosen if text is not None] + args.settings
    if given and not model.system.parts() and (args.steps or args.sampler):
        raise UsageError(f"{model.name} is a simple forecast and draws nothing: leave --steps and --sampler out.")
    if given:  # what the user says must be right by itself; a sampler that the protocol states may not suit the model
        apply_settings(model.system.options, given, where="sample")
    return apply_settings(sampling(plan, model), given, where="sample")


def _out(args: argparse.Namespace, name: str, identity: dict[str, Any]) -> Path:
    """The folder asked for, or the first free one of the default name; an evaluation that was stopped there goes on.

    Raises:
        ValueError: the folder asked for holds something else, or a finished result.
    """
    from framecast.evaluate.kept import ABOUT, begun, check
    from framecast.evaluate.start import unfinished

    if os.environ.get(_OUT):
        return Path(os.environ[_OUT])
    if args.out is not None:
        unfinished(args.out)
        if (args.out / "samples").is_dir():
            check(args.out / "samples" / ABOUT, identity)
            return args.out
        return out_folder(args, name)
    first, number = Path("out") / name, 1
    folder = first
    while folder.exists():  # stopped ones of this name
        if begun(folder / "samples", identity) and not (folder / "result.json").exists():
            return folder
        number += 1
        folder = first.with_name(f"{name}-{number}")
    return out_folder(args, name)


def _networks(args: argparse.Namespace, rules: Protocol) -> Networks:
    """Feature networks from the files that were named."""
    from framecast.devices import pick_device
    from framecast.evaluate.plan import Networks

    if args.i3d_eps is not None and args.i3d is None:
        raise UsageError("--i3d-eps goes with --i3d FILE.")
    if args.c3d_mean is not None and args.c3d is None:
        raise UsageError("--c3d-mean goes with --c3d FILE.")
    where = pick_device(args.device)
    i3d = c3d = lpips = None
    if args.i3d is not None:
        from framecast.metrics.i3d_weights import load_i3d

        i3d = load_i3d(args.i3d, eps=args.i3d_eps, resize=rules.frechet.resize).to(where)
    if args.c3d is not None:
        from framecast.metrics.c3d import load_c3d

        c3d = load_c3d(args.c3d, mean=args.c3d_mean).to(where)
    if args.lpips is not None:
        from framecast.nn.perceptual import load_lpips

        lpips = load_lpips(rules.lpips, args.lpips).to(where)
    return Networks(i3d, c3d, lpips)


def _tell_cost(plan: Plan, model: Model, options: Any, args: argparse.Namespace, out: Path, console: Console) -> None:
    """What will be drawn, at most: windows of several cuts may be the same."""
    rules, told, calls, values = plan.rules, [], 0, 0
    for case in rules.cases:
        for what, count, samples in _asked(plan, case):
            together = rules.task == "generate"  # several clips by one call
            runs = -(-count * samples // args.batch) if together else count * -(-samples // args.batch)
            calls += runs * _calls(model, options, rules, case)
            values += count * samples * case.frames
            told.append(f"{what} {many(count, 'clip' if together else 'window')} × {many(samples, 'sample')}")
    spec = model.video if model.video.height else rules
    megabytes = values * spec.channels * spec.height * spec.width * (1 if _bytes(model) else 4) / 1e6
    kept = f", up to {megabytes:.3g} MB of samples" if model.system.parts() else ""
    console.note(f"{rules.name}: {'; '.join(told)}; at most {many(calls, 'network call')}; output: {out}{kept}")
    if args.dry_run:
        console.result({"dry_run": True, "cases": told, "network_calls": calls, "out": str(out)})


def _asked(plan: Plan, case: Case) -> Iterator[tuple[str, int, int]]:
    """What for, windows and samples of each that a case asks for, per cut."""
    rules = plan.rules
    if rules.task == "generate":
        reference = rules.real or rules.sets
        count = rules.drawn or (len(plan.cut(case, reference)) if reference is not None else 0)
        yield f"{case.name}:", min(count, plan.windows or count), 1
        return
    for cut in filter(None, (rules.paired, rules.sets)):
        samples = plan.samples or cut.samples
        compared = cut is rules.paired
        what = f"{case.name}, {'beside the truth' if compared else 'as a set'}:"
        yield what, len(plan.cut(case, cut)), samples if compared else min(samples, cut.samples)


def _calls(model: Model, options: Any, rules: Protocol, case: Case) -> int:
    """Network calls in which the model completes a window of the protocol."""
    from framecast.generate import plan

    if rules.task == "reconstruct":
        return 1
    return sum(model.system.calls(window, options) for window in plan(model.system, case.task, options))


def _bytes(model: Model) -> bool:
    return tuple(map(float, model.video.value_range)) == (0.0, 255.0)


def _list(records: Iterable[Any], console: Console, *, asked: bool) -> int:
    if not asked:
        raise UsageError("name a MODEL, or list the protocols with --protocol list.")
    rows = [[rules.name, rules.set, rules.about] for rules in records]
    console.say(table(["protocol", "set", "what is asked"], rows))
    console.result({"protocols": [row[0] for row in rows]})
    return 0


def _record(rules: Any, console: Console) -> int:
    """A protocol of which only published values are kept."""
    from dataclasses import asdict

    console.say(f"{rules.name}: {rules.about}")
    console.say("This protocol is a record: nothing can be computed here; these values were published.")
    for line in rules.is_not:
        console.say(f"  not: {line}")
    values = [asdict(value) for value in rules.published]
    for value in values:
        console.say(f"  published: {published_words(value)}")
    console.say(f"source: {rules.source}")
    console.result({"protocol": rules.name, "published": values, "cases": []})
    return 0


EVALUATE = Command(
    about="Judge a model, or stored samples, by a protocol: scores with intervals, beside the simple forecasts on the "
    "same windows. A stopped evaluation goes on. The set that smoke-lbm needs is made first: framecast data simulate "
    "vortex32 data/vortex32.",
    example="framecast evaluate vortex-ramvid --protocol smoke-lbm\nframecast evaluate --protocol list",
    arguments=_evaluate_arguments,
    run=_evaluate,
    settings=("sample",),
)


def _samplers(args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.protocols import protocol
    from framecast.evaluate.samplers import FEW, Case, cost, report, study
    from framecast.evaluate.windows import windows

    asked = [Case(sampler, steps, *FEW) for sampler, steps in args.case or []]
    chosen = protocol(args.protocol)
    if chosen.paired is None:
        raise ValueError(f"{chosen.name} has no windows to compare with their truth: name a protocol of forecasts.")
    model = load_model(args)
    if not hasattr(model.system.options, "sampler"):
        raise ValueError(f"{model.name} has no sampler, so there is nothing to compare: name a diffusion model.")
    case = chosen.cases[0]
    out = args.out or Path("out") / f"samplers-{model.name}"
    task = [i in case.known for i in range(case.frames)]
    for one in asked:  # what the model cannot do is refused before anything is drawn
        model.system.plan(task, model.options({"sampler": one.sampler, "steps": one.steps}))
    cut = windows(chosen, case, chosen.paired, args.data or Path("data") / chosen.set)
    console.note(
        f"{cost(asked)} sampler steps of one sample each (for every frame anew where frames are drawn one by one); "
        f"output: {out}, where a stopped study goes on"
    )
    if args.dry_run:
        console.result({"dry_run": True, "steps": cost(asked), "out": str(out)})
        return 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        with console.progress(f"samplers of {model.name}", unit="steps") as progress:
            made = study(model, cut, case.known, folder=out / "cases", cases=asked, progress=progress)
        rows = report(made)
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
    parser.add_argument("model", metavar="MODEL", help="bundled name, model or run folder, hub id")
    _arguments_data(parser)
    parser.add_argument(
        "--case", type=_case, action="append", metavar="SAMPLER:STEPS",
        help="only this one, on 8 windows × 4 samples; may be given several times (default: a whole study)",
    )  # fmt: skip
    argument_device(parser)


def _case(text: str) -> tuple[str, int]:
    """`ddim:50` as a sampler and its steps."""
    sampler, _, steps = text.partition(":")
    if not sampler or not steps.isdecimal() or not int(steps):
        raise argparse.ArgumentTypeError(f"{text!r} is no sampler and steps: write for example ddim:50.")
    return sampler, int(steps)


SAMPLERS = Command(
    about="Compare samplers and numbers of steps on one model: fair CRPS and PSNR with intervals, beside seconds. A "
    "stopped study goes on from its folder.",
    example="framecast samplers vortex-ramvid --data data/vortex32\n"
    "framecast samplers vortex-rvd --case ddpm:1600 --case dpmpp_2m:50",
    arguments=_samplers_arguments,
    run=_samplers,
)
