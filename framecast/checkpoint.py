# SPDX-License-Identifier: Apache-2.0
"""The model folder: how a system is kept on disk, found by name, loaded and exchanged.

A folder holds `config.json` (what it is, and the sha256 of every part), one `<part>.safetensors` per trained part (the
weights to sample with) and `README.md`. It is written whole or not at all and never holds Python objects. This file
alone knows safetensors and the hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from framecast.assets import sha256
from framecast.experiment import SampleOptions, VideoSpec, from_plain, nearest, to_plain
from framecast.model_card import model_card
from framecast.system import System
from framecast.systems import entry, presets, resolve

FORMAT_VERSION = 1
CONFIG, CARD = "config.json", "README.md"
BUNDLED = Path(__file__).parent / "bundled"
FOREIGN = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar"}


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """Where the weights of one part come from."""

    stage: str  # that trained it
    step: int  # optimiser steps it has seen
    weights: Literal["ema", "raw"] = "raw"  # averaged over the training, or as the optimiser left them
    needs: Mapping[str, str] = field(default_factory=dict)  # parts it was trained on top of -> their sha256; "": it
    # has never been here, so that none that comes later is the one
    sha256: str = ""  # of the file; what is written is always computed anew
    dtype: Literal["float32", "float16"] = "float32"  # of the weights in the file; loading gives float32 either way


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model folder says about itself."""

    name: str
    dir: Path
    system: str
    video: VideoSpec
    parts: dict[str, PartInfo | None]  # None: not trained yet
    model: dict[str, Any]  # settings, plain
    sample: dict[str, Any]  # default sampling options, plain
    provenance: dict[str, Any]

    @property
    def missing(self) -> list[str]:
        """Parts that are not trained yet."""
        return [name for name, part in self.parts.items() if part is None]

    @property
    def digest(self) -> str:
        """16 hex digits that change when any weight or model setting does."""
        weights = [(name, part.sha256) for name, part in sorted(self.parts.items()) if part]
        told = json.dumps([self.system, self.model, weights], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


# ---- writing


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that appears at `target` only once everything in it has been written.

    Raises:
        ValueError: something is there already.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not overwritten; {free_name(target)} is free.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)  # of a process of this number that was killed while it wrote
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def free_name(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … that does not exist."""
    number, free = 2, path
    while free.exists() or free.is_symlink():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free


def save_model(
    dir: Path | str, system: System, *, parts: Mapping[str, PartInfo], provenance: Mapping[str, Any]
) -> Path:
    """Write a model folder, whole or not at all.

    Args:
        dir: a folder that does not exist yet, or is empty.
        system: whose weights are written as they are now.
        parts: the trained parts, those to write; the others count as not trained yet.
        provenance: where it comes from (data, licence, …), plain values.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something already, or a weight is not a finite number.
    """
    with whole_folder(Path(dir)) as folder:
        write_model(folder, system, parts=parts, provenance=provenance)
    return Path(dir)


def write_model(folder: Path, system: System, *, parts: Mapping[str, PartInfo], provenance: Mapping[str, Any]) -> None:
    """The files of a model folder, into a folder that is there (see `save_model`)."""
    modules = system.parts()
    digests: dict[str, str] = {}
    for name in parts:
        save_tensors(folder / f"{name}.safetensors", modules[name].state_dict())
        digests[name] = sha256(folder / f"{name}.safetensors")
    config = {
        "format_version": FORMAT_VERSION,
        "system": system.name,
        "model": to_plain(system.config),
        "video": to_plain(system.video),
        "sample": to_plain(system.options),
        "parts": {name: _part_entry(name, parts, digests) if name in parts else None for name in modules},
        "provenance": {"framecast": version("framecast"), "created": date.today().isoformat(), **provenance},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(config, system), encoding="utf-8")


def _part_entry(name: str, parts: Mapping[str, PartInfo], digests: Mapping[str, str]) -> dict[str, Any]:
    part = parts[name]
    return {
        "file": f"{name}.safetensors",
        "sha256": digests[name],
        "stage": part.stage,
        "step": part.step,
        "weights": part.weights,
        "dtype": "float32",
        "needs": {need: digests.get(need, "") for need in part.needs},
    }


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A flat table of tensors as one safetensors file.

    Raises:
        ValueError: a tensor holds values that are not finite; nothing is written.
    """
    kept = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds values that are not numbers (nan or infinity); {path.name} is not written.")
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(kept, str(path))
    path.chmod(mode)  # the library makes it private to the user; the folder is to be shared like any other


def check_tensors(path: Path) -> None:
    """Raise ValueError where a safetensors file is missing, damaged or cut short; its values are not read."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy or download the folder again.")
    try:
        with safetensors.safe_open(str(path), framework="pt"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again.") from None


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is missing or damaged.
    """
    check_tensors(path)
    return safetensors.torch.load_file(str(path), device=str(device))


# ---- finding


class NoModel(ValueError):
    """There is no model of that name; the nearest of those known is named."""

    def __init__(self, wanted: str, known: Sequence[str]):
        super().__init__(
            f"no model {wanted!r}: it is neither a bundled name, nor a folder here, nor a hub id org/name."
            + nearest(wanted, known)
        )
        self.wanted, self.known = wanted, known


def find_model(source: Path | str) -> Path:
    """The model folder meant by `source`.

    Args:
        source: the name of a bundled model, a model folder, a run folder (its newest checkpoint), a checkpoint, or a
            hub id `org/name` (downloaded once, then kept in the hub's own cache).

    Raises:
        ValueError: nothing of the kind; the sentence says what to do.
    """
    text = str(source)
    if re.fullmatch(r"[\w.-]+", text) and (BUNDLED / text / CONFIG).is_file():
        return BUNDLED / text
    path = follow(Path(source).expanduser())
    if path.is_dir():
        if (path / CONFIG).is_file():
            return path
        if (path / "checkpoints").is_dir():
            return newest_checkpoint(path)
        inside = f" In it lie: {', '.join(found[:3])}." if (found := _models_beside(path / CONFIG)) else ""
        raise ValueError(f"{path} is neither a model folder (no {CONFIG}) nor a run folder (no checkpoints).{inside}")
    if path.suffix in FOREIGN:
        raise ValueError(
            f"{path} is a checkpoint of another program; convert it: framecast models import {path} --preset NAME"
        )
    if path.is_file():
        raise ValueError(f"{path} is a file; a model is a folder with {CONFIG}.")
    if text in presets():
        raise ValueError(
            f"{text} is a preset, settings without weights: framecast train {text} --data DIR makes a model."
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not Path(source).parent.is_dir():
        return _download(text)
    raise NoModel(text, [*bundled(), *_models_beside(path)])


def _models_beside(path: Path) -> list[str]:
    """Model and run folders in the folder where `path` should be, spelt as `path` is."""
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return []
    return [str(place) for place in beside if (place / CONFIG).is_file() or (place / "checkpoints").is_dir()]


def newest_checkpoint(run: Path) -> Path:
    """The checkpoint of a run folder with the most steps (what `checkpoints/last` points to).

    Raises:
        ValueError: the run has none.
    """
    found = [path for path in (run / "checkpoints").glob("step_*") if (path / CONFIG).is_file()]
    if not found:
        raise ValueError(f"{run} holds no checkpoint yet; its training stopped before the first one was written.")
    return max(found, key=lambda path: path.name)


def point(link: Path, target: str) -> None:
    """Make `link` point to its neighbour `target`: a symbolic link, or a text file where the system has none."""
    if link.is_dir() and not link.is_symlink():
        return  # somebody's folder of that name: leave it
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)  # see whole_folder
    try:
        fresh.symlink_to(target)
    except OSError:
        fresh.write_text(target + "\n", encoding="utf-8")
    fresh.replace(link)


def follow(path: Path) -> Path:
    """Where a pointer written by `point` leads; any other path comes back as it is."""
    if path.is_symlink():
        return path.resolve()
    if path.is_file() and path.name in ("last", "latest"):
        return path.parent / path.read_text(encoding="utf-8").strip()
    return path


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG, CARD, "*.safetensors"]))
    except Exception as error:  # the hub's client raises its own, its http library's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{hub_id} is no folder here, and could not be fetched from the hub "
            f"({type(error).__name__}: {reason[:160]}); "
            "check the name and the connection, or give a folder."
        ) from None


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def list_models(folders: Iterable[Path | str] = ("runs",)) -> list[ModelInfo]:
    """The bundled models, then every model or run folder directly inside `folders`; unreadable ones are left out."""
    places = [BUNDLED / name for name in bundled()]
    for folder in map(Path, folders):
        if folder.is_dir():
            places += sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    found = []
    for place in places:
        try:
            found.append(describe(place))
        except ValueError:
            continue
    return found


