# SPDX-License-Identifier: Apache-2.0
"""The demonstration: forecast flows that training never saw with the bundled models, and say how well.

With `--train` a model is trained first, here, in two minutes, and does everything; with `--all` every system forecasts
one flow. It all lies in one folder: predict/, infill/, interpolate/, strip.png, forecast.mp4 and .webp, crps_map.png,
an unseen flow to try commands on, numbers.json with what was measured and how; with `--train` also data/ and run/, with
`--all` a folder of each model in place of predict/ to crps_map.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, duration, table
from framecast.cli.draw import many
from framecast.cli.parsing import Command, Parser, UsageError, above_zero, positive, whole
from framecast.experiment import Experiment
from framecast.systems import SYSTEMS, preset

if TYPE_CHECKING:
    from framecast.checkpoint import ModelInfo
    from framecast.evaluate.run import Scores
    from framecast.generate import Forecast, Model
    from framecast.video import Clip


@dataclass(frozen=True)
class Shown:
    """What is forecast."""

    set: str  # whose test flows
    windows: tuple[int, int]  # flows, and windows of each
    infill: tuple[int, ...]  # known frames
    context: int = 4
    horizon: int = 12
    samples: int = 8


MODEL, FILLER = "vortex-rvd", "vortex-ramvid"  # the bundled models that forecast, and that fill in
PRESET = "ramvid/vortex16"  # what --train trains
SHOWN = Shown("vortex32", (4, 1), infill=(0, 5, 10, 15))
SHOWN_TRAINED = Shown("vortex16", (4, 2), infill=(0, 1, 6, 7))
TRAIN_FLOWS, TRAIN_FRAMES = 32, 120
CALIBRATION = 20  # steps trained to learn how long one takes


def _arguments(parser: Parser) -> None:
    training = parser.add_argument_group("training instead of taking the bundled models")
    training.add_argument("--train", action="store_true", help="train a small model here first, about two minutes")
    training.add_argument(
        "--minutes", type=above_zero, metavar="M", help="train for about so long instead of the preset's steps"
    )
    training.add_argument("--max-steps", type=positive, metavar="N", help="train for so many steps")
    parser.add_argument("--all", action="store_true", help="one flow, and a row for every system that predicts")
    parser.add_argument("--seed", type=whole, default=0, help="of flows, weights and noise (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="default demo, or the next free name"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default auto)")


def _run(args: argparse.Namespace, console: Console) -> int:
    from framecast.devices import pick_device
    from framecast.generate import free_folder
    from framecast.train import Stopped

    if args.minutes and args.max_steps:
        raise UsageError("--minutes and --max-steps say the same thing twice; give one.")
    if not args.train and (args.minutes or args.max_steps):
        raise UsageError("--minutes and --max-steps say how long to train; add --train.")
    if args.all and args.train:
        raise UsageError("--all shows the bundled models, --train a model of its own; give one.")
    pick_device(args.device)  # before anything is written
    out = free_folder(args.out)
    console.note(f"everything goes to {out}/")
    if args.all:
        return _side_by_side(args, out, console)
    try:
        return _demonstrate(args, out, console)
    except Stopped as stopped:  # its run can be gone on with, though not the demonstration
        console.note(str(stopped))
        return 130


def _demonstrate(args: argparse.Namespace, out: Path, console: Console) -> int:
    import framecast
    from framecast.evaluate.run import judge, simple_sources
    from framecast.evaluate.samples import Given
    from framecast.evaluate.terms import Case
    from framecast.evaluate.windows import Windows

    began = time.perf_counter()
    shown, training = (SHOWN_TRAINED, _train(args, out, console)) if args.train else (SHOWN, None)
    model = framecast.load(out / "run" if args.train else MODEL, device=args.device)
    model.name = f"{shown.set}-ramvid" if args.train else model.name
    filler = model if args.train else framecast.load(FILLER, device=args.device)
    windows, units = _unseen(shown, out, args.seed, console)
    forecasts = _forecasts(model, shown, windows, args.seed, console)
    reference = out / "data" / "train" if args.train else None
    case = Case(known=tuple(range(shown.context)), frames=shown.context + shown.horizon)
    cut = Windows(windows, units, [str(i) for i in range(len(windows))])
    sources = [Given(model.name, dict(zip(cut.names, forecasts))), *simple_sources(case, reference=reference)]
    mine, *others = (
        judge(source, cut, case, ("crps", "psnr"), samples=min(shown.samples, source.most)) for source in sources
    )
    _show(forecasts[0], shown, windows[0], out)
    _fill_in(filler, shown, windows[0], out, seed=args.seed)
    numbers: dict[str, Any] = {
        "set": shown.set,
        "unit": "8-bit levels",
        "windows": len(windows),
        "samples": shown.samples,
        "context": shown.context,
        "horizon": shown.horizon,
        "model": _told(mine),
        "simple_forecasts": {other.name: _told(other) for other in others},
        "training": training,
        "record": mine.record,
        "seconds": round(time.perf_counter() - began, 1),
    }
    (out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    _tell(numbers, [mine, *others], console)
    files = "strip.png, forecast.mp4, forecast.webp, crps_map.png, infill/, interpolate/, numbers.json"
    console.say(f"{out}: {files}, in {duration(numbers['seconds'])}")
    run = f"{out}/run"
    _propose(run if args.train else MODEL, run if args.train else FILLER, out, console)
    console.result({"out": str(out), **numbers})
    return 0


def _side_by_side(args: argparse.Namespace, out: Path, console: Console) -> int:
    """Every system forecasts the same flow from the same frames, of which each takes the last ones that it needs."""
    import framecast
    from framecast.evaluate.run import judge, simple_sources
    from framecast.evaluate.samples import Given
    from framecast.evaluate.terms import Case
    from framecast.evaluate.windows import Windows

    began = time.perf_counter()
    chosen = _one_of_each(SHOWN.set)
    lacking = [system for system, info in chosen.items() if info is None]
    for system in lacking:
        console.note(f"{system} has no row: no model of it for {SHOWN.set} comes with framecast yet")
    models = [framecast.load(info.dir, device=args.device) for info in chosen.values() if info is not None]
    if not models:
        raise ValueError(f"no model for {SHOWN.set} comes with this framecast: install it again.")
    shown = dataclasses.replace(SHOWN, windows=(1, 1), context=max(SHOWN.context, *(m.context for m in models)))
    windows, units = _unseen(shown, out, args.seed, console)
    case = Case(known=tuple(range(shown.context)), frames=shown.context + shown.horizon)
    cut = Windows(windows, units, ["0"])
    forecasts = [_forecasts(model, shown, windows, args.seed, console)[0] for model in models]
    sources = [Given(model.name, {"0": made}) for model, made in zip(models, forecasts, strict=True)]
    every = [*sources, *simple_sources(case, reference=None)]
    scores = [judge(one, cut, case, ("crps", "psnr"), samples=min(shown.samples, one.most)) for one in every]
    for model, forecast in zip(models, forecasts, strict=True):
        forecast.save(out / model.name)
    _picture(models, forecasts, windows[0], shown, out)
    mine, others = scores[: len(models)], scores[len(models) :]
    about = [{"system": m.system.name, "seconds": round(one.seconds, 1)} for m, one in zip(models, mine, strict=True)]
    numbers: dict[str, Any] = {
        "set": shown.set,
        "unit": "8-bit levels",
        "windows": 1,
        "samples": shown.samples,
        "context": shown.context,
        "horizon": shown.horizon,
        "models": {one.name: told | _told(one) for one, told in zip(mine, about, strict=True)},
        "without_model": lacking,
        "simple_forecasts": {other.name: _told(other) for other in others},
        "records": {one.name: one.record for one in mine},
        "seconds": round(time.perf_counter() - began, 1),
    }
    (out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    _tell(numbers, scores, console)
    files = ", ".join(["strip.png", "forecast.mp4", "forecast.webp", *(f"{m.name}/" for m in models), "numbers.json"])
    console.say(f"{out}: {files}, in {duration(numbers['seconds'])}")
    console.result({"out": str(out), **numbers})
    return 0


def _one_of_each(of: str) -> dict[str, ModelInfo | None]:
    """The first bundled model of this set's clips for every system that predicts, in the order of their table."""
    from framecast.checkpoint import list_models

    found: dict[str, ModelInfo | None] = {name: None for name, row in SYSTEMS.items() if "predict" in row.tasks}
    for info in list_models(()):
        whose: Any = info.provenance.get("appearance") or {}
        if info.system in found and found[info.system] is None and whose.get("set") == of and not info.missing:
            found[info.system] = info
    return found


