# SPDX-License-Identifier: Apache-2.0
"""What drawing a clip's codes costs Video VQ-VAE: all of it, by code, and beside a whole network pass for every code.

The time is that of a prediction of one window, from encoding the known frames to decoding all.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch

from framecast.bench.drawing import drawn, model_of
from framecast.bench.measure import Memory, Timed, facts, timed
from framecast.bench.network import Changes
from framecast.devices import pick_device
from framecast.systems.video_vqvae.priors import BottomPrior, TopPrior
from framecast.systems.video_vqvae.video_vqvae import VideoVQVAE

DEFAULT_PRESET = "video_vqvae/cpu64"


def codes(
    *, preset: str | None, model: str | None, futures: int, device: str, repeats: int,
    changes: Changes = MappingProxyType({}),
) -> list[dict[str, Any]]:  # fmt: skip
    """So many futures of a clip drawn at once, code after code.

    Raises:
        ValueError: a model that draws no codes.
    """
    where = pick_device(device)
    name, drawing = model_of(preset if preset or model else DEFAULT_PRESET, model, where, changes)
    system = drawing.system
    if not isinstance(system, VideoVQVAE):
        raise ValueError(f"{name} draws no codes, so there is nothing to measure: name a model of video_vqvae.")
    v, fresh = system.video, system.video.clip_frames - system.given

    def work() -> None:
        drawn(system, system.options, rows=futures, context=system.given, horizon=fresh)

    work()  # warms up: what is compiled is compiled now
    memory = Memory(where)
    times = timed(work, repeats=repeats, device=where)
    each = {part: prior.rows * prior.network.grid[2] for part, prior in _priors(system).items()}
    count = sum(each.values())
    many = f"{futures} futures" if futures > 1 else "1 future"
    row: dict[str, Any] = {
        "what": "codes",
        "case": f"{name}: {system.given} → {fresh} frames of {v.width}×{v.height}×{v.channels}, {many}, float32",
        **times.plain(), **memory.plain(), "rate": futures * count / times.median, "rate_unit": "codes/s",
        "codes": count, "seconds_per_code": times.median / count,
    }  # fmt: skip
    notes = [f"{count} codes, {1e3 * row['seconds_per_code']:.2f} ms for each"]
    if futures == 1:
        passes = {part: _pass(prior, repeats=repeats).median for part, prior in _priors(system).items()}
        row["seconds_by_passes"] = sum(each[part] * passes[part] for part in each)
        row["passes"] = passes
        times_faster = row["seconds_by_passes"] / times.median
        notes.append(f"{times_faster:.0f} × faster than a whole pass for every code ({repeats} measured, multiplied)")
    return [row | {"notes": notes} | facts(where)]


def _priors(system: VideoVQVAE) -> dict[str, TopPrior | BottomPrior]:
    """Those that draw, by part."""
    return {name: part for name, part in system.parts().items() if isinstance(part, (TopPrior, BottomPrior))}


def _pass(prior: TopPrior | BottomPrior, *, repeats: int) -> Timed:
    """Forward passes of the network over its whole grid, the condition being there."""
    network = prior.network
    weight = network.embedding.weight
    code = torch.zeros(1, *network.grid, dtype=torch.int64, device=weight.device)
    condition = torch.zeros(1, prior.config.condition_hidden, *network.grid, device=weight.device)
    with torch.no_grad():
        network(code, condition)
        return timed(lambda: network(code, condition), repeats=repeats, device=weight.device)
