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
from framecast.evaluate.compare import many
from framecast.evaluate.plan import Plan
from framecast.evaluate.run import CaseResult, Scores
from framecast.evaluate.samples import Source
from framecast.evaluate.scoring import metric
from framecast.evaluate.terms import FRECHET_GROUPS, Cut
from framecast.evaluate.windows import Windows
from framecast.experiment import to_plain

FORMAT = 2
HOW = "mean over units, of their windows and frames; 95 % interval by bootstrap over units"


def result(plan: Plan, source: Source, cases: Sequence[CaseResult], *, device: torch.device) -> dict[str, Any]:
    """All of an evaluation, for JSON."""
    rules = plan.rules
    of_model = model_deviations(plan, source)
    changed = list(dict.fromkeys([*deviations(plan, cases), *of_model]))
    return {
        "format_version": FORMAT,
        "protocol": rules.name + ("-partial" if changed else ""),
        "deviations": changed,
        "model_deviations": of_model,
        "assumed": [*rules.assumed, *_taken_on_trust(plan)],
        "is_not": list(rules.is_not),
        "settings": to_plain(asdict(rules)),
        "weights": _weights(plan),
        "data": _data(plan, source, cases),
        "model": {**source.record, "samples": _samples(cases)},
        "machine": hardware(device),
        "versions": versions(),
        "commit": revision(),
        "published": [asdict(value) for value in rules.published],
        "cases": [_case(case, source.name) for case in cases],
    }  # fmt: skip


def _samples(cases: Sequence[CaseResult]) -> int:
    return max((case.scores[0].samples for case in cases if case.scores), default=1)


def deviations(plan: Plan, cases: Sequence[CaseResult]) -> list[str]:
    """In what the question differs from the protocol, in words: windows, samples, sizes, weights, what is missing."""
    rules, told = plan.rules, list[str]()
    for case in cases:
        where = f" ({case.case.name})" if len(cases) > 1 else ""
        told += [f"{line}{where}" for line in _counted(plan, case)]
        told += [*case.found.missing, *case.deviations]
    stated = (rules.channels, rules.height, rules.width)
    sizes = {tuple(case.found.data["size"]) for case in cases if case.found.data.get("size")}
    if plan.like is not None:
        sizes.add((plan.like.channels, plan.like.height, plan.like.width))
    for have in sorted(sizes - {stated}):
        if all(have):
            told.append(f"clips of {_size(have)} instead of {_size(stated)} (channels × height × width)")
    told += _networks(plan)
    if (lacks := plan.reference_lacks()) is not None:
        told.append(lacks)
    return list(dict.fromkeys(told))


def _counted(plan: Plan, case: CaseResult) -> list[str]:
    rules, told = plan.rules, list[str]()
    if rules.paired is not None and case.windows is not None:
        told += _count(len(case.windows), "window", rules.paired)
        have = case.scores[0].samples
        if have != rules.paired.samples:
            told.append(f"{many(have, 'sample')} instead of {rules.paired.samples}")
    figure = next((figure for forecast in case.found.figures.values() for figure in forecast.values()), None)
    if figure is None:
        return told
    if rules.task == "generate" and rules.drawn is not None and figure.n_fake != rules.drawn:
        told.append(f"sets of {many(figure.n_fake, 'drawn clip')} instead of {rules.drawn}")
    elif rules.task != "generate" and rules.sets is not None:
        each = rules.sets.samples
        if figure.n_fake % each or case.found.data.get("judged") not in (None, figure.n_fake):
            told.append(f"sets of {many(figure.n_fake, 'judged clip')}")
        stated = rules.sets.windows
        if stated is not None and figure.n_fake != stated * each:
            told.append(f"sets of {many(figure.n_fake, 'judged clip')} instead of {stated * each}")
        elif plan.samples is not None and plan.samples < each:
            told.append(f"{many(plan.samples, 'sample')} of each window in sets instead of {each}")
    real = rules.real or rules.sets
    if real is not None:
        told += _count(figure.n_real, "real clip", real)
    return told


def _count(have: int, what: str, cut: Cut) -> list[str]:
    """Where there are not as many windows as a cut states; a cut to fewer on demand is told by the windows."""
    if cut.windows is None or have == cut.windows or (cut.or_fewer and have < cut.windows):
        return []
    return [f"{many(have, what)} instead of {cut.windows}"]


