# SPDX-License-Identifier: Apache-2.0
"""Settings as frozen records of plain values: what a run is, without torch.

A system's `config.py` composes these into its own experiment (see `framecast.systems.ramvid.config`).
`to_plain` and `from_plain` carry any such record through JSON or YAML and name a misspelt key.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$")  # as YAML 1.2 writes it with an exponent


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """The clips a model was made for."""

    channels: int  # 1 grey, 3 RGB, any other number for arrays; 0: any (simple forecasts), as is height or width of 0
    height: int  # pixels
    width: int  # pixels
    clip_frames: int  # frames the network sees at once
    fps: float | None = None  # frames per second of those frames; None: not known or not a matter of time
    value_range: tuple[float, float] = (0.0, 255.0)  # data values that stand for -1 and 1

    def takes(self, channels: int, height: int, width: int) -> bool:
        """Whether frames are of this kind.

        Example:
            >>> VideoSpec(channels=1, height=0, width=0, clip_frames=16).takes(1, 48, 64)
            True
        """
        wanted = (self.channels, self.height, self.width)
        return all(want in (0, have) for want, have in zip(wanted, (channels, height, width)))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where training clips come from and how they are cut."""

    dir: str = ""  # folder of videos, frame folders and arrays, searched recursively
    channels: int = 3  # 1 grey, 3 RGB, other numbers only for arrays that have them
    size: int | tuple[int, int] = 64  # side, or height and width, in pixels: short side resized, centre cropped
    fps: float | None = None  # resample to this rate by time stamp; None: frames as stored
    stride: int = 1  # source frames per clip frame (after `fps`)
    spacing: int = 1  # frames between the starts of two neighbouring training windows of a file
    validation: float = 0.1  # share held out
    hold_out: Literal["files", "ends"] = "files"  # whole files, by a hash of their names, or the end of every file
    crop: Literal["center", "random"] = "center"  # where the square is cut
    flip: bool = False  # mirror half of the clips left to right
    value_range: tuple[float, float] | None = None  # of float arrays; None: refuse floats
    allow_mixed_fps: bool = False  # train on files of unlike frame rates as they are
    workers: int = 0  # reading processes per device; 0 reads in the main process
    cache: Literal["memory", "none"] = "memory"  # keep decoded small files in memory


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """One optimiser group."""

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-4  # learning rate at its height
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # greatest gradient norm; 0 leaves gradients alone
    warmup_steps: int = 0  # the rate rises linearly from 0 over these optimiser steps
    schedule: Literal["constant", "linear", "cosine", "step", "time_based"] = "constant"
    decay_steps: int = 0  # linear, cosine: steps to the final rate, 0 means max_steps; step: steps per drop
    decay: float = 0.0  # linear, cosine: final share of lr; step: factor per drop; time_based: lr / (1 + decay * step)
    decay_from: int = 0  # step: the first drop's optimiser step; 0: decay_steps
    floor: float = 0.0  # step: least share of lr


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Averaged weights: after update n (from 0), average += (1 - d) * (weights - average)."""

    decay: float = 0.9999  # d; 0 keeps no average
    warmup: float = 10.0  # d is min(decay, (1 + n) / (warmup + n)); 0 uses decay from the first update
    every: int = 1  # optimiser steps between two updates of the average
    start: int = 0  # optimiser steps during which the average is a copy of the weights


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """How one separately trained part is trained; systems extend it with their own fields."""

    clip_frames: int = 16  # frames of a training clip
    batch: int = 8  # clips per optimiser step, over all devices and micro-batches
    accumulate: int = 1  # micro-batches per optimiser step
    max_steps: int = 100_000  # optimiser steps
    precision: Literal["32", "bf16"] = "32"  # of the network's arithmetic; weights stay float32
    checkpointing: bool = False  # recompute blocks in the backward pass: less memory, about a third more time
    compile: Literal["auto", "on", "off"] = "off"  # torch.compile; auto: where a compiler is found and the run is long
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    seed: int = 0  # weights, order of the clips, noise
    log_every: int = 20  # optimiser steps between two lines of metrics.csv
    preview_every: int | None = 0  # optimiser steps between two sample videos; 0: at the end only; null: never
    checkpoint_every: int = 1_000  # optimiser steps between two checkpoints
    keep: int = 2  # checkpoints kept, the newest


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What every system lets the caller choose when it draws; systems extend it."""

    given: Literal["exact", "model"] = (
        "exact"  # known frames bit-identical, or as the model made them (parity, protocols)
    )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run: what is trained, on what, how. A system's own class adds `model`, `stages` and `sample`."""

    system: str
    data: DataConfig = field(default_factory=DataConfig)
    source: str = ""  # paper, table and code revision the values come from
    published: dict[str, str] = field(default_factory=dict)  # protocol -> published result


