# SPDX-License-Identifier: Apache-2.0
"""The commands about folders of clips: check one, show what a model will see of it, simulate one."""

from __future__ import annotations

import argparse
from pathlib import Path

from framecast.cli.console import Console, duration
from framecast.cli.draw import out_folder
from framecast.cli.parsing import Command, Parser, apply_settings, positive, whole
from framecast.experiment import DataConfig

# names only: `framecast.data.simulate.sets` has the sets, which needs more time to load
SETS = ("vortex16", "vortex32", "vortex64", "vortex128", "simulation128", "bouncing32", "bouncing64")


def _arguments_cutting(parser: Parser) -> None:
    parser.add_argument("dir", metavar="DIR", help="folder of clips, searched recursively")
    parser.add_argument("--clip-frames", type=positive, default=16, metavar="N", help="of a training clip (default 16)")
    parser.add_argument("--size", metavar="N|H,W", help="frame side in pixels (default 64)")
    parser.add_argument("--fps", metavar="F", help="read at this rate (default: as stored)")
    parser.add_argument("--stride", metavar="N", help="source frames per clip frame (default 1)")
    parser.add_argument("--data.KEY", metavar="VALUE", dest="_", help="any other setting, as in training")


def _config(args: argparse.Namespace) -> DataConfig:
    short = {"data.dir": args.dir, "data.size": args.size, "data.fps": args.fps, "data.stride": args.stride}
    given = [(key, text) for key, text in short.items() if text is not None]
    return apply_settings(DataConfig(), [*given, *args.settings], where="data")


def _check(args: argparse.Namespace, console: Console) -> int:
    from framecast.data.check import check_folder

    with console.progress(f"looking through {args.dir}", unit="files") as progress:
        report = check_folder(_config(args), clip_frames=args.clip_frames, progress=progress)
    for line in report.lines():
        console.say(line)
    console.result(report.plain())
    return 0 if report.sound else 3


CHECK = Command(
    about="List what lies in a folder of clips: rates and sizes, how many training clips a setting gives, and files "
    "that are broken, too short, without motion or there twice. Too short is below --clip-frames; systems pad clips "
    "that are not much shorter. Exit code 3 if the settings leave no clip or a file cannot be read.",
    example="framecast data check my_clips/ --size 64 --clip-frames 16",
    arguments=_arguments_cutting,
    run=_check,
    settings=("data",),
)


def _show_arguments(parser: Parser) -> None:
    _arguments_cutting(parser)
    parser.add_argument("-n", type=positive, default=8, metavar="N", help="clips (default 8)")
    parser.add_argument("--seed", type=whole, default=0, help="which clips (default 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/<folder name>; nothing is overwritten")


def _show(args: argparse.Namespace, console: Console) -> int:
    from framecast.data.check import pick
    from framecast.data.clips import open_streams
    from framecast.data.image_file import write_image
    from framecast.data.media import Row, grid, save_view, strip
    from framecast.draws import mix
    from framecast.video import Clip

    config, frames = _config(args), args.clip_frames
    out = out_folder(args, Path(args.dir).resolve().name)
    with console.progress(f"looking through {args.dir}", unit="files") as progress:
        seed = mix("clips", args.seed)  # as in training
        stream, _ = open_streams(config, clip_frames=frames, min_frames=frames, seed=seed, progress=progress)
    fps = stream.video.fps
    shown = pick(stream, args.n)
    rows = [Row(f"{i} {s.window.path}", Clip(s.video, fps=fps, value_range=(-1.0, 1.0))) for i, s in enumerate(shown)]
    comment = f"Training clips of {args.dir} as a model sees them."
    files = [
        write_image(out / "sheet.png", strip(rows), comment=comment),
        save_view(out / "clips.webp", grid(rows, columns=4), comment=comment),
    ]
    for i, s in enumerate(shown):
        console.say(f"{i}  {s.window.path}  frames {s.window.frames[0]}–{s.window.frames[-1]}")
    console.say(f"{out}: {', '.join(path.name for path in files)}")
    clips = [{"path": s.window.path, "frames": list(s.window.frames)} for s in shown]
    console.result({"out": str(out), "files": [str(path) for path in files], "clips": clips})
    return 0


SHOW = Command(
    about="A sheet and an animation of clips exactly as a model will see them in training: resized, cut, at its rate.",
    example="framecast data show my_clips/ --size 64 --fps 10 -n 12",
    arguments=_show_arguments,
    run=_show,
    settings=("data",),
)


def _simulate_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=f"which set: {', '.join(SETS)}")
    parser.add_argument("out", metavar="DIR", type=Path, help="folder to write to; an unfinished one is completed")
    parser.add_argument("--split", action="append", metavar="S", help="train, validation or test (default: all)")
    parser.add_argument("--flows", type=positive, metavar="N", help="clips of each split (default: the set's own)")
    parser.add_argument("--frames", type=positive, metavar="N", help="of each clip (default: the set's own)")
    parser.add_argument("--seed", type=whole, default=0, help="of the whole set (default 0)")
    parser.add_argument("--workers", type=positive, metavar="N", help="flows computed at once (default: all cores)")
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="B",
        help="numpy, numba (compiled), or auto: numba where installed (default); no matter for the result",
    )


def _simulate(args: argparse.Namespace, console: Console) -> int:
    from framecast.data.simulate.sets import simulate

    try:
        with console.progress(f"simulating {args.name}", unit="clips") as progress:
            made = simulate(
                args.name,
                args.out,
                splits=args.split,
                flows=args.flows,
                frames=args.frames,
                seed=args.seed,
                backend=args.backend,
                workers=args.workers,
                progress=progress,
            )
    except KeyboardInterrupt:
        console.note(f"Stopped. What is finished is kept; the same command completes {args.out}.")
        return 130
    kept = f", {made.kept} were there already" if made.kept else ""
    console.say(f"{made.folder}: {made.written} clips written in {duration(made.seconds)}{kept}")
    console.result({"out": str(made.folder), "written": made.written, "kept": made.kept, "seconds": made.seconds})
    return 0


SIMULATE = Command(
    about="Write a data set of simulated flows past a disc (vortex) or of bouncing digits, in three splits, or the "
    "long runs of the RVD paper's Simulation set (simulation128: 10,000 frames, 1.3 GB). An interrupted command goes "
    "on where it stopped when it is given again.",
    example="framecast data simulate vortex32 data/vortex32\n"
    "framecast data simulate vortex16 data/few --split train --flows 8 --frames 60",
    arguments=_simulate_arguments,
    run=_simulate,
)
