# SPDX-License-Identifier: Apache-2.0
"""`framecast.evaluate(…)` in Python: what the command of that name does, for a model in hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from framecast.evaluate.plan import Networks, Plan, Stage
    from framecast.evaluate.samples import Source
    from framecast.generate import Model


def start(
    model: Model,
    protocol: str = "smoke-lbm",
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    windows: int | None = None,
    samples: int | None = None,
    steps: int | str | None = None,
    sampler: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    batch: int = 8,
    networks: Networks | None = None,
    stage: Stage | None = None,
) -> dict[str, Any]:
    """Judge a model by a protocol, beside the simple forecasts on the same windows.

    Args:
        model: that forecasts, as `framecast.load` gives it.
        protocol: its name, a key of `framecast.evaluate.protocols.PROTOCOLS`.
        data: folder of the protocol's set; None: `data/<set>`.
        out: folder for samples, results and what a report shows; what a stopped evaluation has drawn there is not drawn
            again. None: nothing is kept.
        windows: the first so many only.
        samples: of each window, instead of the protocol's.
        steps: sampler steps.
        sampler: its name.
        options: further sampling options, by name; those not given are the protocol's, or else the model's own.
        seed: of all noise.
        batch: samples drawn at once.
        networks: I3D, C3D and LPIPS from the user's files; without them their figures are left out.
        stage: opens a stage of the work, for progress.

    Returns:
        What `result.json` holds.

    Raises:
        UnsupportedTask: the model cannot answer.
        ValueError: no such protocol, a set that is not there, or a result or samples of another evaluation in `out`.
    """
    from framecast.evaluate.kept import Kept, identity
    from framecast.evaluate.plan import Networks, Plan, sampling, silent
    from framecast.evaluate.protocols import protocol as named
    from framecast.evaluate.samples import Computed
    from framecast.generate import Model

    if not isinstance(model, Model):
        raise ValueError(f"model is {model!r}; give a model, such as framecast.load({model!r}).")
    rules = named(protocol)
    folder = None if out is None else Path(out)
    plan = Plan(
        rules=rules,
        data=Path(data) if data is not None else Path("data") / rules.set,
        like=model.video if model.video.height else None,
        windows=windows,
        samples=samples,
        networks=networks or Networks(),
        shown=None if folder is None else folder / "shown",
    )
    given = {"steps": steps, "sampler": sampler, **(options or {})}
    chosen = sampling(plan, model, {key: value for key, value in given.items() if value is not None})
    computed = Computed(model, options=chosen, task=rules.task, quantise=rules.quantise, seed=seed, batch=batch)
    source: Source = computed
    if folder is not None:
        unfinished(folder)
        if model.system.parts():
            source = Kept(computed, folder / "samples", identity(rules, computed))
    return finish(plan, source, folder, device=model.system.device, stage=stage or silent)


def unfinished(out: Path) -> None:
    """Refuse a folder that holds a result: it stays as it is.

    Raises:
        ValueError: it does.
    """
    if (out / "result.json").exists():
        raise ValueError(f"{out} holds a finished result, and nothing is overwritten: choose another folder.")


def finish(plan: Plan, source: Source, out: Path | None, *, device: torch.device, stage: Stage) -> dict[str, Any]:
    """Judge a source and write what came out, where a folder is given."""
    from framecast.evaluate.result import result, write
    from framecast.evaluate.run import evaluate

    cases = evaluate(plan, source, stage=stage)
    told = result(plan, source, cases, device=device)
    if out is not None:
        write(out, told, cases)
    return told
