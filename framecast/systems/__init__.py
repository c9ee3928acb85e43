# SPDX-License-Identifier: Apache-2.0
"""The table of systems: names only, so that importing one system never imports another, or torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from framecast.experiment import Experiment, nearest


@dataclass(frozen=True)
class Entry:
    """Where the pieces of one system live, each as `module:name`."""

    system: str  # the System class
    experiment: str  # its Experiment class (no torch)
    presets: str  # dict of preset name -> function returning an Experiment (no torch)
    weights: str  # function that reads a published checkpoint file; empty: none was published
    tasks: tuple[str, ...]  # verbs it can answer


SYSTEMS: dict[str, Entry] = {
    "ramvid": Entry(
        system="framecast.systems.ramvid.ramvid:RaMViD",
        experiment="framecast.systems.ramvid.config:RaMViDExperiment",
        presets="framecast.systems.ramvid.published:PRESETS",
        weights="framecast.systems.ramvid.weights:read_checkpoint",
        tasks=("predict", "infill", "interpolate", "generate", "score"),
    ),
    "rvd": Entry(
        system="framecast.systems.rvd.rvd:RVD",
        experiment="framecast.systems.rvd.config:RVDExperiment",
        presets="framecast.systems.rvd.published:PRESETS",
        weights="framecast.systems.rvd.weights:read_checkpoint",
        tasks=("predict", "score"),
    ),
    "pvdm": Entry(
        system="framecast.systems.pvdm.pvdm:PVDM",
        experiment="framecast.systems.pvdm.config:PVDMExperiment",
        presets="framecast.systems.pvdm.published:PRESETS",
        weights="framecast.systems.pvdm.weights:read_checkpoint",
        tasks=("predict", "generate", "reconstruct"),
    ),
    "video_vqvae": Entry(
        system="framecast.systems.video_vqvae.video_vqvae:VideoVQVAE",
        experiment="framecast.systems.video_vqvae.config:VideoVQVAEExperiment",
        presets="framecast.systems.video_vqvae.published:PRESETS",
        weights="",
        tasks=("predict", "reconstruct", "score"),
    ),
}


def resolve(target: str) -> Any:
    """The object named `module:name`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def entry(system: str) -> Entry:
    """The table's row for `system`.

    Raises:
        ValueError: no such system; the known ones are named.
    """
    if not isinstance(system, str) or system not in SYSTEMS:  # a file may hold anything
        raise ValueError(f"{system!r} is not a system.{nearest(str(system), SYSTEMS)} Systems: {', '.join(SYSTEMS)}.")
    return SYSTEMS[system]


def presets() -> list[str]:
    """Names of all presets, `<system>/<preset>`."""
    return [f"{name}/{key}" for name, row in SYSTEMS.items() if row.presets for key in resolve(row.presets)]


def preset(name: str) -> Experiment:
    """The published or small experiment `<system>/<preset>`.

    Raises:
        ValueError: no such preset; those it may have meant are named.
    """
    system, _, short = name.partition("/")
    table = resolve(SYSTEMS[system].presets) if system in SYSTEMS else {}
    if short not in table:
        raise ValueError(f"{name!r} is not a preset.{meant(name, [f'{system}/{key}' for key in table] or presets())}")
    return table[short]()


def meant(name: str, known: list[str]) -> str:
    """A sentence after a name that is no preset: those of other systems that end so, else the nearest, else all but
    variants.

    Example:
        >>> meant("bair64", presets())
        ' Did you mean ramvid/bair64 or rvd/bair64?'
    """
    same = [other for other in known if other.partition("/")[2] == name]
    if same:
        return f" Did you mean {' or '.join(same)}?"
    return nearest(name, known) or f" Presets: {_by_system(known)} (with variants: framecast config show)."


def _by_system(known: list[str]) -> str:
    """Presets but variants, each system's name once.

    Example:
        >>> _by_system(["rvd", "rvd/bair64", "rvd/bair64-vd", "rvd/kth64", "pvdm/tiny32"])
        'rvd/ bair64, kth64; pvdm/ tiny32'
    """
    short: dict[str, list[str]] = {}
    for name in known:
        system, slash, rest = name.partition("/")
        if slash and "-" not in rest:
            short.setdefault(system, []).append(rest)
    return "; ".join(f"{system}/ {', '.join(names)}" for system, names in short.items())