def model_deviations(plan: Plan, source: Source) -> list[str]:
    """In what the model was not asked to draw as the protocol states."""
    told = []
    stated, used = plan.rules.sampler, source.record.get("sample")
    if stated and not isinstance(used, Mapping):
        told.append("how the stored samples were drawn is not known")
    elif stated and isinstance(used, Mapping):
        for key, value in stated.items():
            if key not in used:
                told.append(f"the protocol states {key} {value}, which this model does not have")
            elif to_plain(used[key]) != to_plain(value):
                told.append(f"{key} {used[key]} instead of {value}")
        for key in source.record.get("changed", ()):
            if key not in stated:
                told.append(f"{key} {used[key]}, which is neither stated nor the model's own")
    if source.record.get("lossy"):
        told.append("samples were read from videos, which lose detail")
    if shifted := getattr(source, "shifted", 0.0):
        told.append(f"known frames of the samples differ from the clips' by up to {shifted:.3g} levels")
    return told


def _networks(plan: Plan) -> list[str]:
    told = []
    i3d, c3d, lpips = plan.networks.i3d, plan.networks.c3d, plan.networks.lpips
    groups, settings = plan.rules.metrics, plan.rules.frechet
    stated = next((words for name, words in plan.rules.weights.items() if name in FRECHET_GROUPS), "")
    if i3d is not None and set(groups) & set(FRECHET_GROUPS):
        if "TF-Hub" in stated and not str(i3d.about.get("eps_from", "")).startswith("batch-norm scales"):
            told.append(
                f"I3D weights (sha256 {i3d.sha256[:12]}…, {i3d.about.get('names')}, eps {i3d.about.get('eps')}) do not "
                f"look like the stated {stated}"
            )
        if i3d.about.get("resize") != settings.resize:
            told.append(f"frames reach I3D by the resize {i3d.about.get('resize')} instead of {settings.resize}")
    if c3d is not None and "is" in groups and "is" in plan.rules.weights and c3d.about.get("names") != "chainer":
        told.append(f"C3D weights (sha256 {c3d.sha256[:12]}…) do not look like the stated {plan.rules.weights['is']}")
    if "lpips" in groups and lpips is not None and lpips.net != plan.rules.lpips:
        told.append(f"LPIPS with {lpips.net} instead of {plan.rules.lpips}")
    return told


def _taken_on_trust(plan: Plan) -> list[str]:
    rules, told = plan.rules, []
    if not plan.open and rules.cases and (rules.paired or rules.sets or rules.real):
        told.append(f"the clips in {plan.data} are those of {rules.set}, {rules.split}: nothing in them proves it")
    if "memorisation" in rules.metrics and plan.reference is not None:
        told.append(f"the model was trained on the clips in {plan.reference}")
    return told


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


def _data(plan: Plan, source: Source, cases: Sequence[CaseResult]) -> dict[str, Any]:
    cut = next((case.windows for case in cases if case.windows is not None), None)
    told: dict[str, Any] = {"dir": str(plan.data)}
    if cut is not None:
        told |= {"sha256": cut.digest(), "windows": len(cut), "units": len(set(cut.units))}
    told["sets"] = {case.case.slug: case.found.data for case in cases if case.found.data}
    notes = dict.fromkeys(line for case in cases for line in case.notes)
    told["notes"] = [*notes, *_rates(plan, cut)]
    return told


def _rates(plan: Plan, cut: Windows | None) -> list[str]:
    """Where clips go at another rate than those the model was trained on; protocols count frames as stored."""
    wanted = plan.like.fps if plan.like is not None else None
    if cut is None or not wanted or all(abs(rate / wanted - 1) < 0.01 for rate in cut.rates):
        return []
    span = f"{cut.rates[0]:g}" if len(cut.rates) == 1 else f"{cut.rates[0]:g} to {cut.rates[-1]:g}"
    return [f"the clips are at {span} frames per second, the model was trained at {wanted:g}"]


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
            "count": int(np.isfinite(scores.windows(name)).sum()), "how": "; ".join(filter(None, (what.how, HOW))),
        }  # fmt: skip
        if values.shape[1] == len(unknown):
            sd = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], math.nan)
            mean = scores.by_frame(name)
            told["by_frame"][name] = {"frames": unknown, "mean": _numbers(mean), "sd": _numbers(sd)}
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
            thirds = forecast.get("by_motion", {})
            for name in (name for name in thirds if name in forecast.get("scores", {})):
                score = forecast["scores"][name]
                for which, value, count in zip(("least", "middle", "most"), thirds[name], thirds["windows"]):
                    yield {
                        **where, "metric": f"{name}, {which} motion", "label": score["label"], "unit": score["unit"],
                        "value": value, "low": "", "high": "", "units": "", "windows": count,
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


def _size(size: tuple[int, ...]) -> str:
    return " × ".join(map(str, size))
