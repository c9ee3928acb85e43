# SPDX-License-Identifier: Apache-2.0
"""The whole result of an evaluation as plain values: figures with intervals and counts, and all of the protocol.

A protocol's name stands there only if every setting of it held; otherwise it ends in `-partial`, with the differences.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framecast.data.files import new_file
from framecast.devices import hardware, revision, versions
from framecast.evaluate.plan import Plan
from framecast.evaluate.run import CaseResult, Scores
from framecast.evaluate.samples import Source
from framecast.evaluate.scoring import metric
from framecast.evaluate.terms import FRECHET_GROUPS, Cut
from framecast.experiment import to_plain

FORMAT = 2
HOW = "mean over windows and frames; 95 % interval by bootstrap over independent units"


def result(plan: Plan, source: Source, cases: Sequence[CaseResult], *, device: torch.device) -> dict[str, Any]:
    """All of an evaluation, for JSON."""
    rules = plan.rules
    changed = deviations(plan, source, cases)
    return {
        "format_version": FORMAT,
        "protocol": rules.name + ("-partial" if changed else ""),
        "deviations": changed,
        "assumed": [*rules.assumed, *_taken_on_trust(plan)],
        "is_not": list(rules.is_not),
        "settings": to_plain(asdict(rules)),
        "weights": _weights(plan),
        "data": _data(plan, cases),
        "model": {**source.record, "samples": _samples(cases)},
        "machine": hardware(device),
        "versions": versions(),
        "commit": revision(),
        "published": [asdict(value) for value in rules.published],
        "cases": [_case(case, source.name) for case in cases],
    }  # fmt: skip


def _samples(cases: Sequence[CaseResult]) -> int:
    return max((case.scores[0].samples for case in cases if case.scores), default=1)


def deviations(plan: Plan, source: Source, cases: Sequence[CaseResult]) -> list[str]:
    """In what a run differs from its protocol, in words."""
    rules, told = plan.rules, list[str]()
    for case in cases:
        where = f" ({case.case.name})" if len(cases) > 1 else ""
        told += [f"{line}{where}" for line in _counted(plan, case)]
        told += [*case.found.missing, *case.deviations]
    if plan.like is not None:
        have, stated = (plan.like.channels, plan.like.height, plan.like.width), (
            rules.channels, rules.height, rules.width,
        )  # fmt: skip
        if all(have) and have != stated:
            told.append(f"clips of {_size(have)} instead of {_size(stated)} (channels × height × width)")
    told += _sampling(plan, source)
    told += _networks(plan)
    if source.record.get("lossy"):
        told.append("samples were read from videos, which lose detail")
    if shifted := getattr(source, "shifted", 0.0):
        told.append(
            f"known frames of the samples differ from the clips' by up to {shifted:.3g} levels: are they paired?"
        )
    return list(dict.fromkeys(told))


def _counted(plan: Plan, case: CaseResult) -> list[str]:
    rules, told = plan.rules, list[str]()
    if rules.paired is not None and case.windows is not None:
        wanted = rules.paired.windows
        if wanted is not None and len(case.windows) != wanted:
            told.append(f"{len(case.windows)} windows instead of {wanted}")
        have = case.scores[0].samples
        if have != rules.paired.samples:
            told.append(f"{have} samples instead of {rules.paired.samples}")
    figure = next((figure for forecast in case.found.figures.values() for figure in forecast.values()), None)
    if figure is not None:
        judged, real = rules.sets, rules.real or rules.sets
        wanted = rules.inception.samples if judged is None and rules.inception else _clips(judged)
        if wanted is not None and figure.n_fake != wanted:
            told.append(f"sets of {figure.n_fake} judged clips instead of {wanted}")
        wanted = real.windows if real is not None else None
        if wanted is not None and figure.n_real != wanted and not (real and real.or_fewer and figure.n_real < wanted):
            told.append(f"sets of {figure.n_real} real clips instead of {wanted}")
    return told


def _clips(cut: Cut | None) -> int | None:
    return None if cut is None or cut.windows is None else cut.windows * cut.samples


def _sampling(plan: Plan, source: Source) -> list[str]:
    """Where the sampler is not the one stated."""
    stated, used = plan.rules.sampler, source.record.get("sample")
    if not stated:
        return []
    if not isinstance(used, Mapping):
        return ["how the stored samples were drawn is not known"]
    told = []
    for key, value in stated.items():
        if key not in used:
            told.append(f"the protocol states {key} {value}, which this model does not have")
        elif to_plain(used[key]) != to_plain(value):
            told.append(f"{key} {used[key]} instead of {value}")
    if plan.rules.quantise == "truncate" and plan.rules.task == "generate":
        told.append("drawn values rounded to 8 bits instead of truncated")
    return told


def _networks(plan: Plan) -> list[str]:
    told = []
    i3d, lpips = plan.networks.i3d, plan.networks.lpips
    stated = next((words for name, words in plan.rules.weights.items() if name in FRECHET_GROUPS), "")
    if (
        i3d is not None
        and "TF-Hub" in stated
        and not str(i3d.about.get("eps_from", "")).startswith("batch-norm scales")
    ):
        told.append(
            f"I3D weights (sha256 {i3d.sha256[:12]}…, {i3d.about.get('names')}, eps {i3d.about.get('eps')}) do not "
            f"look like the stated {stated}"
        )
    if "lpips" in plan.rules.metrics and lpips is not None and lpips.net != plan.rules.lpips:
        told.append(f"LPIPS with {lpips.net} instead of {plan.rules.lpips}")
    return told


def _taken_on_trust(plan: Plan) -> list[str]:
    if plan.rules.task == "record" or plan.rules.set.startswith(("vortex", "bouncing")):
        return []  # open sets say in every file what they are
    return [f"the clips in {plan.data} are those of {plan.rules.set}, {plan.rules.split}: nothing in them proves it"]


def _weights(plan: Plan) -> dict[str, Any]:
    networks = plan.networks
    told: dict[str, Any] = {
        network.name: {"sha256": network.sha256, **network.about}
        for network in (networks.i3d, networks.c3d)
        if network is not None
    }
    if networks.lpips is not None:
        told[f"lpips_{networks.lpips.net}"] = dict(getattr(networks.lpips, "about", {}))
    return told


def _data(plan: Plan, cases: Sequence[CaseResult]) -> dict[str, Any]:
    cut = next((case.windows for case in cases if case.windows is not None), None)
    told: dict[str, Any] = {"dir": str(plan.data)}
    if cut is not None:
        told |= {"sha256": cut.digest(), "windows": len(cut), "units": len(set(cut.units)), "notes": list(cut.notes)}
    return told


def _case(case: CaseResult, judged: str) -> dict[str, Any]:
    names = list(dict.fromkeys([scores.name for scores in case.scores] + list(case.found.figures)))
    by_name = {scores.name: scores for scores in case.scores}
    forecasts = []
    for name in names:
        told: dict[str, Any] = {"name": name, "kind": "model" if name == judged else "simple"}
        if name in by_name:
            told |= _scored(by_name[name], case)
            if name != judged:
                told["minus"] = _minus(by_name[judged], by_name[name])
        told["sets"] = {key: figure.plain() for key, figure in case.found.figures.get(name, {}).items()}
        for curve, values in case.found.curves.get(name, {}).items():
            frames = list(range(len(values)))
            told.setdefault("by_frame", {})[curve] = {"frames": frames, "mean": _numbers(values)}
        forecasts.append(told)
    spec = case.case
    return {"name": spec.name, "known": list(spec.known), "frames": spec.frames, "forecasts": forecasts}


def _scored(scores: Scores, case: CaseResult) -> dict[str, Any]:
    told: dict[str, Any] = {
        "samples": scores.samples,
        "seconds": round(scores.seconds, 2),
        "scores": {},
        "by_frame": {},
    }
    unknown = list(case.case.unknown)
    for name, values in scores.values.items():
        what = metric(name)
        interval = scores.interval(name).plain()
        told["scores"][name] = {
            "label": what.label, "unit": what.unit, "better": what.better, **interval,
            "count": len(values), "how": "; ".join(filter(None, (what.how, HOW))),
        }  # fmt: skip
        if values.shape[1] == len(unknown):
            sd = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], math.nan)
            told["by_frame"][name] = {"frames": unknown, "mean": _numbers(values.mean(0)), "sd": _numbers(sd)}
    if thirds := scores.by_motion():
        told["by_motion"] = {name: _numbers(np.array(values)) for name, values in thirds.items()}
    if scores.ranks is not None:
        told["ranks"] = scores.ranks.astype(int).tolist()
    if scores.squares:
        roots = {name: _numbers(np.sqrt(values.mean(0))) for name, values in scores.squares.items()}
        told["spread_skill"] = {"frames": unknown, **roots}
    return told


def _minus(model: Scores, other: Scores) -> dict[str, Any]:
    """The model minus another, of metrics that both have."""
    shared = [name for name in model.values if name in other.values]
    return {name: model.less(other, name).plain() for name in shared}


def write(folder: Path, told: Mapping[str, Any], cases: Sequence[CaseResult]) -> list[Path]:
    """Write result.json, result.csv and windows.csv; earlier ones of the same evaluation are replaced.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "result.json", folder / "result.csv", folder / "windows.csv"]
    with new_file(paths[0], overwrite=True) as temporary:
        temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    _write_csv(paths[1], _figures(told))
    _write_csv(paths[2], _windows(cases))
    return [path for path in paths if path.exists()]