def describe(source: Path | str) -> ModelInfo:
    """What the model `source` (see `find_model`) says about itself, without loading a weight.

    Raises:
        ValueError: no model there, written by a newer framecast, or damaged.
    """
    folder = find_model(source)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = config["format_version"]
        if found > FORMAT_VERSION:
            raise ValueError(
                f"{folder} was written by a newer framecast (format {found}, this one reads up to {FORMAT_VERSION}): "
                "upgrade framecast."
            )
        entry(config["system"])
        for key in ("model", "sample", "parts", "provenance"):
            if not isinstance(config[key], dict):
                raise TypeError(f"{key} is {config[key]!r}, not a table")
        return ModelInfo(
            name=folder.parents[1].name if folder.parent.name == "checkpoints" else folder.name,
            dir=folder,
            system=config["system"],
            video=from_plain(VideoSpec, config["video"], where="video"),
            parts={name: _part_info(name, part) for name, part in config["parts"].items()},
            model=config["model"],
            sample=config["sample"],
            provenance=config["provenance"],
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}); copy it again.") from None
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder / CONFIG}: {error}") from None


def _part_info(name: str, plain: dict[str, Any] | None) -> PartInfo | None:
    if plain is None:
        return None
    if plain["file"] != f"{name}.safetensors" or "/" in name or "\\" in name:
        raise KeyError(f"part {name}: file {plain['file']!r}")
    return PartInfo(
        stage=plain["stage"],
        step=plain["step"],
        weights=plain["weights"],
        needs=dict(plain["needs"]),
        sha256=plain["sha256"],
        dtype=plain.get("dtype", "float32"),
    )


