# SPDX-License-Identifier: Apache-2.0
"""The commands that tell what a model makes of a clip as it is: reconstruct and score."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def _reconstruct_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="many")
    argument_device(parser)
    arguments_reading(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<clip name>; nothing is overwritten")


def _reconstruct(args: argparse.Namespace, console: Console) -> int:
    model, results, outs = load_model(args), [], list[Path]()
    for path in args.videos:
        outs.append(out_folder(args, name_of(path), several=len(args.videos) > 1, taken=outs))
    for path, out in zip(args.videos, outs, strict=True):
        made = model.reconstruct(read_for(path, model, args, console, frames=None))
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
    parser.add_argument("--context", type=positive, metavar="N", help="leading frames that are given (default: none)")
    parser.add_argument("--seed", type=whole, default=0, help="of estimates that draw (default 0)")
    argument_device(parser)
    arguments_reading(parser)


def _score(args: argparse.Namespace, console: Console) -> int:
    model, results = load_model(args), []
    for path in args.videos:
        clip = read_for(path, model, args, console, frames=None)
        bits = model.score(clip, context=args.context or 0, seed=args.seed)
        results.append({"clip": path, "bits_per_dimension": sum(bits) / len(bits), "frames": bits})
    console.say(table(["clip", "bits per dimension"], [[r["clip"], r["bits_per_dimension"]] for r in results]))
    console.result({"results": results})
    return 0


SCORE = Command(
    about="How likely a model finds clips, in bits per dimension (lower is likelier); for models with a likelihood.",
    example="framecast score MODEL clip.mp4 --context 4",
    arguments=_score_arguments,
    run=_score,
)