def _figures(told: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """One line per case, forecast and figure."""
    head = {
        "protocol": told["protocol"], "deviations": "; ".join(told["deviations"]),
        "assumed": "; ".join(told["assumed"]), "settings": json.dumps(told["settings"]),
        "model_sha256": told["model"].get("sha256", ""), "sample": json.dumps(told["model"].get("sample")),
        "seed": told["model"].get("seed", ""),
    }  # fmt: skip
    for case in told["cases"]:
        for forecast in case["forecasts"]:
            where = {"case": case["name"], "forecast": forecast["name"], "samples": forecast.get("samples", "")}
            for name, score in forecast.get("scores", {}).items():
                yield {
                    **where, "metric": name, "label": score["label"], "unit": score["unit"], "value": score["mean"],
                    "low": score["low"], "high": score["high"], "units": score["units"], "windows": score["count"],
                    "n_real": "", "n_fake": "", "floor": "", **head,
                }  # fmt: skip
            for name, figure in forecast["sets"].items():
                yield {
                    **where, "metric": name, "label": figure["label"], "unit": "", "value": figure["value"],
                    "low": figure["low"], "high": figure["high"], "units": "", "windows": "",
                    "n_real": figure["n_real"], "n_fake": figure["n_fake"], "floor": figure["floor"], **head,
                }  # fmt: skip


def _windows(cases: Sequence[CaseResult]) -> Iterable[dict[str, Any]]:
    """One line per case, forecast and window."""
    for case in cases:
        metrics = list(dict.fromkeys(name for scores in case.scores for name in scores.values))
        for scores in case.scores:
            assert case.windows is not None
            for i, (name, unit) in enumerate(zip(case.windows.names, case.windows.units)):
                values = {m: f"{scores.values[m][i].mean():.6g}" if m in scores.values else "" for m in metrics}
                yield {"case": case.case.name, "forecast": scores.name, "window": name, "unit": unit, **values}


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    listed = list(rows)
    if not listed:
        path.unlink(missing_ok=True)  # an earlier one of the same evaluation
        return
    columns = list(dict.fromkeys(name for row in listed for name in row))
    with new_file(path, overwrite=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(listed)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values.tolist()]


def _size(size: tuple[int, int, int]) -> str:
    return " × ".join(map(str, size))