# ---- loading


def load_system(
    source: Path | str, device: torch.device | str = "cpu", *, require: Sequence[str] | None = None
) -> System:
    """The system that `source` (see `find_model`) holds, on `device`, ready to sample.

    Args:
        source: bundled name, model folder, run folder or hub id.
        device: where its weights go.
        require: parts that must be trained; None means all. Others are loaded where they are there.

    Raises:
        ValueError: no model there, a part not trained yet, or files that are damaged or do not belong together.
    """
    info = describe(source)
    try:
        system = build_system(info.system, info.model, info.video, info.sample)
    except ValueError as error:
        raise ValueError(f"{info.dir / CONFIG}: {error}") from None
    needed = list(system.parts()) if require is None else list(require)
    load_parts(system, info, [name for name in system.parts() if info.parts.get(name) or name in needed])
    return system.to(device).eval()


def build_system(name: str, model: dict[str, Any], video: VideoSpec, sample: dict[str, Any]) -> System:
    """A system with fresh weights, from plain settings; the global random generator is left as it was."""
    row = entry(name)
    hints = get_type_hints(resolve(row.experiment))
    config = from_plain(hints["model"], model, where="model")
    options: SampleOptions = from_plain(hints["sample"], sample, where="sample")
    with torch.random.fork_rng(devices=[]):
        return resolve(row.system)(config, video, options)


def load_parts(system: System, info: ModelInfo, names: Iterable[str]) -> dict[str, PartInfo]:
    """Fill the parts `names` of `system` from a model folder.

    Returns:
        Where each comes from.

    Raises:
        ValueError: a part is not there, damaged, of another shape, or was trained on top of other weights.
    """
    loaded = {}
    for name in names:
        part = info.parts.get(name)
        if part is None:
            raise ValueError(untrained(info, name))
        path = info.dir / f"{name}.safetensors"
        tensors = load_tensors(path)
        if sha256(path) != part.sha256:
            raise ValueError(f"{path} is not the file that {CONFIG} describes (sha256 differs); copy the folder again.")
        _check_needs(info, name, part)
        fill(system.parts()[name], tensors, where=f"{path}")
        loaded[name] = part
    return loaded


def untrained(info: ModelInfo, part: str) -> str:
    """What to say where a part is wanted that is not trained yet."""
    stage = stage_of(info, part)
    return f"{info.dir} has no trained part {part}; train it: framecast train … --stage {stage} --from {info.dir}"


