# SPDX-License-Identifier: Apache-2.0
"""The commands that judge: samples by a protocol, and a model's samplers by quality and cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, duration, table
from framecast.cli.draw import argument_device, load_model, many, out_folder
from framecast.cli.parsing import Command, Parser, UsageError, apply_settings, positive, whole

if TYPE_CHECKING:
    from framecast.evaluate.plan import Networks, Plan
    from framecast.evaluate.samples import Computed, Source
    from framecast.evaluate.terms import Case, Protocol
    from framecast.generate import Model

# what a table shows of a forecast, where it has it
COLUMNS = ("crps_fair", "psnr", "psnr_clip", "ssim", "lpips_alex", "lpips_vgg", "mode_coverage")


def _arguments_data(parser: Parser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the protocol's set (default data/<set>)")
    parser.add_argument("--protocol", default="smoke-lbm", metavar="NAME", help="default smoke-lbm; `list` lists all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<what>; nothing is overwritten")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and what it costs")


def _evaluate_arguments(parser: Parser) -> None:
    what = "bundled name, model or run folder, hub id, simple forecast; or a folder (or array) of stored samples"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=what)
    _arguments_data(parser)
    parser.add_argument("--windows", type=positive, metavar="N", help="the first N only (default: the protocol's)")
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
    argument_device(parser)
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="how many of them draw (default 1)")


def _evaluate(args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.plan import Plan
    from framecast.evaluate.protocols import PROTOCOLS, protocol

    if args.protocol == "list" or args.model is None:
        return _list(PROTOCOLS.values(), console, asked=args.protocol == "list")
    rules = protocol(args.protocol)
    if rules.task == "record":
        return _record(rules, console)
    stored = _stored(args.model)
    model = None if stored is not None else load_model(args)
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


def _stored(name: str) -> Path | None:
    """The path, where it holds samples and no model."""
    from framecast.evaluate.stored import holds_samples

    path = Path(name)
    return path if holds_samples(path) else None


def _judge_model(plan: Plan, model: Model, args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.samples import Computed, Kept
    from framecast.evaluate.start import identity

    rules = plan.rules
    options = _options(plan, model, args)
    name = f"{rules.name}-{model.name}"
    computed = Computed(
        model, options=options, task=rules.task, quantise=rules.quantise, seed=args.seed, batch=args.batch
    )
    whose = identity(rules, computed)
    if args.devices > 1 and model.system.parts() and not args.dry_run:
        return _judge_together(plan, computed, whose, args, console)
    out = _out(args, name, whose)
    _tell_cost(plan, model, options, args, out, console)
    if args.dry_run:
        return 0
    source = Kept(computed, out / "samples", whose) if model.system.parts() else computed
    return _run(plan, source, out, console, device=model.system.device, report=args.report)


def _judge_together(
    plan: Plan, computed: Computed, whose: dict[str, Any], args: argparse.Namespace, console: Console
) -> int:
    """Several processes draw, each on its device; the first one judges."""
    from framecast.devices import build_fabric
    from framecast.evaluate.run import draw_share
    from framecast.evaluate.samples import Kept

    fabric = build_fabric(device=args.device, devices=args.devices)
    fabric.launch()
    first, model = fabric.is_global_zero, computed.model
    model.system.to(fabric.device)
    told = Path(str(_out(args, f"{plan.rules.name}-{model.name}", whose))) if first else Path()
    out = Path(fabric.broadcast(str(told)))
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
            console.note(f"Stopped. What was drawn is kept in {out}; the same command goes on from there.")
        return 130
    fabric.barrier()
    return _run(plan, source, out, console, device=fabric.device, report=args.report) if first else 0


def _judge_stored(plan: Plan, path: Path, args: argparse.Namespace, console: Console) -> int:
    from dataclasses import replace

    import torch

    from framecast.evaluate.stored import Stored
    from framecast.evaluate.windows import windows

    rules = plan.rules
    cut = rules.paired or rules.sets
    assert cut is not None
    names = {case.slug: windows(rules, case, cut, plan.data).names[: args.windows] for case in rules.cases}
    source = Stored(path, names, lossy=args.lossy)
    plan = replace(plan, windows=args.windows)
    out = out_folder(args, f"{rules.name}-{source.name}")
    console.note(f"stored samples of {path}: {many(sum(map(len, names.values())), 'window')}; output: {out}")
    if args.dry_run:
        console.result({"dry_run": True, "windows": {slug: len(some) for slug, some in names.items()}})
        return 0
    return _run(plan, source, out, console, device=torch.device("cpu"), report=args.report)


def _run(plan: Plan, source: Source, out: Path, console: Console, *, device: Any, report: bool) -> int:
    import time
    from dataclasses import replace

    from framecast.evaluate.result import result, write
    from framecast.evaluate.run import evaluate

    began = time.perf_counter()
    plan = replace(plan, shown=out / "shown")
    try:
        cases = evaluate(plan, source, stage=lambda label, unit: console.progress(label, unit=unit))
    except KeyboardInterrupt:
        console.note(f"Stopped. What was drawn is kept in {out}; the same command goes on from there.")
        return 130
    told = result(plan, source, cases, device=device)
    files = write(out, told, cases)
    _tell(told, console)
    console.say(f"{out}: {', '.join(path.name for path in files)}, shown/, in {duration(time.perf_counter() - began)}")
    if report:
        from framecast.evaluate.report import write_report

        page = write_report([out], out / "report.html", overwrite=True)
        console.say(f"{page}: one page, opens without a network")
    else:
        console.say(f"see it: framecast report {out}")
    console.result({"out": str(out), **told})
    return 0


def _options(plan: Plan, model: Model, args: argparse.Namespace) -> Any:
    """The model's options, the protocol's sampler where it states one that the model has, and what the user says."""
    from framecast.evaluate.plan import sampling

    chosen = [("sample.steps", args.steps), ("sample.sampler", args.sampler)]
    given = [(key, text) for key, text in chosen if text is not None] + args.settings
    return apply_settings(sampling(plan.rules, model), given, where="sample")


def _out(args: argparse.Namespace, name: str, identity: dict[str, Any]) -> Path:
    """The folder asked for; an evaluation that was stopped there goes on."""
    from framecast.evaluate.samples import begun

    wanted = args.out or Path("out") / name
    if begun(wanted / "samples", identity) and (args.out or not (wanted / "result.json").exists()):
        return wanted
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
        from framecast.metrics.lpips import load_lpips

        lpips = load_lpips(rules.lpips, args.lpips).to(where)
    return Networks(i3d, c3d, lpips)


def _tell_cost(plan: Plan, model: Model, options: Any, args: argparse.Namespace, out: Path, console: Console) -> None:
    """What will be drawn, at most: windows of several cuts may be the same."""
    from framecast.generate import network_calls

    rules, told, calls, values = plan.rules, [], 0, 0
    for case in rules.cases:
        for count, samples in _asked(plan, case):
            together = rules.task == "generate"  # several clips by one call
            runs = -(-count * samples // args.batch) if together else count * -(-samples // args.batch)
            calls += runs * network_calls(options, model.system) * _runs(model, options, rules, case)
            values += count * samples * case.frames
            told.append(f"{case.name}: {many(count, 'clip' if together else 'window')} × {many(samples, 'sample')}")
    spec = model.video if model.video.height else rules
    megabytes = values * spec.channels * spec.height * spec.width * (1 if _bytes(model) else 4) / 1e6
    kept = f", up to {megabytes:.3g} MB of samples" if model.system.parts() else ""
    console.note(f"{rules.name}: {'; '.join(told)}; at most {many(calls, 'network call')}; output: {out}{kept}")
    if args.dry_run:
        console.result({"dry_run": True, "cases": told, "network_calls": calls, "out": str(out)})


def _asked(plan: Plan, case: Case) -> Iterator[tuple[int, int]]:
    """Windows and samples of each that a case asks for, per cut."""
    rules = plan.rules
    if rules.task == "generate":
        reference = rules.real or rules.sets
        count = rules.drawn or (len(plan.cut(case, reference)) if reference is not None else 0)
        yield min(count, plan.windows or count), 1
        return
    for cut in filter(None, (rules.paired, rules.sets)):
        count = cut.windows or len(plan.cut(case, cut))
        samples = plan.samples or cut.samples
        yield min(count, plan.windows or count), samples if cut is rules.paired else min(samples, cut.samples)


def _runs(model: Model, options: Any, rules: Protocol, case: Case) -> int:
    """In how many windows of its own the model completes one of the protocol."""
    if rules.task == "reconstruct":
        return 1
    return len(model.system.plan([i in case.known for i in range(case.frames)], options))


def _bytes(model: Model) -> bool:
    return tuple(map(float, model.video.value_range)) == (0.0, 255.0)


def _tell(told: dict[str, Any], console: Console) -> None:
    console.say(f"{told['protocol']}: {told['settings']['about']}")
    for line in told["deviations"]:
        console.say(f"  differs: {line}")
    for line in told["assumed"]:
        console.say(f"  assumed: {line}")
    for line in told["is_not"]:
        console.say(f"  not: {line}")
    for case in told["cases"]:
        _tell_case(case, console)
    for value in told["published"]:
        console.say(f"  published: {_published(value)}")


def _tell_case(case: dict[str, Any], console: Console) -> None:
    model = case["forecasts"][0]
    scores = model.get("scores", {})
    columns = [name for name in COLUMNS if name in scores]
    if columns:
        units = next(iter(scores.values()))["units"]
        count = next(iter(scores.values()))["count"]
        console.say(f"{case['name']}: {many(count, 'window')} of {many(units, 'independent unit')}")
        head = ["", "samples", *(_titled(scores[name]) for name in columns), f"{model['name']} minus this"]
        rows = []
        for forecast in case["forecasts"]:
            own = forecast.get("scores", {})
            paired = _interval(forecast["minus"][columns[0]]) if forecast.get("minus") else ""
            rows.append(
                [forecast["name"], forecast["samples"], *(_interval(own.get(name)) for name in columns), paired]
            )
        console.say(table(head, rows))
        console.say("(in brackets 95 % intervals, bootstrap over independent units)")
    if any(forecast["sets"] for forecast in case["forecasts"]):
        _tell_sets(case, console)


def _tell_sets(case: dict[str, Any], console: Console) -> None:
    """A row per forecast, a column per figure; what the figure is between real clips stands in the last row."""
    shown = [forecast for forecast in case["forecasts"] if forecast["sets"]]
    figures = {name: figure for forecast in reversed(shown) for name, figure in forecast["sets"].items()}
    first = next(iter(figures.values()))
    console.say(f"{case['name']}: {many(first['n_fake'], 'clip')} beside {many(first['n_real'], 'real one')}")
    rows = [[f["name"], *(_figure(f["sets"].get(name)) for name in figures)] for f in shown]
    floors = ["" if figure["floor"] is None else f"{figure['floor']:.3g}" for figure in figures.values()]
    head = [figure["label"].removeprefix("rf3d-v1 ") for figure in figures.values()]
    console.say(table(["rf3d-v1" if "rf3d-v1" in first["label"] else "", *head], [*rows, ["(floor)", *floors]]))
    console.say(
        "(in brackets 95 % intervals from disjoint folds; floor: the same between two halves of the real clips)"
    )
    for note in sorted({figure["note"] for figure in figures.values() if figure["note"]}):
        console.say(f"  note: {note}")


def _figure(told: dict[str, Any] | None) -> str:
    return _interval(told | {"mean": told["value"]}) if told else ""


def _titled(score: dict[str, Any]) -> str:
    return f"{score['label']}{', ' + score['unit'] if score['unit'] else ''}"


def _interval(told: dict[str, Any] | None) -> str:
    if not told:
        return ""
    if told["low"] is None:
        return "" if told["mean"] is None else f"{told['mean']:.3g}"
    return f"{told['mean']:.3g} ({told['low']:.3g} to {told['high']:.3g})"


def _published(value: dict[str, Any]) -> str:
    number = "no number" if value["value"] is None else f"{value['value']:g}"
    spread = "" if value["spread"] is None else f" ± {value['spread']:g}"
    return f"{value['metric']} {value['method']} {number}{spread}" + (f" ({value['note']})" if value["note"] else "")


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
        console.say(f"  published: {_published(value)}")
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
    from framecast.evaluate.samplers import cost, report, study
    from framecast.evaluate.windows import windows

    chosen = protocol(args.protocol)
    if chosen.paired is None:
        raise ValueError(f"{chosen.name} has no windows to compare with their truth: name a protocol of forecasts.")
    model = load_model(args)
    if not hasattr(model.system.options, "sampler"):
        raise ValueError(f"{model.name} has no sampler, so there is nothing to compare: name a diffusion model.")
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
    parser.add_argument("model", metavar="MODEL", help="bundled name, model or run folder, hub id")
    _arguments_data(parser)
    argument_device(parser)


SAMPLERS = Command(
    about="Compare samplers and numbers of steps on one model: fair CRPS and PSNR with intervals, beside seconds. A "
    "stopped study goes on from its folder.",
    example="framecast samplers vortex-ramvid --data data/vortex32",
    arguments=_samplers_arguments,
    run=_samplers,
)
