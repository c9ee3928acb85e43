# SPDX-License-Identifier: Apache-2.0
"""The commands that show settings as YAML, each with the comment that stands beside it in the source."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import tokenize
from pathlib import Path
from typing import Any

from framecast.cli.console import Console
from framecast.cli.parsing import Command, Parser
from framecast.cli.train import experiment_of
from framecast.experiment import to_plain, to_yaml
from framecast.systems import SYSTEMS, entry, presets, resolve


def commented(record: Any, *, indent: str = "") -> str:
    """A settings record as YAML, every setting with what its source says about it."""
    notes = field_comments(type(record))
    lines: list[str] = []
    for field in dataclasses.fields(record):
        value, note = getattr(record, field.name), notes.get(field.name, "")
        comment = f"  # {note}" if note else ""
        if dataclasses.is_dataclass(value):
            lines += [f"{indent}{field.name}:{comment}", commented(value, indent=indent + "  ")]
            continue
        first, *rest = to_yaml({field.name: value}).splitlines()
        if rest and not first.endswith(":"):  # a comment would end a text that goes on
            lines += [f"{indent}# {note}"] if note else []
            comment = ""
        lines += [indent + first + comment, *(indent + line for line in rest)]
    return "\n".join(lines)


def field_comments(kind: type) -> dict[str, str]:
    """Field -> its comment in the source, of a settings class and those it extends."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        path = inspect.getsourcefile(cls) if "__dataclass_fields__" in vars(cls) else None
        if path is None:
            continue
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        comments = _comments(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        lines = range(item.lineno, (item.end_lineno or item.lineno) + 1)
                        found[item.target.id] = " ".join(comments[i] for i in lines if i in comments)
    return found


def _comments(path: str) -> dict[int, str]:
    """Line -> the comment on it."""
    with tokenize.open(path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def _show_arguments(parser: Parser) -> None:
    parser.add_argument(
        "what", nargs="?", metavar="PRESET|RUN", help="ramvid/bair64, …, a run folder, or a YAML file; none: a list"
    )


def _show(args: argparse.Namespace, console: Console) -> int:
    if args.what is None:
        console.say("\n".join(presets()))
        console.result({"presets": presets()})
        return 0
    path = Path(args.what)
    inside = path / "config.yaml"
    experiment = experiment_of(str(inside) if path.is_dir() and inside.is_file() else args.what)
    console.say(commented(experiment))
    console.result(to_plain(experiment))
    return 0


SHOW = Command(
    about="The settings of a published or small experiment, or those a run was trained with, as YAML; without a name, "
    "the names of all experiments.",
    example="framecast config show ramvid/bair64 > my.yaml",
    arguments=_show_arguments,
    run=_show,
)


def _defaults_arguments(parser: Parser) -> None:
    parser.add_argument("system", metavar="SYSTEM", help=", ".join(SYSTEMS))


def _defaults(args: argparse.Namespace, console: Console) -> int:
    experiment = resolve(entry(args.system).experiment)()
    console.say(commented(experiment))
    console.result(to_plain(experiment))
    return 0


DEFAULTS = Command(
    about="Every setting of a system with its default and what it means, as YAML to begin a file of your own with.",
    example="framecast config defaults ramvid > my.yaml",
    arguments=_defaults_arguments,
    run=_defaults,
)
