# SPDX-License-Identifier: Apache-2.0
"""The entry of `framecast`: a table of commands, and what becomes of errors.

Only the module of the command asked for is imported, and none of them imports torch before its words are parsed.
Exit codes: 0 done, 1 could not, 2 wrong usage, 3 a check failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from framecast import __version__
from framecast.cli.console import Console
from framecast.cli.parsing import Command, UsageError, parse
from framecast.experiment import nearest
from framecast.systems import resolve

# command -> where it is defined, and its line in the table of help
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:DEMO", "Forecast simulated flows with the bundled model: CPU, under a minute, no download."),
    "predict": ("draw:PREDICT", "Continue clips: given their first frames, draw possible futures."),
    "infill": ("draw:INFILL", "Draw the missing frames of a clip from those that are known."),
    "interpolate": ("draw:INTERPOLATE", "Raise the frame rate of a clip."),
    "generate": ("draw:GENERATE", "Draw new clips from nothing."),
    "reconstruct": ("measure:RECONSTRUCT", "Encode and decode clips: what a model's codec keeps."),
    "score": ("measure:SCORE", "How likely a model finds clips, in bits per dimension."),
    "train": ("train:TRAIN", "Train a model on a folder of clips; stop and resume exactly."),
    "evaluate": ("evaluate:EVALUATE", "Judge a model by a protocol, beside the simple forecasts."),
    "compare": ("report:COMPARE", "Results of one protocol side by side, with paired intervals and a video."),
    "report": ("report:REPORT", "One page about results and training runs, with curves, tables and videos."),
    "samplers": ("evaluate:SAMPLERS", "Compare samplers and step counts on a model: quality beside cost."),
    "data check": ("data:CHECK", "List what lies in a folder: usable, short, broken and duplicate files."),
    "data show": ("data:SHOW", "A sheet and an animation of clips as the model will see them."),
    "data simulate": ("data:SIMULATE", "Write a data set of simulated flows."),
    "models list": ("models:LIST", "Models at hand: bundled ones and those in local runs."),
    "models info": ("models:INFO", "What a model takes, what it can do and where it comes from."),
    "models import": ("models:IMPORT", "Convert a published checkpoint to a model folder and verify it."),
    "models export": ("models:EXPORT", "Copy a model to a folder of its own, to keep or hand on."),
    "models push": ("models:PUSH", "Upload a model to the hub."),
    "models pull": ("models:PULL", "Download a model from the hub to a folder here."),
    "config show": ("config:SHOW", "The settings of a preset or of a run, as YAML."),
    "config defaults": ("config:DEFAULTS", "Every setting of a system with its default and what it means."),
    "bench": ("bench:BENCH", "What networks, sampling, reading and simulating cost on this machine."),
    "efficiency": (
        "efficiency:EFFICIENCY",
        "Systems side by side at one size: cost of a clip, largest training batch.",
    ),
    "doctor": ("doctor:DOCTOR", "Versions, devices, decoders and write access, in one block to paste."),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors become one sentence on stderr."""
    words = list(sys.argv[1:] if words is None else words)
    verbose = "-v" in words or "--verbose" in words
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output has gone; keep Python from complaining about it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if verbose:
            traceback.print_exc()
        print(f"error: {_sentence(error, verbose)}", file=sys.stderr)
        return 1


def _sentence(error: Exception, verbose: bool) -> str:
    """One sentence for an error; those that are not ours to expect say that they are a bug."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    if isinstance(error, (ValueError, OSError)):
        return " ".join(str(error).split())
    # of the GPU; of numpy and Python; of the processor, where torch has no class for it
    full = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    if full or "DefaultCPUAllocator" in str(error):
        return "there is no memory left for this batch: lower --batch, or use another --device."
    how = "" if verbose else " Run the same command with -v for the traceback."
    return f"this is a bug in framecast ({type(error).__name__}: {error}).{how}"


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"framecast {__version__}")
        return 0
    name, rest = _command(words)
    if name not in COMMANDS:  # a group
        print(_overview(name))
        return 0 if rest else 2
    command: Command = resolve(f"framecast.cli.{COMMANDS[name][0]}")
    try:
        args = parse(name, command, rest)
    except SystemExit as done:  # --help
        return int(done.code or 0)
    if not args.verbose:
        import warnings

        warnings.filterwarnings("ignore")
    return command.run(args, Console(quiet=args.quiet, verbose=args.verbose, json=args.json))


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command meant and the words after it; a group alone comes back by its own name."""
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    first = words[0]
    if first in COMMANDS:
        return first, words[1:]
    if first not in groups:
        known = [*COMMANDS, *groups]
        raise UsageError(f"{first!r} is not a command.{nearest(first, known)} See framecast --help.")
    members = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
    if len(words) < 2 or words[1] in ("-h", "--help"):
        return first, words[1:]
    if words[1] not in members:
        guess = nearest(words[1], members) or f" Commands: {', '.join(members)}."
        raise UsageError(f"framecast {first} has no command {words[1]!r}.{guess}")
    return f"{first} {words[1]}", words[2:]


def _overview(group: str = "") -> str:
    """The table of commands, or of one group of them."""
    rows = [(name, text) for name, (_, text) in COMMANDS.items() if not group or name.startswith(f"{group} ")]
    width = max(len(name) for name, _ in rows)
    lines = ["framecast: given some frames of a clip, draw the others.", ""] if not group else []
    lines += [f"usage: framecast {group + ' ' if group else ''}COMMAND …", ""]
    lines += [f"  {name.ljust(width)}  {text}" for name, text in rows]
    lines += ["", f"framecast {group + ' ' if group else ''}COMMAND --help tells the rest."]
    if not group:
        lines += ["", "first steps:", "  framecast demo", "  framecast predict MODEL clip.mp4 --horizon 16 --samples 3"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