def _picture(models: Sequence[Model], forecasts: Sequence[Forecast], clip: Clip, shown: Shown, out: Path) -> None:
    """The truth and the first future of every model, from the last known frames on."""
    from framecast.data.image_file import write_image
    from framecast.data.media import Row, grid, save_view, strip

    names = ", ".join(model.name for model in models)
    comment = f"Generated by framecast, models {names}; the row named truth is a simulated flow."
    rows = [Row("truth", clip)]
    for model, forecast in zip(models, forecasts, strict=True):
        rows.append(Row(f"{type(model.system).__name__}: {model.name}", forecast.clip(0), forecast.known))
    frames = range(shown.context - SHOWN.context, shown.context + shown.horizon)
    write_image(out / "strip.png", strip(rows, frames=frames), comment=comment)
    for suffix in (".mp4", ".webp"):
        save_view(out / f"forecast{suffix}", grid(rows), comment=comment)


def _train(args: argparse.Namespace, out: Path, console: Console) -> dict[str, Any]:
    """Simulate flows and train the preset on them; what came of it."""
    from framecast.data.simulate.sets import simulate
    from framecast.train.run import run

    with console.progress("simulating flows", unit="flows") as progress:
        how: dict[str, Any] = {"flows": TRAIN_FLOWS, "frames": TRAIN_FRAMES, "seed": args.seed, "progress": progress}
        simulate(SHOWN_TRAINED.set, out / "data", splits=["train"], **how)
    experiment = _experiment(args, out / "data" / "train", console)
    with console.training() as told:
        trained = run(experiment, out=out / "run", device=args.device, progress=told)
    return {"preset": PRESET, "steps": trained.steps, "seconds": round(trained.seconds, 1), "loss": trained.loss}


