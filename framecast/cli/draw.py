# SPDX-License-Identifier: Apache-2.0
"""The commands that draw frames: predict, infill, interpolate, generate.

All four read clips fitted to the model, say what it will cost, draw, and write one folder per clip.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from framecast.cli.console import Console, duration, table
from framecast.cli.parsing import (
    Command,
    Parser,
    UsageError,
    above_zero,
    apply_settings,
    first_frame,
    frame_list,
    positive,
    two_numbers,
    whole,
    words_of,
)
from framecast.experiment import to_plain
from framecast.task import Task, Window

if TYPE_CHECKING:
    from framecast.experiment import SampleOptions
    from framecast.generate import Forecast, Model
    from framecast.video import Clip

FORMATS = ("mp4", "webp", "gif", "npz")


@dataclass(frozen=True)
class _Request:
    """One forecast asked for."""

    label: str  # the clip's path, or the model's name where there is none
    task: Task
    out: Path
    draw: Callable[..., Forecast]  # takes the arguments that all verbs share
    clip: Clip | None = None  # None: nothing is given


# ---- flags


def arguments_model(parser: Parser, *, clips: Literal["none", "one", "many"]) -> None:
    """The words MODEL and VIDEO."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="bundled name, model folder, run folder, hub id, or a simple "
        "forecast (persistence, …; see framecast models list)",
    )
    text = "video, GIF, WebP, folder of frames, .npy or .npz"
    if clips == "one":
        parser.add_argument("video", metavar="VIDEO", help=text)
    if clips == "many":
        parser.add_argument("videos", metavar="VIDEO", nargs="+", help=text)


def argument_device(group: Any) -> None:
    """The flag --device."""
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default auto)")


