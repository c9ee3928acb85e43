# SPDX-License-Identifier: Apache-2.0
"""The commands about trained models: what is at hand, what one of them is, converting and exchanging them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, table
from framecast.cli.parsing import Command, Parser, apply_settings
from framecast.experiment import size_of, to_plain
from framecast.systems import entry, preset, resolve

if TYPE_CHECKING:
    from torch import nn

    from framecast.checkpoint import ModelInfo, PartInfo
    from framecast.foreign import Checkpoint, Kind
    from framecast.system import System


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("folders", metavar="DIR", nargs="*", default=["runs"], help="where to look (default runs)")


def _list(args: argparse.Namespace, console: Console) -> int:
    from framecast.checkpoint import list_models
    from framecast.evaluate.baselines import BASELINES

    found = list_models(args.folders)
    rows = [[_spelt(m), m.system, _clip(m), _steps(m), ", ".join(entry(m.system).tasks)] for m in found]
    if found:
        console.say(table(["model", "system", "clip", "steps", "tasks"], rows))
    else:
        looked = ", ".join(args.folders)
        console.say(f"no model here (looked among the bundled ones and in {looked}); train one: framecast demo")
    simple = {name: {"about": row.about, "tasks": list(row.tasks)} for name, row in BASELINES.items()}
    console.say("\nsimple forecasts, for clips of any size, to use in place of a model:")
    rows = [[name, ", ".join(row.tasks), row.about] for name, row in BASELINES.items()]
    console.say(table(["name", "tasks", "what it does"], rows))
    console.result({"models": [_plain(model) for model in found], "simple_forecasts": simple})
    return 0


LIST = Command(
    about="Models at hand: those that come with framecast, those in local run folders, and the simple forecasts that "
    "can be used in place of one.",
    example="framecast models list\nframecast models list runs/ my_models/",
    arguments=_list_arguments,
    run=_list,
)


def _spelt(info: ModelInfo) -> str:
    """What to give as MODEL: the name of a bundled one, else the run or model folder."""
    from framecast.checkpoint import BUNDLED

    if info.dir.parent == BUNDLED:
        return info.name
    return str(info.dir.parents[1] if info.dir.parent.name == "checkpoints" else info.dir)


def _clip(info: ModelInfo) -> str:
    v = info.video
    rate = f", {v.fps:g} fps" if v.fps else ""
    return f"{v.clip_frames} × {v.width}×{v.height}×{v.channels}{rate}"


def _steps(info: ModelInfo) -> int | str:
    steps = [part.step for part in info.parts.values() if part]
    return max(steps) if steps else "–"


def _plain(info: ModelInfo) -> dict[str, Any]:
    values = {**to_plain(info), "dir": str(info.dir), "tasks": list(entry(info.system).tasks), "sha256": info.digest}
    return values | {"parts": {name: part and dict(to_plain(part)) for name, part in info.parts.items()}}


def _info_arguments(parser: Parser) -> None:
    text = "bundled name, model folder, run folder, hub id or simple forecast"
    parser.add_argument("model", metavar="MODEL", help=text)


def _info(args: argparse.Namespace, console: Console) -> int:
    from framecast.checkpoint import describe
    from framecast.evaluate.baselines import BASELINES
    from framecast.model_card import in_words

    if args.model in BASELINES:
        return _simple_info(args.model, console)
    info = describe(args.model)
    low, high = info.video.value_range
    console.say(f"{info.name}: {info.system}, can {', '.join(entry(info.system).tasks)}")
    console.say(
        f"folder: {info.dir}\nclips:  {_clip(info)} (frames × width×height×channels), values {low:g} to {high:g}"
    )
    rows = [[n, p.stage, p.step, p.weights, p.dtype, p.sha256[:12]] if p else [n, "–", "not trained", "–", "–", "–"]
            for n, p in info.parts.items()]  # fmt: skip
    console.say(table(["part", "stage", "steps", "weights", "stored as", "sha256"], rows))
    for title, values in (("model", info.model), ("sampling", info.sample)):
        console.say(f"{title}: " + ", ".join(f"{key} {value}" for key, value in _flat(values).items()))
    console.say("provenance: " + "; ".join(f"{key} {in_words(value)}" for key, value in info.provenance.items()))
    console.result(_plain(info))
    return 0


def _simple_info(name: str, console: Console) -> int:
    from framecast.evaluate.baselines import BASELINES

    row, options = BASELINES[name], to_plain(BASELINES[name].options)
    console.say(f"{name}: a simple forecast, can {', '.join(row.tasks)}\n{row.about}")
    console.say("clips:  any size, channels and rate")
    console.say("sampling: " + ", ".join(f"{key} {value!r}" for key, value in options.items()))
    console.result({"name": name, "about": row.about, "tasks": list(row.tasks), "sample": options})
    return 0


INFO = Command(
    about="What a model takes, what it can do, how it samples and where its weights come from.",
    example="framecast models info runs/latest",
    arguments=_info_arguments,
    run=_info,
)


def _import_arguments(parser: Parser) -> None:
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="published checkpoint, such as ema_0.9999_250000.pt; all "
        "files of a model whose parts lie in several",
    )  # fmt: skip
    parser.add_argument(
        "--preset", required=True, metavar="NAME", help="the experiment it comes from: ramvid/bair64, rvd/bair64, …"
    )
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="averaged, or as the optimiser left them, where a file holds both "
        "(default: what its authors test)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="model folder to write (default: models/<file name>)")
    parser.add_argument("--KEY.KEY", metavar="VALUE", dest="_", help="a setting that is not the preset's")


def _import(args: argparse.Namespace, console: Console) -> int:
    from framecast.assets import sha256
    from framecast.checkpoint import fill, free_name, save_model

    experiment: Any = apply_settings(preset(args.preset), args.settings)
    if not entry(experiment.system).weights:
        raise ValueError(
            f"no trained weights of {experiment.system} were ever published, so there is nothing to import: train it "
            f"(framecast train {args.preset} --data DIR); model folders of framecast itself are used as they are."
        )
    found, config = _opened(args.files, experiment, args.weights)
    system = _imported(config, experiment)
    modules = system.parts()
    for file, checkpoint in found.items():
        for name, weights in checkpoint.parts.items():
            fill(modules[name], weights, where=str(file))
    provenance = {
        "imported_from": ", ".join(file.name for file in found),
        "imported_sha256": ", ".join(map(sha256, found)),
        "preset": " ".join([args.preset, *(f"{key}={value}" for key, value in args.settings)]),
        "source": experiment.source,
    }
    target = args.out or free_name(Path("models") / args.files[0].stem)
    parts = _part_infos(found.values())
    out = save_model(target, system, parts=parts, provenance=provenance)
    _read_back(out, system, list(parts), args.files)
    console.say(
        "\n".join(f"{out}: {_told(checkpoint, modules)}" for checkpoint in found.values())
        + " Verified: names and shapes are the network's, all values are finite, and the folder reads back equal."
    )
    ours, theirs = _flat(to_plain(experiment.model)), _flat(to_plain(config))
    unlike = {key: value for key, value in theirs.items() if value != ours[key]}
    if unlike:
        told = ", ".join(f"{key} {value} (not {ours[key]})" for key, value in unlike.items())
        console.say(f"read from the file, unlike {args.preset}: {told}")
    console.say(f"next: {_after_import(args, experiment, out, system, found.values(), unlike)}")
    console.result({"out": str(out), **_numbers(system, found.values()), **provenance})
    return 0


def _opened(files: list[Path], experiment: Any, weights: Kind | None) -> tuple[dict[Path, Checkpoint], Any]:
    """What each file holds, and the model settings that all of them tell.

    Raises:
        ValueError: a file that is no checkpoint of the system, or two that hold the same part.
    """
    read = resolve(entry(experiment.system).weights)
    found: dict[Path, Checkpoint] = {}
    for file in files:
        checkpoint: Checkpoint = read(file, experiment=experiment, weights=weights)
        for other, earlier in found.items():
            if same := [name for name in checkpoint.parts if name in earlier.parts]:
                raise ValueError(f"{other} and {file} both hold the part {same[0]}: give one of them.")
        found[file] = checkpoint
        experiment = dataclasses.replace(experiment, model=checkpoint.config)
    return found, experiment.model


def _part_infos(found: Collection[Checkpoint]) -> dict[str, PartInfo]:
    """Where every part that was found comes from."""
    from framecast.checkpoint import PartInfo

    return {
        name: PartInfo(
            stage=checkpoint.stage,
            step=checkpoint.step or 0,
            weights=checkpoint.weights,
            needs=dict.fromkeys(checkpoint.needs, ""),
        )
        for checkpoint in found
        for name in checkpoint.parts
    }


def _told(found: Checkpoint, modules: Mapping[str, nn.Module]) -> str:
    """What one file held."""
    count = sum(p.numel() for name in found.parts for p in modules[name].parameters())
    steps = "steps not told" if found.step is None else f"{found.step:,} steps"
    tensors = sum(map(len, found.parts.values()))
    return f"{', '.join(found.parts)}; {tensors} tensors, {count:,} parameters ({found.weights}, {steps})."


def _numbers(system: System, found: Collection[Checkpoint]) -> dict[str, Any]:
    """Counts over all files; steps and kind of weights where they are one file's."""
    parts = {name: part for checkpoint in found for name, part in checkpoint.parts.items()}
    modules = system.parts()
    steps, kinds = {checkpoint.step for checkpoint in found}, {checkpoint.weights for checkpoint in found}
    return {
        "tensors": sum(map(len, parts.values())),
        "parameters": sum(p.numel() for name in parts for p in modules[name].parameters()),
        "parts": list(parts),
        "missing": [name for name in modules if name not in parts],
        "step": steps.pop() if len(steps) == 1 else None,
        "weights": kinds.pop() if len(kinds) == 1 else None,
    }