def stage_of(info: ModelInfo, part: str) -> str:
    """The stage that trains a part which is not trained yet."""
    stages = list(get_type_hints(get_type_hints(resolve(entry(info.system).experiment))["stages"]))
    done = {there.stage for there in info.parts.values() if there}
    return part if part in stages else next((name for name in stages if name not in done), stages[-1])


def _check_needs(info: ModelInfo, name: str, part: PartInfo) -> None:
    for need, digest in part.needs.items():
        other = info.parts.get(need)
        if (other.sha256 if other else "") != digest:
            raise ValueError(
                f"{info.dir}: part {name} was trained on top of another {need} than the one here; train {name} again "
                f"on this one: framecast train … --stage {part.stage} --from {info.dir}"
            )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy tensors into a module's weights and buffers.

    Raises:
        ValueError: names or shapes differ; the first difference is told.
    """
    own = module.state_dict()
    for name in own:
        if name not in tensors:
            raise ValueError(f"{where}: weight {name} is missing; the file belongs to other model settings.")
        if tensors[name].shape != own[name].shape:
            raise ValueError(
                f"{where}: weight {name} has shape {tuple(tensors[name].shape)}, the model settings ask for "
                f"{tuple(own[name].shape)}; use the settings it was trained with."
            )
    if extra := [name for name in tensors if name not in own]:
        raise ValueError(f"{where}: weight {extra[0]} has no place in the model; the file belongs to other settings.")
    module.load_state_dict(dict(tensors))


# ---- exchange


def copy_model(source: Path | str, dir: Path | str, *, dtype: Literal["float16"] | None = None) -> Path:
    """Copy the model `source` (see `find_model`) to a new folder, without any training state.

    Args:
        source: the model.
        dir: a folder that does not exist yet, or is empty.
        dtype: `float16` rounds the weights, which halves the files; None: as they are.

    Raises:
        ValueError: no such model, the folder holds something already, or a weight is too large for 16 bits.
    """
    info = describe(source)
    files = [CONFIG, CARD, *(f"{name}.safetensors" for name, part in info.parts.items() if part)]
    with whole_folder(Path(dir)) as folder:
        for name in files:
            if (info.dir / name).is_file():
                shutil.copyfile(info.dir / name, folder / name)
        if dtype == "float16":
            _halve(info, folder)
    return Path(dir)


def _halve(info: ModelInfo, folder: Path) -> None:
    """Round the weights in a fresh copy of a model to 16 bits.

    Buffers, such as tables and counts, stay exact, but for those that modules list as `for_training`.
    """
    system = load_system(info.dir, require=())  # which also finds damage
    trained = {name: part for name, part in info.parts.items() if part}
    for name in trained:
        path, tensors = folder / f"{name}.safetensors", load_tensors(folder / f"{name}.safetensors")
        part_module = system.parts()[name]
        rounded = {key for key, _ in part_module.named_parameters()}
        for at, module in part_module.named_modules():
            rounded |= {f"{at}.{key}" for key in getattr(module, "for_training", ())}
        for key in rounded & tensors.keys():
            half = tensors[key].to(torch.float16)
            if not bool(torch.isfinite(half).all()):
                raise ValueError(
                    f"part {name}: weight {key} reaches {tensors[key].abs().max().item():g}, and 16 bits hold up to "
                    "65504: export it as it is, without --half."
                )
            tensors[key] = half
        save_tensors(path, tensors)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    digests = {name: sha256(folder / f"{name}.safetensors") for name in trained}
    for name, part in trained.items():
        needs = {need: digests.get(need, "") for need in part.needs}
        config["parts"][name] |= {"sha256": digests[name], "dtype": "float16", "needs": needs}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def push_model(source: Path | str, hub_id: str) -> str:
    """Upload the model `source` to the hub under `org/name`; the hub's own login is used.

    Returns:
        The address of what was uploaded.

    Raises:
        ValueError: no such model, or the hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    info = describe(source)
    try:
        api = HfApi()
        api.create_repo(hub_id, exist_ok=True, private=True)
        patterns = [CONFIG, CARD, *(f"{name}.safetensors" for name, part in info.parts.items() if part)]
        return str(api.upload_folder(repo_id=hub_id, folder_path=str(info.dir), allow_patterns=patterns))
    except Exception as error:  # see _download
        raise ValueError(
            f"{info.dir} could not be uploaded to {hub_id} ({type(error).__name__}: {str(error).strip()[:160]}); "
            "check the name, the connection and the login (hf auth login)."
        ) from None
