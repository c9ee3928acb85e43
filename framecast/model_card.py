# SPDX-License-Identifier: Apache-2.0
"""README.md of a model folder: what the model is, in plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framecast.system import System
from framecast.systems import entry


def model_card(config: Mapping[str, Any], system: System) -> str:
    """README.md of a model folder: plain facts."""
    video, verbs = system.video, entry(system.name).tasks
    rate = f" at {video.fps:g} fps" if video.fps else ""
    lines = [
        f"# A {system.name} model",
        "",
        f"Weights for framecast, system `{system.name}`: {', '.join(verbs)}.",
        f"Clips: {video.clip_frames} frames of {video.width}×{video.height} pixels, {video.channels} channel"
        f"{'s' if video.channels > 1 else ''}{rate}, values {video.value_range[0]:g} to {video.value_range[1]:g}.",
        "",
        "| part | parameters | trained by stage | steps | weights |",
        "|---|---|---|---|---|",
    ]
    for name, part in config["parts"].items():
        count = sum(p.numel() for p in system.parts()[name].parameters())
        told = f"{part['stage']} | {part['step']} | {part['weights']}" if part else "not trained yet | – | –"
        lines.append(f"| {name} | {count:,} | {told} |")
    lines += ["", *(f"- {key}: {in_words(value)}" for key, value in config["provenance"].items()), ""]
    lines += [
        "What this model draws is generated, not recorded: say so wherever its videos are shown. It knows only clips",
        "like those it was trained on, and its futures are possible ones, not the one that will happen.",
        "",
        "```python",
        "import framecast",
        "",
        'model = framecast.load("this/folder")',
        "```",
        "",
    ]
    return "\n".join(lines)


def in_words(value: Any) -> str:
    """A plain value as text, without the brackets of its tables and lists.

    Example:
        >>> in_words({"set": "vortex32", "level": [-0.01, 0, 0.01]})
        'set vortex32, level -0.01/0/0.01'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(inside)}" for key, inside in value.items())
    return "/".join(map(in_words, value)) if isinstance(value, (list, tuple)) else str(value)