def _unseen(shown: Shown, out: Path, seed: int, console: Console) -> tuple[list[Clip], list[str]]:
    """Windows of flows that training never saw, and which flow each is of; the first flow is kept as a file."""
    from framecast.data.array_file import write_array
    from framecast.data.simulate.sets import flows

    count, each = shown.windows
    length = shown.context + shown.horizon
    console.note(f"simulating {many(count, 'flow')} that training never saw")
    unseen = flows(shown.set, "test", count, max(2, each) * length, seed=seed)
    told = {"set": shown.set, "split": "test", "number": 0, "seed": seed}
    write_array(out / "unseen.npz", unseen[0].frames, fps=None, value_range=unseen[0].value_range, generated_by=told)
    windows = [flow[i * length : (i + 1) * length] for flow in unseen for i in range(each)]
    return windows, [f"flow {number}" for number in range(count) for _ in range(each)]


def _experiment(args: argparse.Namespace, data: Path, console: Console) -> Experiment:
    """The preset on these clips, for as many steps as asked for or as fit into the time asked for."""
    from framecast.train import Stopped
    from framecast.train.run import run

    experiment: Any = preset(PRESET)
    (stage,) = (field.name for field in dataclasses.fields(experiment.stages))

    def trained_for(steps: int, previews: int) -> Experiment:
        settings = getattr(experiment.stages, stage)
        optimiser = dataclasses.replace(
            settings.optimiser, warmup_steps=min(settings.optimiser.warmup_steps, steps // 10)
        )
        settings = dataclasses.replace(
            settings, max_steps=steps, preview_every=previews, optimiser=optimiser, seed=args.seed
        )
        return dataclasses.replace(
            experiment,
            data=dataclasses.replace(experiment.data, dir=str(data), value_range=(-1.0, 1.0)),
            stages=dataclasses.replace(experiment.stages, **{stage: settings}),
        )

    steps = args.max_steps or getattr(experiment.stages, stage).max_steps
    if args.minutes:
        with tempfile.TemporaryDirectory() as folder:
            try:
                tried = run(trained_for(CALIBRATION, 0), out=Path(folder) / "run", device=args.device)
            except Stopped:  # nothing of this run is kept
                raise KeyboardInterrupt from None
        steps = max(CALIBRATION, round(60 * args.minutes * CALIBRATION / tried.seconds))
        console.note(f"{tried.seconds / CALIBRATION:.3g} s per step: {steps} steps in {args.minutes:g} minutes")
    return trained_for(steps, max(1, steps // 4))


def _forecasts(model: Model, shown: Shown, windows: list[Clip], seed: int, console: Console) -> list[Forecast]:
    with console.progress("forecasting them", unit="windows") as progress:
        made = []
        for i, window in enumerate(windows):
            how: dict[str, Any] = {"context": shown.context, "samples": shown.samples, "seed": seed + i}
            made.append(model.predict(window, shown.horizon, **how))
            progress(i + 1, len(windows))
    return made


def _show(forecast: Forecast, shown: Shown, clip: Clip, out: Path) -> None:
    """Pictures of the forecast of a window, beside the truth."""
    from framecast.data.image_file import write_image
    from framecast.data.media import Row, grid, save_view, strip

    comment = f"Generated by framecast, model {forecast.record['model']}; the row named truth is a simulated flow."
    rows = [
        Row("truth", clip),
        *(Row(f"sample {i}", forecast.clip(i), forecast.known) for i in range(min(3, len(forecast)))),
    ]
    write_image(out / "strip.png", strip(rows, columns=len(clip)), comment=comment)
    for suffix in (".mp4", ".webp"):
        save_view(out / f"forecast{suffix}", grid(rows), comment=comment)
    forecast.save_crps_map(out / "crps_map.png")
    forecast.save(out / "predict")


def _fill_in(model: Model, shown: Shown, clip: Clip, out: Path, *, seed: int) -> None:
    """Infilling and interpolation of a window."""
    short = clip[: model.video.clip_frames]
    model.infill(short, shown.infill, samples=3, seed=seed).save(out / "infill")
    model.interpolate(clip[::2], 2, samples=3, seed=seed).save(out / "interpolate")


def _told(scores: Scores) -> dict[str, Any]:
    """Scores over all windows, overall and by lead."""
    means = {name: round(float(scores.values[name].mean()), 3) for name in ("crps", "crps_fair", "psnr")}
    leads = [round(float(value), 3) for value in scores.values["crps_fair"].mean(0)]
    return {**means, "crps_fair_by_lead": leads, "samples": scores.samples}


def _tell(numbers: dict[str, Any], scores: Sequence[Scores], console: Console) -> None:
    """A row for each forecast; where several models are shown, the seconds that theirs took, too."""
    timed = numbers.get("models", {})
    leads = [lead for lead in (1, 2, 4, 8, 12) if lead <= numbers["horizon"]]
    head = ["fair CRPS, 8-bit units", *(f"lead {lead}" for lead in leads), "overall", "PSNR dB"]
    head += ["seconds"] if timed else []
    rows = []
    for one in scores:
        told = _told(one)
        by_lead = [told["crps_fair_by_lead"][lead - 1] for lead in leads]
        seconds = [timed[one.name]["seconds"] if one.name in timed else ""] if timed else []
        rows.append([one.name, *by_lead, told["crps_fair"], told["psnr"], *seconds])
    console.say(table(head, rows))
    console.say(
        f"({many(numbers['windows'], 'window')} of flows never seen in training, {numbers['context']} known frames, "
        f"{numbers['samples']} samples of {'each' if timed else 'the'} model; lower CRPS is better)"
    )
    if not any(one.name == "analog" for one in scores):
        console.say("(the analog forecasts need the training flows: see framecast evaluate)")


def _propose(model: str, filler: str, out: Path, console: Console) -> None:
    """What to try next; the commands work as they stand."""
    console.say("next:")
    console.say(f"  framecast predict {model} {out}/unseen.npz --horizon 24 --samples 3")
    console.say(f"  framecast infill {filler} {out}/unseen.npz --known 0-3,12-15")
    console.say("  framecast train ramvid/tiny32 --data my_clips/")


DEMO = Command(
    about="Forecast, infill and interpolate simulated flows past a disc that training never saw, with the bundled "
    "models, and compare with simple forecasts: under a minute on a CPU, nothing is downloaded. With --train a small "
    "model is trained first; with --all every system forecasts the same flow, in under two minutes.",
    example="framecast demo\nframecast demo --all\nframecast demo --train --minutes 1 --out /tmp/demo",
    arguments=_arguments,
    run=_run,
)
