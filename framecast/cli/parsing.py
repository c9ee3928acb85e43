# SPDX-License-Identifier: Apache-2.0
"""Words of a command line into plain values; misspelt ones into a sentence that names the nearest.

Commands describe their fixed flags on a `Parser`; settings of a system (`--stages.diffusion.batch 4`) are typed by the
system's own records, with jsonargparse, which is loaded only when there are any.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from framecast.experiment import from_plain, from_yaml, nearest, to_plain

if TYPE_CHECKING:
    from framecast.cli.console import Console

T = TypeVar("T")
Settings = list[tuple[str, str]]  # dotted key, text of the value


class UsageError(ValueError):
    """The command line itself is wrong: exit code 2."""


@dataclass(frozen=True)
class Command:
    """One command: what help says about it, its flags, and what it does (returning the exit code)."""

    about: str  # one or two sentences
    example: str  # one complete command line, or several
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace, Console], int]
    settings: tuple[str, ...] = ()  # first words of dotted settings it takes, such as "sample"


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are UsageErrors."""

    def __init__(self, name: str, command: Command):
        super().__init__(
            prog=f"framecast {name}",
            description=textwrap.fill(command.about, width=min(100, shutil.get_terminal_size().columns - 2)),
            epilog="example:\n" + "\n".join(f"  {line}" for line in command.example.splitlines()),
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        words = message[:1].upper() + message[1:]
        end = "" if words.endswith(("?", ".")) else "."
        raise UsageError(f"{self.prog}: {words}{end} See {self.prog} --help.")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)


def parse(name: str, command: Command, words: Sequence[str]) -> argparse.Namespace:
    """The namespace of a command's words; dotted settings are left in `settings`, in the order given.

    Raises:
        UsageError: an unknown flag, a missing value, a value of the wrong kind.
    """
    parser = Parser(name, command)
    command.arguments(parser)
    talk = parser.add_argument_group("talk")
    talk.add_argument("-q", "--quiet", action="store_true", help="print results only")
    talk.add_argument("-v", "--verbose", action="store_true", help="print more, and tracebacks of errors")
    talk.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    fixed, settings = _split_settings(words, command.settings)
    args, unknown = parser.parse_known_args(_negatives_joined(fixed))
    for word in unknown:
        flag = word.partition("=")[0]
        if flag.startswith("-"):
            known = [o.removeprefix("--") for o in parser._option_string_actions if o.startswith("--")]
            guess = nearest(flag.lstrip("-"), known).replace("mean ", "mean --")
            if command.settings and not guess:
                heads = ", ".join(f"--{head}.KEY" for head in command.settings)
                guess = f" Further settings are written {heads}."
            raise UsageError(f"{flag} is not an option of framecast {name}.{guess} See framecast {name} --help.")
        raise UsageError(f"framecast {name} takes no further word {word!r}. See framecast {name} --help.")
    args.settings = settings
    return args


