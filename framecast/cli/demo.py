# SPDX-License-Identifier: Apache-2.0
"""The demonstration: simulate flows, train a small model on them, forecast flows it has never seen, and say how well.

Everything lies in one folder: data/, run/, predict/, infill/, interpolate/, strip.png, forecast.mp4 and .webp, an
unseen flow to try commands on, and numbers.json with what was measured and how.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, duration, table
from framecast.cli.parsing import Command, Parser, UsageError, above_zero, positive, whole
from framecast.experiment import Experiment
from framecast.systems import preset

if TYPE_CHECKING:
    from framecast.generate import Forecast, Model
    from framecast.video import Clip

SET, PRESET = "vortex16", "ramvid/vortex16"
TRAIN_FLOWS, TRAIN_FRAMES = 32, 120
TEST_FLOWS, WINDOWS_PER_FLOW = 4, 2
CONTEXT, HORIZON, SAMPLES = 4, 12, 8
CALIBRATION = 20  # steps trained to learn how long one takes


def _arguments(parser: Parser) -> None:
    parser.add_argument("--train", action="store_true", help="train the model here (the default for now)")
    parser.add_argument(
        "--minutes", type=above_zero, metavar="M", help="train for about so long instead of the preset's steps"
    )
    parser.add_argument("--max-steps", type=positive, metavar="N", help="train for so many steps")
    parser.add_argument("--seed", type=whole, default=0, help="of flows, weights and noise (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="default demo, or the next free name"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default auto)")


def _run(args: argparse.Namespace, console: Console) -> int:
    from framecast.train import Stopped

    try:
        return _demonstrate(args, console)
    except Stopped as stopped:  # its run can be gone on with, though not the demonstration
        console.note(str(stopped))
        return 130


def _demonstrate(args: argparse.Namespace, console: Console) -> int:
    import framecast
    from framecast.data.array_file import write_array
    from framecast.data.simulate.sets import flows, simulate
    from framecast.devices import pick_device
    from framecast.generate import free_folder
    from framecast.train.run import run

    if args.minutes and args.max_steps:
        raise UsageError("--minutes and --max-steps say the same thing twice; give one.")
    pick_device(args.device)  # before anything is written
    began, out = time.perf_counter(), free_folder(args.out)
    console.note(f"everything goes to {out}/")
    with console.progress("simulating flows", unit="flows") as progress:
        simulate(
            SET,
            out / "data",
            splits=["train"],
            flows=TRAIN_FLOWS,
            frames=TRAIN_FRAMES,
            seed=args.seed,
            progress=progress,
        )
    experiment = _experiment(args, out / "data" / "train", console)
    with console.training() as told:
        trained = run(experiment, out=out / "run", device=args.device, progress=told)
    model = framecast.load(out / "run", device=args.device)
    model.name = f"{SET}-ramvid"
    longest = CONTEXT + HORIZON
    unseen = flows(SET, "test", TEST_FLOWS, WINDOWS_PER_FLOW * longest, seed=args.seed)
    write_array(
        out / "unseen.npz", unseen[0].frames, fps=None, value_range=unseen[0].value_range, generated_by={"set": SET}
    )
    windows = [flow[i * longest : (i + 1) * longest] for flow in unseen for i in range(WINDOWS_PER_FLOW)]
    forecasts = _forecasts(model, windows, args.seed, console)
    _show(model, windows[0], forecasts[0], out, seed=args.seed)
    numbers = _numbers(forecasts) | {
        "set": SET,
        "preset": PRESET,
        "training": {"steps": trained.steps, "seconds": round(trained.seconds, 1), "loss": trained.loss},
        "record": forecasts[0].record,
        "seconds": round(time.perf_counter() - began, 1),
    }
    (out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    _tell(numbers, out, console)
    console.result({"out": str(out), **numbers})
    return 0


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


def _forecasts(model: Model, windows: list[Clip], seed: int, console: Console) -> list[Forecast]:
    with console.progress("forecasting unseen flows", unit="windows") as progress:
        made = []
        for i, window in enumerate(windows):
            made.append(model.predict(window, HORIZON, context=CONTEXT, samples=SAMPLES, seed=seed + i))
            progress(i + 1, len(windows))
    return made


def _show(model: Model, clip: Clip, forecast: Forecast, out: Path, *, seed: int) -> None:
    """Pictures of the first unseen window: forecast, infilling, interpolation."""
    from framecast.data.image_file import write_image
    from framecast.data.media import Row, grid, save_view, strip

    comment = f"Generated by framecast, model {model.name}; the row named truth is a simulated flow."
    rows = [Row("truth", clip), *(Row(f"sample {i}", forecast.clip(i), forecast.known) for i in range(3))]
    write_image(out / "strip.png", strip(rows, columns=CONTEXT + HORIZON), comment=comment)
    for suffix in (".mp4", ".webp"):
        save_view(out / f"forecast{suffix}", grid(rows), comment=comment)
    forecast.save(out / "predict")
    short = clip[: model.video.clip_frames]
    last = len(short) - 1
    model.infill(short, [0, 1, last - 1, last], samples=3, seed=seed).save(out / "infill")
    model.interpolate(clip[::2], 2, samples=3, seed=seed).save(out / "interpolate")


def _numbers(forecasts: list[Forecast]) -> dict[str, Any]:
    """Scores over all windows, overall and by lead, in 8-bit units."""
    scores = [s for s in (forecast.scores() for forecast in forecasts) if s]
    result: dict[str, Any] = {
        "unit": "8-bit levels",
        "windows": len(scores),
        "samples": SAMPLES,
        "context": CONTEXT,
        "horizon": HORIZON,
    }
    for who in ("model", "persistence"):
        result[who] = {
            name: round(sum(s[who][name] for s in scores) / len(scores), 3) for name in ("crps", "crps_fair", "psnr")
        }
        leads = zip(*(s[who]["per_frame"]["crps_fair"] for s in scores), strict=True)
        result[who]["crps_fair_by_lead"] = [round(sum(lead) / len(lead), 3) for lead in leads]
    return result


def _tell(numbers: dict[str, Any], out: Path, console: Console) -> None:
    leads = [lead for lead in (1, 2, 4, 8, 12) if lead <= HORIZON]
    head = ["fair CRPS, 8-bit units", *(f"lead {lead}" for lead in leads), "overall", "PSNR dB"]
    rows = [
        [
            who,
            *(numbers[who]["crps_fair_by_lead"][lead - 1] for lead in leads),
            numbers[who]["crps_fair"],
            numbers[who]["psnr"],
        ]
        for who in ("model", "persistence")
    ]
    console.say(table(head, rows))
    console.say(
        f"({numbers['windows']} windows of flows never seen in training, {CONTEXT} known frames, {SAMPLES} samples; "
        "lower CRPS is better)"
    )
    console.say(f"{out}: strip.png, forecast.mp4, numbers.json and more, in {duration(numbers['seconds'])}")
    console.say("next:")
    console.say(f"  framecast predict {out}/run {out}/unseen.npz --horizon 24 --samples 3")
    console.say(f"  framecast models info {out}/run")
    console.say("  framecast train ramvid/tiny32 --data my_clips/")


DEMO = Command(
    about="Simulate flows past a disc, train a small model on them for minutes on a CPU, then forecast, infill and "
    "interpolate flows it has never seen, and compare with persistence. Nothing is downloaded.",
    example="framecast demo\nframecast demo --minutes 1 --out /tmp/demo",
    arguments=_arguments,
    run=_run,
)