def size_of(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Height and width of a `size` setting (one side, or both)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """` Did you mean x?` where one of `words` resembles `word`, else nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def to_plain(record: Any) -> Any:
    """A settings record as dicts, lists and plain values, ready for JSON or YAML."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    return record


def to_yaml(record: Any) -> str:
    """A settings record as YAML text, in the order of its fields, lists on one line.

    Example:
        >>> print(to_yaml(EmaConfig()), end="")
        decay: 0.9999
        warmup: 10.0
        every: 1
        start: 0
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(
        list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
    )
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))  # such texts get quotes
    return yaml.dump(to_plain(record), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def from_yaml(text: str, *, where: str = "the settings") -> dict[str, Any]:
    """The plain values of a YAML text, ready for `from_plain`.

    As in YAML 1.2, `1e-4` is a number, and `off`, `on`, `yes` and `no` are words.

    Args:
        text: a table at its top level; an empty text is an empty table.
        where: file name, for messages.

    Raises:
        ValueError: not YAML, or not a table.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:bool"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$"), list("tf"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
    try:
        values = yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where} is not YAML ({place}{error.problem or error.context}).") from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise ValueError(f"{where} is not YAML ({str(error).splitlines()[0]}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table of settings, got {values!r}.")
    return values


def read_yaml(path: Path, *, where: str = "") -> dict[str, Any]:
    """The plain values of a YAML file.

    Args:
        path: the file.
        where: what messages call it; "": its path.

    Raises:
        ValueError: not text, not YAML, or not a table.
    """
    where = where or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not text in UTF-8: save it as such, or name another file.") from None
    return from_yaml(text, where=where)


def from_plain(kind: type[T], values: dict[str, Any], *, where: str = "") -> T:
    """Build the settings record `kind` from plain values; missing keys take their defaults.

    Args:
        kind: a settings dataclass.
        values: nested dicts as `to_plain` writes them.
        where: dotted path to these values, for messages.

    Raises:
        ValueError: an unknown key (the nearest valid one is named), a missing one, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the settings'} must be a table of settings, got {values!r}.")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            path = f"{where}.{key}" if where else key
            guess = nearest(str(key), names)
            raise ValueError(f"{path} is not a setting.{guess or ' Settings here: ' + ', '.join(names) + '.'}")
    built = {
        name: _convert(hints[name], values[name], f"{where}.{name}" if where else name)
        for name in names
        if name in values
    }
    try:
        return kind(**built)
    except TypeError as error:
        raise ValueError(f"{where or kind.__name__}: {error}.") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ValueError that names `where`."""
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where=where)  # type: ignore[arg-type]
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in choices:
            return value
        if str(value) in choices:  # precision: 32
            return str(value)
        raise ValueError(f"{where} is {value!r}; it can be {', '.join(map(str, choices))}.")
    if origin in (typing.Union, types.UnionType):
        for choice in choices:
            try:
                return _convert(choice, value, where)
            except ValueError:
                continue
        raise ValueError(f"{where} is {value!r}, which is not {_spell(hint)}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = [choices[0]] * len(value) if len(choices) == 2 and choices[1] is Ellipsis else list(choices)
        if len(inner) == len(value):
            return tuple(_convert(h, v, where) for h, v in zip(inner, value))
    elif origin is dict and isinstance(value, dict):
        return {str(k): _convert(choices[1], v, f"{where}.{k}") for k, v in value.items()}
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # neither nan nor infinity
            return float(value)
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is {value!r}, which is not {_spell(hint)}.")


def _spell(hint: Any) -> str:
    """An annotation in words for a message."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    choices = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_spell(choice) for choice in choices)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, choices))
    if typing.get_origin(hint) is tuple:
        return "a list of " + " and ".join(_spell(c) for c in choices if c is not Ellipsis)
    return str(hint)