def _negatives_joined(words: Sequence[str]) -> list[str]:
    """Words in which a value such as -1,1 is written on to its flag: by itself it would be taken for one.

    Example:
        >>> _negatives_joined(["flow.npy", "--value-range", "-1,1", "--gray"])
        ['flow.npy', '--value-range=-1,1', '--gray']
    """
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and joined and re.fullmatch(r"--[^=]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _split_settings(words: Sequence[str], heads: Sequence[str]) -> tuple[list[str], Settings]:
    """Words without the dotted settings, and those."""
    rest: list[str] = []
    settings: Settings = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        head, dot, _ = key.partition(".")
        if not (word.startswith("--") and dot and heads):
            rest.append(word)
            continue
        if head not in heads:
            raise UsageError(
                f"--{key} is not a setting here.{nearest(head, heads)} They begin with: {', '.join(heads)}."
            )
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise UsageError(f"--{key} needs a value, for example --{key}=1.")
            value = queue.pop(0)
        settings.append((key, value))
    return rest, settings


def apply_settings(record: T, settings: Settings, *, where: str = "") -> T:
    """A settings record with these keys changed.

    Args:
        record: an experiment, or a part of one.
        settings: dotted keys within it (prefixed by `where`), and values as typed.
        where: what the keys begin with when `record` is only a part, such as `sample`.

    Raises:
        UsageError: no such setting (the nearest is named), or not a value for it.

    Example:
        >>> from framecast.systems.ramvid.config import RaMViDExperiment
        >>> changed = apply_settings(RaMViDExperiment(), [("data.size", "48,64"), ("sample.steps", "ddim50")])
        >>> changed.data.size, changed.sample.steps
        ((48, 64), 'ddim50')
    """
    for key, text in settings:
        inner = key.removeprefix(f"{where}.") if where else key
        known = list(_keys(to_plain(record)))
        if inner not in known:
            full = [f"{where}.{k}" if where else k for k in known]
            last = [k for k in full if k.rpartition(".")[2] == key.rpartition(".")[2]]
            guess = f" Did you mean {last[0]}?" if last else nearest(key, full)
            raise UsageError(f"{key} is not a setting.{guess} All of them: framecast config defaults SYSTEM.")
        record = _typed(record, inner, text, where=where)
    return record


def _keys(plain: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all values."""
    found: list[str] = []
    for key, value in plain.items():
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return found


def _typed(record: T, key: str, text: str, *, where: str) -> T:
    """`record` with one value read by its type; `48,64` is tried as a list where the plain text does not fit."""
    import jsonargparse

    kind: Any = type(record)
    for spelling in (text, f"[{text}]"):
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind)
        parser.set_defaults(to_plain(record))
        try:
            return from_plain(kind, parser.parse_args([f"--{key}={spelling}"]).as_dict(), where=where)
        except jsonargparse.ArgumentError:
            continue
    try:  # our own words for what is wrong with it
        value = from_yaml(f"value: {text}")["value"]
        return from_plain(kind, put(to_plain(record), key, value), where=where)
    except ValueError as error:
        raise UsageError(str(error)) from None


def put(plain: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Nested dicts with the value at a dotted key replaced.

    Example:
        >>> put({"data": {"size": 64, "fps": 10}}, "data.size", 32)
        {'data': {'size': 32, 'fps': 10}}
    """
    head, dot, rest = key.partition(".")
    return {**plain, head: put(plain.get(head, {}), rest, value) if dot else value}


def sections(kind: type) -> tuple[str, ...]:
    """Names of the groups of settings of an experiment class, `data`, `model`, ….

    Example:
        >>> from framecast.experiment import Experiment
        >>> sections(Experiment)
        ('system', 'data', 'source', 'published')
    """
    return tuple(f.name for f in dataclasses.fields(kind))


def frame_list(text: str) -> list[int]:
    """Type of flags like `--known 0-3,14-15`."""
    from framecast.task import parse_frames

    try:
        return parse_frames(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Type of flags that count something."""
    from framecast.task import MOST_FRAMES

    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    if int(text) > MOST_FRAMES:
        raise argparse.ArgumentTypeError(f"{text!r} is above {MOST_FRAMES:,}, the most that can be asked for")
    return int(text)


def whole(text: str) -> int:
    """Type of flags that take any whole number, such as seeds."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def first_frame(text: str) -> int:
    """Type of `--start`."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not the number of a frame, counted from 0")


def above_zero(text: str) -> float:
    """Type of flags like `--fps 12.5`."""
    if (number := _number(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def two_numbers(text: str) -> tuple[float, float]:
    """Type of flags like `--value-range 0,1`."""
    low, comma, high = text.partition(",")
    if comma and _number(low) < _number(high):
        return float(low), float(high)
    raise argparse.ArgumentTypeError(f"{text!r} is not two numbers, the smaller one first; write for example 0,1")


def _number(text: str) -> float:
    """A finite number, or nan, which is neither above nor below anything."""
    try:
        return float(text) if math.isfinite(float(text)) else math.nan
    except ValueError:
        return math.nan


def words_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Type of flags that take several of `choices`, separated by commas."""

    def read(text: str) -> list[str]:
        found = [word.strip() for word in text.split(",") if word.strip()]
        for word in found:
            if word not in choices:
                raise argparse.ArgumentTypeError(
                    f"{word!r} is not one of {', '.join(choices)}.{nearest(word, choices)}"
                )
        return found

    return read