def _after_import(
    args: argparse.Namespace,
    experiment: Any,
    out: Path,
    system: System,
    found: Collection[Checkpoint],
    unlike: Mapping[str, Any],
) -> str:
    """What a folder is good for, and how it gets what it lacks."""
    from framecast.model_card import in_words

    there = {name for checkpoint in found for name in checkpoint.parts}
    missing = [name for name in system.parts() if name not in there]
    if not missing:
        return f"framecast predict {out} CLIP"
    words = "".join(f" --{key}={value}" for key, value in args.settings)
    if below := [need for checkpoint in found for need in checkpoint.needs if need not in there]:
        files = " ".join(map(str, args.files))
        return (
            f"give the file of {below[0]} too, without which {' and '.join(there)} draws nothing: framecast models "
            f"import {files} FILE --preset {args.preset}{words}"
        )
    stages = [field.name for field in dataclasses.fields(experiment.stages)]
    left = [name for name in stages if name not in {checkpoint.stage for checkpoint in found}]
    words += "".join(f" --model.{key}={in_words(value).replace('/', ',')}" for key, value in unlike.items())
    train = f"framecast train {args.preset} --data DIR --stage {left[0]} --from {out}{words}"
    # what has a codec trains it first
    can = f"framecast reconstruct {out} CLIP; " if system.codec is not None and stages[0] not in left else ""
    return f"{can}to draw, import the file of {' and '.join(missing)} with this one, or train it: {train}"


