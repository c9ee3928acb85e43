# SPDX-License-Identifier: Apache-2.0
"""The command that trains: settings from defaults, preset, file and command line, in this order; later ones win."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console
from framecast.cli.parsing import Command, Parser, Settings, UsageError, apply_settings, positive
from framecast.experiment import Experiment, from_plain, read_yaml, to_plain
from framecast.systems import SYSTEMS, entry, meant, preset, presets, resolve

if TYPE_CHECKING:
    from framecast.train import Trained


def _arguments(parser: Parser) -> None:
    parser.add_argument("what", metavar="PRESET|FILE", nargs="?", help="such as ramvid/vortex16, or a YAML file")
    parser.add_argument("--data", metavar="DIR", help="folder of clips, searched recursively (data.dir)")
    parser.add_argument("--stage", metavar="NAME", help="which part to train (default: the system's first)")
    parser.add_argument("--from", dest="from_model", metavar="MODEL", help="take the other, trained parts from here")
    parser.add_argument("--start-from", metavar="MODEL", help="begin with these weights instead of fresh ones")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run exactly where its last checkpoint is")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/<time>_<system>_<data>")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="how many of them (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained and what it needs")
    group = parser.add_argument_group("settings")
    group.add_argument("--size", metavar="N|H,W", help="frame side in pixels (data.size)")
    group.add_argument("--fps", metavar="F", help="read clips at this rate (data.fps)")
    group.add_argument("--batch", metavar="N", help="clips per step over all devices (stages.<stage>.batch)")
    group.add_argument("--max-steps", metavar="N", help="optimiser steps (stages.<stage>.max_steps)")
    group.add_argument("--seed", metavar="N", help="of weights, order and noise (stages.<stage>.seed)")
    group.add_argument("--KEY.KEY", metavar="VALUE", dest="_", help="any setting: framecast config defaults SYSTEM")


def experiment_of(what: str) -> Experiment:
    """The experiment meant by a preset's name, a system's name or a YAML file.

    A file names its `system`, or a `preset` that its settings change.

    Raises:
        ValueError: none of these, or a setting that does not exist.
    """
    path = Path(what).expanduser()
    if path.is_file():
        values = read_yaml(path, where=what)
        try:
            return _from_file(values, what)
        except ValueError as error:
            raise ValueError(str(error) if what in str(error) else f"{what}: {error}") from None
    if what in SYSTEMS:
        return resolve(entry(what).experiment)()
    if what.partition("/")[0] in SYSTEMS:
        return preset(what)
    raise ValueError(f"{what!r} is neither a file nor a preset.{meant(what, [*SYSTEMS, *presets()])}")


def _from_file(values: dict[str, Any], what: str) -> Experiment:
    values = dict(values)
    if "preset" in values:
        base = preset(str(values.pop("preset")))
        return from_plain(type(base), _merge(to_plain(base), values))
    if "system" not in values:
        raise ValueError(f"{what} names neither a system nor a preset: add a line such as `preset: {presets()[0]}`.")
    return from_plain(resolve(entry(values["system"]).experiment), values)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, table by table; a key that is new is left for `from_plain` to refuse."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def shortcuts(args: argparse.Namespace, stage: str) -> Settings:
    """The settings that --data, --size, --fps, --batch, --max-steps and --seed stand for."""
    meant = {
        "data.dir": args.data,
        "data.size": args.size,
        "data.fps": args.fps,
        f"stages.{stage}.batch": args.batch,
        f"stages.{stage}.max_steps": args.max_steps,
        f"stages.{stage}.seed": args.seed,
    }
    return [(key, text) for key, text in meant.items() if text is not None]


def _run(args: argparse.Namespace, console: Console) -> int:
    if args.what is None and args.resume is None:
        raise UsageError("nothing to train: name a preset or a file, or a run with --resume." + meant("", presets()))
    if args.resume is not None and (args.out or args.from_model or args.start_from):
        raise UsageError("--resume goes on with a run as it was: leave out --out, --from and --start-from.")
    experiment = None
    if args.what is not None:
        experiment = experiment_of(args.what)
    elif args.settings or shortcuts(args, ""):
        raise UsageError(
            "--resume goes on with a run as it was: leave the settings out, or give its settings file and the changes: "
            f"framecast train {args.resume}/config.yaml --resume {args.resume} --max-steps 20000"
        )
    if experiment is not None:
        stage = args.stage or next(iter(to_plain(experiment.stages)))  # type: ignore[attr-defined]
        experiment = apply_settings(experiment, [*shortcuts(args, stage), *args.settings])
        if not experiment.data.dir:
            raise UsageError(f"no training clips: give a folder of videos with --data DIR (preset {args.what}).")
    return _train(experiment, args, console)


TRAIN = Command(
    about="Train a system, or one stage of it, on a folder of clips. Later settings win: defaults, preset, file, "
    "command line. Ctrl-C writes a checkpoint; --resume goes on from it exactly.",
    example="framecast train ramvid/vortex16 --data my_clips/ --size 64 --max-steps 20000\n"
    "framecast train my.yaml --stages.diffusion.optimiser.lr 2e-4\n"
    "framecast train --resume runs/latest",
    arguments=_arguments,
    run=_run,
    settings=("data", "model", "stages", "sample", "source"),
)


def _train(experiment: Experiment | None, args: argparse.Namespace, console: Console) -> int:
    from framecast.data.plot import save_curves
    from framecast.devices import first_process
    from framecast.train import Stopped, prepare
    from framecast.train.run import run

    where = {
        "stage": args.stage,
        "out": args.out,
        "from_model": args.from_model,
        "start_from": args.start_from,
        "resume": args.resume,
        "device": args.device,
        "devices": args.devices,
    }
    if args.dry_run:
        plan = prepare(experiment, **where).plan
        for line in plan.lines():
            console.say(line)
        console.result(to_plain(plan))
        return 0
    try:
        with console.training() as progress:
            done = run(experiment, **where, progress=progress)
    except Stopped as stopped:
        if not first_process():
            return 0  # one that ends otherwise has the others killed, the first among them
        console.note(str(stopped))
        return 130
    if not first_process():
        return 0
    if done.loss is None:
        more = f"framecast train {done.dir}/config.yaml --resume {done.dir} --max-steps {2 * done.steps}"
        console.say(f"{done.dir}: all {done.steps} steps were done already; for more: {more}")
    else:
        curves = save_curves(done.dir / "curves.png", done.dir / "metrics.csv")
        console.say(f"{done.dir}: step {done.steps}, loss {done.loss:.4g}" + (", curves.png" if curves else ""))
    console.say(f"next: {_next(done)}")
    console.result(to_plain(done) | {"dir": str(done.dir), "checkpoint": str(done.checkpoint)})
    return 0


def _next(done: Trained) -> str:
    """What to do after a run: train the stage that is missing, or else draw."""
    from framecast.checkpoint import describe, stage_of

    info = describe(done.checkpoint)
    missing = next((name for name, part in info.parts.items() if part is None), None)
    if missing is None:
        return f"framecast predict {done.dir} CLIP --samples 3"
    return f"framecast train {done.dir}/config.yaml --stage {stage_of(info, missing)} --from {done.dir}"
