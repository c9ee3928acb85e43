# SPDX-License-Identifier: Apache-2.0
"""The commands that tell what a model makes of a clip as it is: reconstruct and score."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from framecast.cli.console import Console, table
from framecast.cli.draw import (
    argument_device,
    arguments_model,
    arguments_reading,
    load_model,
    many,
    name_of,
    out_folder,
    read_for,
)
from framecast.cli.judged import tell_figures
from framecast.cli.parsing import Command, Parser, UsageError, positive, whole
from framecast.task import UnsupportedTask

if TYPE_CHECKING:
    from framecast.evaluate.reconstructed import Reconstructed
    from framecast.generate import Model
    from framecast.metrics.features import FeatureNetwork
    from framecast.video import Clip


def _reconstruct_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="many")
    parser.add_argument(
        "--planes",
        "--levels",
        dest="views",
        type=_views,
        default=[],
        metavar="P,P",
        help="show what these parts of the code carry by themselves, too: planes xy, motion or both (pvdm), level top "
        "(video_vqvae)",
    )
    parser.add_argument("--i3d", type=Path, metavar="FILE", help="I3D weights, for R-FVD")
    parser.add_argument(
        "--i3d-eps", type=float, metavar="X", help="batch-norm epsilon of I3D weights that do not tell it"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<clip name>; nothing is overwritten")
    argument_device(parser)
    arguments_reading(parser)


def _views(text: str) -> list[str]:
    """Type of `--planes` and `--levels`."""
    return list(dict.fromkeys(text.split(",")))


def _reconstruct(args: argparse.Namespace, console: Console) -> int:
    from framecast.evaluate.reconstructed import Reconstructed

    if args.i3d_eps is not None and args.i3d is None:
        raise UsageError("--i3d-eps goes with --i3d FILE.")
    model, outs = load_model(args, verb="reconstruct"), list[Path]()
    if wrong := [view for view in args.views if view not in model.codec.views]:
        has = ", ".join(model.codec.views) or "none that can be shown alone"
        raise UsageError(f"the code of {model.name} has no part {wrong[0]!r}; it has {has}.")
    for path in args.videos:
        outs.append(out_folder(args, name_of(path), several=len(args.videos) > 1, taken=outs))
    several = Reconstructed(model.video, _i3d(args))
    piped = _looked_at(model, args, console)
    results: list[dict[str, Any]] = []
    for path, out in zip(args.videos, outs, strict=True):
        clip = piped.get(path) or read_for(path, model, args, None, frames=None)
        with console.progress(path, unit="pieces") as progress:
            made = model.reconstruct(clip, views=args.views, progress=progress)
        files = made.save(out)
        several.add(clip, made.video, unit=path)
        told = {"clip": path, "out": str(out), "files": [str(file) for file in files]}
        results.append(told | made.record | made.figures)
    _tell_reconstructed(results, console)
    console.result({"results": results, "together": _tell_together(several, console)})
    return 0


def _i3d(args: argparse.Namespace) -> FeatureNetwork | None:
    if args.i3d is None:
        return None
    from framecast.devices import pick_device
    from framecast.metrics.i3d_weights import load_i3d

    return load_i3d(args.i3d, eps=args.i3d_eps).to(pick_device(args.device))


def _looked_at(model: Model, args: argparse.Namespace, console: Console) -> dict[str, Clip]:
    """Read the beginning of every clip, so that what is wrong with one is said before any is worked on.

    Returns:
        The clip of standard input, which can be read only once.
    """
    length, piped = model.codec.frames, {}
    for path in args.videos:
        clip = read_for(path, model, args, console, frames=None if path == "-" else length)
        if len(clip) < length:
            few = "1 frame" if len(clip) == 1 else f"{len(clip)} frames"
            raise ValueError(f"{path}: {few}, but {model.name} encodes {length} at once: give a longer clip.")
        if differs := model.unlike(clip[:length]):
            console.note(f"note: {path}: {differs}")
        if path == "-":
            piped[path] = clip
    return piped


def _tell_reconstructed(results: list[dict[str, Any]], console: Console) -> None:
    views, more = list(results[0]["psnr_only"]), list(results[0]["of_codes"])
    bits = results[0]["code_bits"] / results[0]["code_values"]
    lossy = any(r["psnr_stored"] != r["psnr"] for r in results)  # what a file would keep of the code
    head = ["clip", "frames", "PSNR dB", *([f"at {bits:g} bits a value"] if lossy else [])]
    head += [*(f"{view} only" for view in views), *(name.replace("_", " ") for name in more)]
    head += ["values", "bits", "saved", "bits a frame", "written to"]
    rows = [
        [r["clip"], r["frames"], r["psnr"], *([r["psnr_stored"]] if lossy else []),
         *(r["psnr_only"][view] for view in views), *(r["of_codes"][name] for name in more), f"{r['ratio']:.4g}:1",
         f"{r['ratio_bits']:.4g}:1", f"{r['percent_saved']:.2f} %", float(r["bits_per_frame"]), r["out"]]
        for r in results
    ]  # fmt: skip
    console.say(table(head, rows))
    kept = ", also with code values kept in so many bits" if lossy else f"; a code value is kept in {bits:g} bits"
    console.say(
        f"(PSNR over all 8-bit frames of a clip{kept}; values: pixel values to code values; bits: of 8-bit frames to "
        "those of the code; saved: of the bits of 8-bit frames)"
    )
    for part in results[0].get("untrained", []):
        console.note(f"note: {results[0]['model']} has no trained {part} yet: it can reconstruct, and draws nothing.")


def _tell_together(several: Reconstructed, console: Console) -> dict[str, Any]:
    """All clips together, as a set: the figures by name, or why there are none."""
    try:
        found = several.figures()
    except ValueError as error:
        console.say(str(error))
        return {"missing": str(error)}
    told = {name: figure.plain() for name, figure in found.items()}
    console.say(f"all together, {many(several.windows, 'window')} of {several.frames} frames beside the originals:")
    tell_figures(told, console)
    if several.i3d is None:
        console.say("(rf3d-v1 is no R-FVD and does not compare with published ones: those take --i3d FILE)")
    return told


RECONSTRUCT = Command(
    about="Encode and decode clips with a model that has a codec: how good that is (PSNR), and how small the code. All "
    "clips together also have a distance between reconstructions and originals, cut into windows of the model's clip "
    "length: R-FVD with the weights of I3D, else that of random filters (rf3d-v1), which is another number. Of a model "
    "only the codec need be trained.",
    example="framecast reconstruct MODEL clip.mp4 --planes xy,motion\nframecast reconstruct RUN clips/*.mp4 --i3d FILE",
    arguments=_reconstruct_arguments,
    run=_reconstruct,
)


def _score_arguments(parser: Parser) -> None:
    arguments_model(parser, clips="many")
    parser.add_argument(
        "--context",
        type=_context,
        metavar="N",
        help="leading frames that are given (default: as few as the model can do with, none, 1 or a few)",
    )
    parser.add_argument(
        "--levels",
        type=_levels,
        metavar="N",
        help="noise levels visited, or all; more take longer and bound better (default: the model's own; scores of "
        "codes have none)",
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
    (_tell_code_scores if "uniform" in results[0] else _tell_scores)(results, outs, console)
    console.result({"results": results})
    return 0


def _tell_scores(results: list[dict[str, Any]], outs: list[Path], console: Console) -> None:
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


def _tell_code_scores(results: list[dict[str, Any]], outs: list[Path], console: Console) -> None:
    uniform: dict[str, float] = results[0]["uniform"]
    rows = [
        [r["clip"], len(r["known_frames"]), len(r["frames"]), r["bits_per_code"], *r["bits_per_code_of"].values(),
         r["bits_per_clip"], r["least_likely"], max(r["bits"]), _least_likely_code(r["least_likely_codes"]), str(out)]
        for r, out in zip(results, outs, strict=True)
    ]  # fmt: skip
    head = ["clip", "given", "frames", "bits per code", *uniform, "bits of all codes", "least likely frame", "its bits"]
    head += ["least likely code"]
    console.say(table([*head, "written to"], rows))
    without = " or ".join(dict.fromkeys(f"{bits:g}" for bits in uniform.values()))
    console.say(
        f"The likelihood of codes, exactly, lower is likelier; a code costs {without} bits where all are as likely. No "
        "likelihood of pixels, and none that compares with another model's: what the tokenizer does not keep is not "
        "seen."
    )
    for note in results[0]["notes"]:
        console.note(f"note: {note}")


def _least_likely_code(codes: dict[str, dict[str, Any]]) -> str:
    level, code = max(codes.items(), key=lambda item: item[1]["bits"])
    first, last = code["frames"]
    return f"{level}, frames {first}-{last}, row {code['row']}, column {code['column']}: {code['bits']:.1f}"


SCORE = Command(
    about="How likely a model finds clips, frame by frame: an upper bound on -log2 of their probability, in bits per "
    "dimension (pixel and channel), lower is likelier. Values are told to a bin of a 255th of the value range: for "
    "8-bit clips the grey level, for float clips an interval around the value (8 bits: no better than no model). It "
    "finds frames that stand out from clips of the model's own kind; it does not tell how well a model forecasts, and "
    "compares only clips of one size, rate and range under one model and one number of levels. Frames of a window are "
    "scored together, later windows given true frames before them; a model that draws frame after frame (rvd) scores "
    "every frame by itself, given all true frames before it, of which it needs 1. Of a model that draws codes "
    "(video_vqvae) it is the likelihood of the codes, not of pixels, exactly and no bound, in bits per code, and a map "
    "of every code's bits shows where a clip is odd. For models with a likelihood.",
    example="framecast score vortex-ramvid flow.npz --context 4\nframecast score MODEL clip.mp4 --levels all --out DIR",
    arguments=_score_arguments,
    run=_score,
)