def _flat(plain: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        inside = _flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): one for name, one in inside.items()}
    return found


def _imported(config: Any, experiment: Any) -> System:
    """A system of the settings that were found, for the clips of the experiment.

    Raises:
        ValueError: settings of the experiment that such a system cannot have.
    """
    from framecast.checkpoint import build_system
    from framecast.experiment import VideoSpec
    from framecast.task import UnsupportedTask

    height, width = size_of(experiment.data.size)
    first = dataclasses.fields(experiment.stages)[0].name
    video = VideoSpec(
        channels=experiment.data.channels,
        height=height,
        width=width,
        clip_frames=getattr(experiment.stages, first).clip_frames,
        fps=experiment.data.fps,
    )
    system = build_system(experiment.system, to_plain(config), video, to_plain(experiment.sample))
    with contextlib.suppress(UnsupportedTask):  # sampling options that the model found cannot use are refused
        system.plan((True,) + (False,) * (video.clip_frames - 1), system.options)
    return system


def _read_back(out: Path, system: System, parts: list[str], files: list[Path]) -> None:
    """Raise ValueError unless the folder holds every value of these parts of the system."""
    from framecast.checkpoint import load_system

    again, own = load_system(out, require=parts).parts(), system.parts()
    for name in parts:
        state = again[name].state_dict()
        if not all(bool((state[key] == value).all()) for key, value in own[name].state_dict().items()):
            given = " and ".join(map(str, files))
            raise ValueError(f"{out}: the weights read back differ from those of {given}; the disk may be damaged.")


