# SPDX-License-Identifier: Apache-2.0
"""The commands that tell what a model makes of a clip as it is: reconstruct and score."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from framecast.cli.console import Console, table
from framecast.cli.draw import (
    argument_device,
    arguments_model,
    arguments_reading,
    load_model,
    name_of,
    out_folder,
    read_for,
)
from framecast.cli.parsing import Command, Parser, positive, whole
from framecast.task import UnsupportedTask


def _reconstruct_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="many")
    argument_device(parser)
    arguments_reading(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<clip name>; nothing is overwritten")


def _reconstruct(args: argparse.Namespace, console: Console) -> int:
    model, results, outs = load_model(args), [], list[Path]()
    for path in args.videos:
        outs.append(out_folder(args, name_of(path), several=len(args.videos) > 1, taken=outs))
    clips = [read_for(path, model, args, console, frames=None) for path in args.videos]  # all, before any is worked on
    for path, clip, out in zip(args.videos, clips, outs, strict=True):
        made = model.reconstruct(clip)
        files = made.save(out)
        scores = made.scores()
        assert scores is not None
        results.append({"clip": path, "scores": scores, "files": [str(file) for file in files], **made.record})
    rows = [[r["clip"], r["scores"]["model"]["psnr"], r["bits_per_frame"]] for r in results]
    console.say(table(["clip", "PSNR dB", "bits per frame"], rows))
    console.result({"results": results})
    return 0


RECONSTRUCT = Command(
    about="Encode and decode clips with a model that has a codec; prints PSNR and the bits of the code.",
    example="framecast reconstruct MODEL clip.mp4",
    arguments=_reconstruct_arguments,
    run=_reconstruct,
)


def _score_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="many")
    parser.add_argument(
        "--context",
        type=_context,
        metavar="N",
        help="leading frames that are given (default: as few as the model can do with, none or 1)",
    )
    parser.add_argument(
        "--levels",
        type=_levels,
        metavar="N",
        help="noise levels visited, or all; more take longer and bound better (default: the model's own)",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the noise of the estimate (default 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<clip name>; nothing is overwritten")
    argument_device(parser)
    arguments_reading(parser)


_ENOUGH = 20  # levels below which bits are far above what more of them give


def _context(text: str) -> int:
    """Type of `--context`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of frames, from 0 on")
    return int(text)


def _levels(text: str) -> int | Literal["all"]:
    """Type of `--levels`."""
    return "all" if text == "all" else positive(text)


def _score(args: argparse.Namespace, console: Console) -> int:
    model, results, outs = load_model(args), [], list[Path]()
    for path in args.videos:
        outs.append(out_folder(args, name_of(path), several=len(args.videos) > 1, taken=outs))
    clips = [read_for(path, model, args, console, frames=None) for path in args.videos]
    for path, clip in zip(args.videos, clips, strict=True):  # all, before any is worked on
        try:
            model.given_to_score(len(clip), args.context)
        except UnsupportedTask:
            raise
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for path, clip, out in zip(args.videos, clips, outs, strict=True):
        with console.progress(path, unit="network calls") as progress:
            found = model.score(clip, context=args.context, levels=args.levels, seed=args.seed, progress=progress)
        files = found.save(out)
        results.append({"clip": path, "files": [str(file) for file in files], **found.plain()})
    rows = [
        [r["clip"], len(r["frames"]), r["bits_per_dimension"], r["least_likely"], max(r["bits"]), str(out)]
        for r, out in zip(results, outs, strict=True)
    ]
    console.say(table(["clip", "frames", "bits per dimension", "least likely frame", "its bits", "written to"], rows))
    for width in sorted({r["bin"] for r in results}):
        console.say(
            f"Upper bounds, lower is likelier; values are told to a bin {width:g} wide (a 255th of the value range); "
            f"{results[0]['levels']} noise levels visited, of {results[0]['most_levels']} that tell anything."
        )
    if any(r["levels"] < _ENOUGH <= r["most_levels"] for r in results):
        console.note(
            f"so few levels leave the bound far above the truth, at worst by thousands of bits: take {_ENOUGH} or more."
        )
    console.result({"results": results})
    return 0


SCORE = Command(
    about="How likely a model finds clips, frame by frame: an upper bound on -log2 of their probability, in bits per "
    "dimension (pixel and channel), lower is likelier. Values are told to a bin of a 255th of the value range: for "
    "8-bit clips the grey level, for float clips an interval around the value (8 bits: no better than no model). It "
    "finds frames that stand out from clips of the model's own kind; it does not tell how well a model forecasts, and "
    "compares only clips of one size, rate and range under one model and one number of levels. Frames of a window are "
    "scored together, later windows given true frames before them; a model that draws frame after frame (rvd) scores "
    "every frame by itself, given all true frames before it, of which it needs 1. For models with a likelihood.",
    example="framecast score vortex-ramvid flow.npz --context 4\nframecast score MODEL clip.mp4 --levels all --out DIR",
    arguments=_score_arguments,
    run=_score,
)