def _arguments_drawing(parser: Parser) -> None:
    group = parser.add_argument_group("drawing")
    group.add_argument("--steps", metavar="N", help="sampler steps (default: the model's own)")
    group.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, … (default: the model's own)")
    group.add_argument("--sample.KEY", metavar="VALUE", dest="_", help="any other sampling setting of the model")
    group.add_argument("--seed", type=whole, default=0, help="of all noise (default 0)")
    group.add_argument("--batch", type=positive, default=8, metavar="N", help="samples drawn at once (default 8)")
    argument_device(group)


def arguments_reading(parser: Parser) -> None:
    """Flags for how clips are read."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--start", type=first_frame, default=0, metavar="I", help="first frame of the clip used (default 0)"
    )
    group.add_argument(
        "--fps", type=above_zero, metavar="F", help="read at this rate (default: the model's; interpolate: as stored)"
    )
    colour = group.add_mutually_exclusive_group()
    colour.add_argument("--gray", action="store_true", help="make a colour clip grey")
    colour.add_argument("--rgb", action="store_true", help="give a grey clip to a colour model")
    group.add_argument("--value-range", type=two_numbers, metavar="LOW,HIGH", help="of float arrays")


def _arguments_writing(parser: Parser) -> None:
    group = parser.add_argument_group("writing")
    group.add_argument("--out", type=Path, metavar="DIR", help="default: out/<clip name>; nothing is overwritten")
    group.add_argument(
        "--format",
        type=words_of(FORMATS),
        default=["mp4"],
        metavar="F,F",
        help="of mp4, webp, gif, npz (default mp4; samples.npz is always written)",
    )
    group.add_argument("--plain", action="store_true", help="no green and red edges in videos and strip")
    group.add_argument("--dry-run", action="store_true", help="say what would be done and what it costs")


# ---- what all four do


def load_model(args: argparse.Namespace, *, verb: str | None = None) -> Model:
    """The model of a command line on its device; `verb` as for `framecast.load`."""
    import framecast

    return framecast.load(args.model, device=args.device, verb=verb)


def read_for(
    path: str,
    model: Model,
    args: argparse.Namespace,
    console: Console | None,
    *,
    frames: int | None,
    rate: Literal["model", "stored"] = "model",
) -> Clip:
    """A clip as the model wants it, at most `frames` long, at the rate of `--fps` or else of the model or the file.

    Everything that had to be changed is told; `console` is None where that has been done.
    """
    from framecast.data.clip_file import BadClip
    from framecast.data.fit import read_fitted

    fps = args.fps or (model.video.fps if rate == "model" else None)
    spec = dataclasses.replace(model.video, fps=fps)
    how = {"colour": "gray" if args.gray else "rgb" if args.rgb else "keep", "value_range": args.value_range}
    piped = path == "-"  # can be read only once
    try:
        clip, notes = read_fitted(path, spec, start=args.start, frames=None if piped else frames, **how)
    except BadClip:
        if frames is None or piped:
            raise
        clip, notes = read_fitted(path, spec, start=args.start, **how)  # shorter than that: all there is
    if args.fps and clip.fps is None:
        raise ValueError(f"{path}: its frame rate is not known, so it cannot be read at {fps:g} fps: leave --fps out.")
    if console is not None:
        for note in notes:
            console.note(f"{path}: {note}")
    return clip[:frames]


def _options(model: Model, args: argparse.Namespace) -> SampleOptions:
    chosen = [("sample.steps", args.steps), ("sample.sampler", args.sampler)]
    settings = [(key, text) for key, text in chosen if text is not None] + args.settings
    return apply_settings(model.system.options, settings, where="sample")


def out_folder(args: argparse.Namespace, name: str, *, several: bool = False, taken: Sequence[Path] = ()) -> Path:
    """Where a result goes: the folder asked for, which must be free, or the first free one of the default name.

    Folders in `taken` are meant for other results of the same command: clips of one name in several folders.
    """
    from framecast.generate import free_folder

    out = args.out or Path("out") / name
    if args.out and several:
        out = args.out / name
    nearest = next(folder for folder in (out, *out.parents) if folder.exists())
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file, and is not overwritten: use --out {free_folder(nearest)}.")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"nothing can be written to {nearest}: choose another place with --out DIR.")
    if args.out and free_folder(out) != out:
        raise ValueError(f"{out} is not empty, and nothing in it is overwritten: use --out {free_folder(args.out)}.")
    free, number = free_folder(out), 1
    while free in taken:
        number += 1
        free = free_folder(out.with_name(f"{out.name}-{number}"))
    return free


def name_of(path: str) -> str:
    """The name a clip's results go by.

    Example:
        >>> name_of("clips/push.mp4"), name_of("frames/"), name_of("-")
        ('push', 'frames', 'stdin')
    """
    return "stdin" if path == "-" else Path(path).resolve().stem


def _run(model: Model, requests: list[_Request], args: argparse.Namespace, console: Console) -> int:
    options = _options(model, args)
    samples = getattr(args, "samples", 1)
    results = []
    for request in requests:
        told = _cost(model, request, options, samples=samples, batch=args.batch)
        if told["unlike"]:
            console.note(f"note: {request.label}: {told['unlike']}")
        if args.dry_run:
            for line in _cost_lines(told):
                console.say(line)
            results.append(told)
            continue
        if len(told["windows"]) > 1:
            console.note(_cost_lines(told)[1])
        with console.progress(request.label, unit="network calls") as progress:
            shared = {"seed": args.seed, "batch": args.batch, "options": to_plain(options), "progress": progress}
            forecast = request.draw(**shared)
        files = forecast.save(request.out, formats=args.format, plain=args.plain)
        results.append({"clip": request.label, "out": str(request.out), **_report(forecast, files, request, console)})
    console.result({"dry_run": args.dry_run, "results": results})
    return 0


def _report(forecast: Forecast, files: list[Path], request: _Request, console: Console) -> dict[str, Any]:
    record, scores = forecast.record, forecast.scores()
    drawn = len(request.task) - sum(request.task.known)
    console.say(
        f"{request.out}: {len(forecast)} × {many(drawn, 'frame')} in {duration(record['seconds'])} "
        f"({record['frames_per_second']:.3g} frames/s): {_names(files)}"
    )
    first, *others = forecast.video
    if others and all(first.equal(other) for other in others):
        console.note("note: all samples are the same, as this forecast knows no chance: one would do")
    if scores:
        rows = [[who, scores[who]["crps"], scores[who]["crps_fair"], scores[who]["psnr"]] for who in _scored(scores)]
        console.say(
            f"against the truth at {many(len(scores['frames']), 'drawn frame')} "
            f"(8-bit units, {many(len(forecast), 'sample')}):"
        )
        console.say(table(["", "CRPS", "fair CRPS", "PSNR dB"], rows))
    return {"files": [str(path) for path in files], "scores": scores, **record}


def many(number: int, thing: str) -> str:
    """A number of things in words: `1 frame`, `2 frames`."""
    return f"{number} {thing}" + ("s" if number != 1 else "")


def _names(files: list[Path]) -> str:
    """File names, those of many samples by the first and the last."""
    if len(files) <= 8:
        return ", ".join(path.name for path in files)
    samples = [path.name for path in files if path.name.startswith("sample_")]
    rest = [path.name for path in files if path.name not in samples]
    return ", ".join([f"{samples[0]} to {samples[-1]}", *rest])


def _scored(scores: dict[str, Any]) -> list[str]:
    return [who for who in ("model", "persistence") if who in scores]


def _cost(model: Model, request: _Request, options: SampleOptions, *, samples: int, batch: int) -> dict[str, Any]:
    """What one request will do: its windows and the network calls they take."""
    from framecast.generate import plan

    windows = plan(model.system, request.task, options)
    chunks = -(-samples // batch)
    return {
        "clip": request.label,
        "task": request.task.verb,
        "frames": len(request.task),
        "known": sum(request.task.known),
        "samples": samples,
        "windows": [_drawn(window, len(request.task)) for window in windows],
        "window_frames": max((len(window.frames) for window in windows), default=0),
        "network_calls": sum(model.system.calls(window, options) for window in windows) * chunks,
        "unlike": None if request.clip is None else model.unlike(request.clip, request.task),
        "out": str(request.out),
    }


def _drawn(window: Window, length: int) -> list[int]:
    """First and last frame that a window draws."""
    new = [i for i, known in zip(window.frames, window.known, strict=True) if not known and 0 <= i < length]
    return [min(new), max(new)] if new else []


def _cost_lines(told: dict[str, Any]) -> list[str]:
    spans = ["–".join(map(str, sorted(set(span)))) for span in told["windows"] if span]
    calls = many(told["network_calls"], "network call") if told["network_calls"] else "no network to run"
    shown = ", ".join(spans[:4]) + (", …" if len(spans) > 4 else "")
    return [
        f"{told['clip']}: {told['task']}, {told['known']} of {told['frames']} frames known, samples: {told['samples']}",
        f"{told['frames']} frames in {many(len(spans), 'window')} of {told['window_frames']} (drawing frames {shown})",
        f"{calls}; output: {told['out']}",
    ]


# ---- predict


def _predict_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="many")
    group = parser.add_argument_group("task")
    group.add_argument("--context", type=positive, metavar="N", help="known frames (default: the model's own)")
    group.add_argument("--horizon", type=positive, metavar="N", help="frames to draw (default: the model's own)")
    group.add_argument("--samples", type=positive, default=1, metavar="N", help="futures of each clip (default 1)")
    _arguments_drawing(parser)
    arguments_reading(parser)
    _arguments_writing(parser)


def _predict(args: argparse.Namespace, console: Console) -> int:
    model = load_model(args)
    context = args.context or model.context
    horizon = args.horizon or model.system.horizon(context)
    requests: list[_Request] = []
    for path in args.videos:
        clip = read_for(path, model, args, console, frames=context + horizon)
        if len(clip) < context:
            few = "1 frame" if len(clip) == 1 else f"{len(clip)} frames"
            raise ValueError(f"{path}: {few}, the context needs {context}: give a longer clip or a smaller --context.")
        draw = partial(model.predict, clip, horizon, context=context, samples=args.samples)
        taken = [request.out for request in requests]
        out = out_folder(args, name_of(path), several=len(args.videos) > 1, taken=taken)
        requests.append(_Request(path, Task.predict(context, horizon), out, draw, clip))
    return _run(model, requests, args, console)


PREDICT = Command(
    about="Continue clips: the first --context frames are given, --horizon frames are drawn. A longer horizon than the "
    "model's clip rolls out window by window. Where the clip goes on, the truth is shown and scored.",
    example="framecast predict vortex-ramvid flow.mp4 --context 4 --horizon 16 --samples 3",
    arguments=_predict_arguments,
    run=_predict,
    settings=("sample",),
)


# ---- infill


def _infill_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="one")
    group = parser.add_argument_group("task")
    group.add_argument(
        "--known", type=frame_list, required=True, metavar="I-J,K", help="known frames, from 0, inclusive"
    )
    group.add_argument("--frames", type=positive, metavar="N", help="of the clip (default: the model's clip length)")
    group.add_argument("--samples", type=positive, default=1, metavar="N", help="how many ways to fill it (default 1)")
    _arguments_drawing(parser)
    arguments_reading(parser)
    _arguments_writing(parser)


def _infill(args: argparse.Namespace, console: Console) -> int:
    model = load_model(args)
    length = args.frames or max(model.video.clip_frames, max(args.known) + 1)
    clip = read_for(args.video, model, args, console, frames=length)
    if args.frames and len(clip) < args.frames:
        raise ValueError(f"{args.video}: {len(clip)} frames, --frames asks for {args.frames}: take fewer.")
    task = Task.infill(args.known, len(clip))
    draw = partial(model.infill, clip, args.known, samples=args.samples)
    return _run(model, [_Request(args.video, task, out_folder(args, name_of(args.video)), draw, clip)], args, console)


INFILL = Command(
    about="Draw the frames of a clip that are not --known (indices from 0, ranges inclusive) from those that are.",
    example="framecast infill vortex-ramvid flow.mp4 --known 0-3,14-15 --samples 3",
    arguments=_infill_arguments,
    run=_infill,
    settings=("sample",),
)


# ---- interpolate


def _interpolate_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="one")
    group = parser.add_argument_group("task")
    group.add_argument("--factor", type=positive, default=2, metavar="N", help="how many times the rate (default 2)")
    group.add_argument("--frames", type=positive, metavar="N", help="of the clip to use (default: all)")
    group.add_argument("--samples", type=positive, default=1, metavar="N", help="how many ways (default 1)")
    _arguments_drawing(parser)
    arguments_reading(parser)
    _arguments_writing(parser)


def _interpolate(args: argparse.Namespace, console: Console) -> int:
    if args.factor < 2:
        raise UsageError(f"--factor is {args.factor}; it must be at least 2.")
    model = load_model(args)
    # as stored: it is the drawn frames in between that should come at the model's rate
    clip = read_for(args.video, model, args, console, frames=args.frames, rate="stored")
    rate, trained = clip.fps, model.video.fps
    if rate and trained and abs(rate * args.factor / trained - 1) > 0.01:
        console.note(
            f"note: the result has {rate * args.factor:g} fps, the model was trained at {trained:g} fps; "
            f"--fps {trained / args.factor:g} would give it its own."
        )
    task = Task.interpolate(len(clip), args.factor)
    draw = partial(model.interpolate, clip, args.factor, samples=args.samples)
    return _run(model, [_Request(args.video, task, out_folder(args, name_of(args.video)), draw, clip)], args, console)


INTERPOLATE = Command(
    about="Raise the frame rate of a clip of any length: --factor - 1 new frames between every two.",
    example="framecast interpolate vortex-ramvid flow.mp4 --factor 2",
    arguments=_interpolate_arguments,
    run=_interpolate,
    settings=("sample",),
)


# ---- generate


def _generate_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="none")
    group = parser.add_argument_group("task")
    group.add_argument("-n", "--samples", type=positive, default=4, metavar="N", help="clips (default 4)")
    group.add_argument("--frames", type=positive, metavar="N", help="of each (default: the model's clip length)")
    _arguments_drawing(parser)
    _arguments_writing(parser)


def _generate(args: argparse.Namespace, console: Console) -> int:
    model = load_model(args)
    frames = args.frames or model.video.clip_frames
    draw = partial(model.generate, args.samples, frames)
    return _run(model, [_Request(model.name, Task.generate(frames), out_folder(args, model.name), draw)], args, console)


GENERATE = Command(
    about="Draw new clips like those the model was trained on.",
    example="framecast generate vortex-ramvid -n 16 --frames 64",
    arguments=_generate_arguments,
    run=_generate,
    settings=("sample",),
)
