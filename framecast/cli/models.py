# SPDX-License-Identifier: Apache-2.0
"""The commands about trained models: what is at hand, what one of them is, converting and exchanging them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framecast.cli.console import Console, table
from framecast.cli.parsing import Command, Parser, apply_settings
from framecast.experiment import size_of, to_plain
from framecast.systems import entry, preset, resolve

if TYPE_CHECKING:
    from framecast.checkpoint import ModelInfo
    from framecast.foreign import Checkpoint
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
    from framecast.checkpoint import describe, in_words
    from framecast.evaluate.baselines import BASELINES

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
        console.say(f"{title}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
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
    parser.add_argument("file", type=Path, metavar="FILE", help="published checkpoint, such as ema_0.9999_250000.pt")
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
    from framecast.checkpoint import PartInfo, fill, free_name, save_model

    experiment: Any = apply_settings(preset(args.preset), args.settings)
    found: Checkpoint = resolve(entry(experiment.system).weights)(
        args.file, experiment=experiment, weights=args.weights
    )
    stage = dataclasses.fields(experiment.stages)[0].name
    system = _imported(found, experiment, stage)
    for name, part in system.parts().items():
        fill(part, found.parts[name], where=str(args.file))
    provenance = {
        "imported_from": args.file.name,
        "imported_sha256": sha256(args.file),
        "preset": " ".join([args.preset, *(f"{key}={value}" for key, value in args.settings)]),
        "source": experiment.source,
    }
    info = PartInfo(stage=stage, step=found.step or 0, weights=found.weights)
    out = save_model(
        args.out or free_name(Path("models") / args.file.stem),
        system,
        parts=dict.fromkeys(system.parts(), info),
        provenance=provenance,
    )
    _read_back(out, system, args.file)
    tensors = sum(len(part) for part in found.parts.values())
    parameters = sum(p.numel() for part in system.parts().values() for p in part.parameters())
    told = "steps not told" if found.step is None else f"{found.step:,} steps"
    console.say(
        f"{out}: {', '.join(system.parts())}; {tensors} tensors, {parameters:,} parameters ({found.weights}, {told}). "
        "Verified: names and shapes are the network's, all values are finite, and the folder reads back equal."
    )
    ours, theirs = to_plain(experiment.model), to_plain(found.config)
    if unlike := [f"{key} {in_file} (not {ours[key]})" for key, in_file in theirs.items() if in_file != ours[key]]:
        console.say(f"read from the file, unlike {args.preset}: " + ", ".join(unlike))
    console.say(f"next: framecast predict {out} CLIP")
    numbers = {"tensors": tensors, "parameters": parameters, "step": found.step, "weights": found.weights}
    console.result({"out": str(out), **numbers, **provenance})
    return 0


def _imported(found: Checkpoint, experiment: Any, stage: str) -> System:
    """A system of the settings that were found, for the clips of the experiment.

    Raises:
        ValueError: settings of the experiment that such a system cannot have.
    """
    from framecast.checkpoint import build_system
    from framecast.experiment import VideoSpec
    from framecast.task import UnsupportedTask

    height, width = size_of(experiment.data.size)
    video = VideoSpec(
        channels=experiment.data.channels,
        height=height,
        width=width,
        clip_frames=getattr(experiment.stages, stage).clip_frames,
        fps=experiment.data.fps,
    )
    system = build_system(experiment.system, to_plain(found.config), video, to_plain(experiment.sample))
    with contextlib.suppress(UnsupportedTask):  # sampling options that the model found cannot use are refused
        system.plan((True,) + (False,) * (video.clip_frames - 1), system.options)
    return system


def _read_back(out: Path, system: System, file: Path) -> None:
    """Raise ValueError unless the folder holds every value of the system."""
    from framecast.checkpoint import load_system

    again = load_system(out).parts()
    for name, part in system.parts().items():
        state = again[name].state_dict()
        if not all(bool((state[key] == value).all()) for key, value in part.state_dict().items()):
            raise ValueError(f"{out}: the weights read back differ from those of {file}; the disk may be damaged.")


IMPORT = Command(
    about="Convert a published checkpoint to a model folder. Only tensors are read from the file, nothing in it is "
    "run; names and shapes are checked against the network.",
    example="framecast models import ema_0.9999_250000.pt --preset ramvid/bair64 --out models/bair-ramvid\n"
    "framecast models import resnet-adam-noise-l1-city-d64-t1600-residual-alFalse_0.pt --preset rvd/cityscapes128",
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