IMPORT = Command(
    about="Convert a published checkpoint to a model folder. Only tensors are read from the file, nothing in it is "
    "run; names and shapes are checked against the network. Where a model's parts lie in several files, give all.",
    example="framecast models import ema_0.9999_250000.pt --preset ramvid/bair64 --out models/bair-ramvid\n"
    "framecast models import resnet-adam-noise-l1-city-d64-t1600-residual-alFalse_0.pt --preset rvd/cityscapes128\n"
    "framecast models import ucf101_autoencoder.pth ucf101_ema_model.pth --preset pvdm/ucf101-256-l",
    arguments=_import_arguments,
    run=_import,
    settings=("data", "model", "stages", "sample"),
)


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="bundled name, model folder, run folder or hub id")
    parser.add_argument("out", metavar="DIR", help="folder to write; it must not exist yet, or be empty")
    parser.add_argument("--half", action="store_true", help="round the weights to 16 bits, which halves the files")


def _export(args: argparse.Namespace, console: Console) -> int:
    from framecast.checkpoint import copy_model

    return _copied(copy_model(args.model, args.out, dtype="float16" if args.half else None), console)


def _copied(out: Path, console: Console) -> int:
    from framecast.checkpoint import describe

    info = describe(out)
    console.say(f"{out}: {info.system}, {', '.join(info.parts)}; a model folder, without the state of its training")
    console.result({"out": str(out), **_plain(info)})
    return 0


EXPORT = Command(
    about="Copy a model to a folder of its own, to keep or hand on: config, weights and card, without the state of its "
    "training.",
    example="framecast models export runs/latest my_model --half",
    arguments=_export_arguments,
    run=_export,
)


def _push_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="bundled name, model folder or run folder")
    parser.add_argument("hub_id", metavar="ORG/NAME", help="where it goes on the hub; made, not public, if need be")


def _push(args: argparse.Namespace, console: Console) -> int:
    from framecast.checkpoint import push_model

    address = push_model(args.model, args.hub_id)
    console.say(f"uploaded to {address}")
    console.result({"hub_id": args.hub_id, "address": address})
    return 0


PUSH = Command(
    about="Upload a model to the hub, under the login of the hub's own tool (hf auth login).",
    example="framecast models push runs/latest my-group/my-model",
    arguments=_push_arguments,
    run=_push,
)


def _pull_arguments(parser: Parser) -> None:
    parser.add_argument("hub_id", metavar="ORG/NAME", help="the model's name on the hub")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: models/<name>)")


def _pull(args: argparse.Namespace, console: Console) -> int:
    from framecast.checkpoint import copy_model, free_name

    name = args.hub_id.rpartition("/")[2]
    return _copied(copy_model(args.hub_id, args.out or free_name(Path("models") / name)), console)


PULL = Command(
    about="Download a model from the hub to a folder here; commands that take a MODEL also take its hub id as it is.",
    example="framecast models pull my-group/my-model --out models/mine",
    arguments=_pull_arguments,
    run=_pull,
)
