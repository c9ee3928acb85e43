"""Result folders as `framecast evaluate` writes them: small, with figures that follow from the frames in them."""

import csv
import json
import zlib
from pathlib import Path

import torch

from framecast.data.array_file import write_array
from framecast.evaluate.intervals import bootstrap
from framecast.metrics.forecast import crps, psnr

ABOUT = {
    "crps_fair": {"label": "fair CRPS", "unit": "8-bit levels", "better": "lower"},
    "crps": {"label": "CRPS", "unit": "8-bit levels", "better": "lower"},
    "psnr": {"label": "PSNR of a sample", "unit": "dB", "better": "higher"},
}
SIMPLE = {"persistence": 30.0, "analog-8": 9.0}  # simple forecast -> how far it is off, in levels
SETTINGS = {
    "name": "smoke-lbm",
    "about": "Prediction of flows that training never saw.",
    "set": "vortex32",
    "split": "test",
    "channels": 1,
    "height": 16,
    "width": 16,
    "seed": 0,
    "task": "forecast",
    "cases": [{"known": [0, 1], "frames": 6, "judged": None}],
    "paired": {"how": "phases", "clips": 3, "per_clip": 2, "samples": 4},
    "metrics": ["crps", "psnr", "ensemble", "rf3d"],
    "published": [],
    "assumed": [],
    "is_not": [],
    "source": "made for the tests",
}


def write_result(
    folder,
    *,
    model="vortex-ramvid",
    seed=0,
    error=4.0,
    samples=4,
    windows=6,
    units=3,
    known=(0, 1),
    frames=6,
    cases=1,
    side=16,
    channels=1,
    data_seed=0,
    settings=None,
    deviations=(),
    model_deviations=(),
    real="",
    published=(),
    leave_out=(),
    sample=None,
):
    """Write a whole result and return its folder.

    Args:
        error: how far the model's samples are off, in levels.
        data_seed: of the truth: results of one data seed have judged the same frames.
        settings: of the protocol, changed.
        deviations: of the question; `model_deviations`: of the model, named after them.
        real: sha256 of the real clips of sets; empty: not told.
        leave_out: of shown, by_frame, sets, ranks, spread_skill, windows, simple.
    """
    folder = Path(folder)
    changed = {**SETTINGS, "published": list(published), **(settings or {})}
    names = [f"flow_{i % units:04d}@{i // units}" for i in range(windows)]
    owners = [f"flow_{i % units:04d}" for i in range(windows)]
    forecasts = {model: error} | ({} if "simple" in leave_out else SIMPLE)
    told, rows = [], []
    for number in range(cases):
        truths = torch.stack([_truth(name, frames, side, channels, data_seed + number) for name in names])
        made = {
            name: _forecast(truths, samples if name in (model, "analog-8") else 1, known, off, f"{name} {seed}")
            for name, off in forecasts.items()
        }
        scored = {name: _scores(videos, truths, known) for name, videos in made.items()}
        told.append(_case(number, scored, owners, known, frames, made, model, leave_out))
        for name, values in scored.items():
            for i in range(windows):
                figures = {metric: float(f"{v[i].mean():.6g}") for metric, v in values.items()}
                case = told[-1]["name"]
                rows.append({"case": case, "forecast": name, "window": names[i], "unit": owners[i], **figures})
        if "shown" not in leave_out:
            _write_shown(folder / "shown" / str(number), truths, made, names, owners, known)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "format_version": 2,
        "protocol": changed["name"] + ("-partial" if deviations or model_deviations else ""),
        "deviations": [*deviations, *model_deviations],
        "model_deviations": list(model_deviations),
        "assumed": changed["assumed"],
        "is_not": changed["is_not"],
        "settings": changed,
        "weights": {},
        "data": {"dir": "data/vortex32", "sha256": f"{data_seed:064x}", "windows": windows, "units": units},
        "model": {
            "name": model, "system": "ramvid", "sha256": f"{zlib.crc32(model.encode()):064x}",
            "sample": sample or {"sampler": "ddim", "steps": 10}, "seed": seed, "samples": samples,
        },
        "machine": {"cores": 2, "device": "cpu"},
        "versions": {"framecast": "0.1.0", "torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "published": changed["published"],
        "cases": told,
    }  # fmt: skip
    if real:
        whole["data"]["sets"] = {"2-4": {"real_sha256": real, "real": 512, "judged": 512}}
    (folder / "result.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    if "windows" not in leave_out:
        with open(folder / "windows.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def _truth(name, frames, side, channels, seed):
    """A bright stripe that travels, at a speed of its own."""
    x, t = torch.arange(side)[None, :], torch.arange(frames)[:, None]
    speed = 0.5 + (zlib.crc32(f"{name} {seed}".encode()) % 100) / 100
    wave = 128 + 90 * torch.sin(0.5 * x - speed * t)
    return wave[:, None, None, :].expand(-1, channels, side, -1).round().to(torch.uint8)


def _forecast(truths, samples, known, off, key):
    """Samples (N, S, T, C, H, W) that leave the truth as time goes on."""
    rng = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    count, frames = truths.shape[:2]
    lead = torch.arange(frames, dtype=torch.float32).clamp(min=1).sqrt()[:, None, None, None]
    noise = torch.randn((count, samples, *truths.shape[1:]), generator=rng)
    video = (truths[:, None] + off * lead * noise).clamp(0, 255).round().to(torch.uint8)
    video[:, :, list(known)] = truths[:, None, list(known)]
    return video


def _scores(videos, truths, known):
    drawn = [i for i in range(truths.shape[1]) if i not in known]
    told = {metric: [] for metric in ABOUT}
    for video, truth in zip(videos[:, :, drawn], truths[:, drawn]):
        told["crps_fair"].append(crps(video, truth, estimator="fair").mean((1, 2, 3)))
        told["crps"].append(crps(video, truth).mean((1, 2, 3)))
        told["psnr"].append(psnr(video, truth).mean(0))
    return {metric: torch.stack(values).double().numpy() for metric, values in told.items()}


def _case(number, scored, owners, known, frames, made, model, leave_out):
    drawn = [i for i in range(frames) if i not in known]
    forecasts = []
    for name, values in scored.items():
        count = int(made[name].shape[1])
        entry = {"name": name, "kind": "model" if name == model else "simple", "samples": count, "seconds": 1.5}
        entry["scores"] = {
            metric: {**ABOUT[metric], **bootstrap(v.mean(1).tolist(), owners).plain(), "count": len(v), "how": ""}
            for metric, v in values.items()
        }
        if "by_frame" not in leave_out:
            entry["by_frame"] = {
                metric: {"frames": drawn, "mean": v.mean(0).round(5).tolist(), "sd": v.std(0).round(5).tolist()}
                for metric, v in values.items()
            }
        if name != model:
            entry["minus"] = {
                metric: bootstrap((scored[model][metric] - v).mean(1).tolist(), owners).plain()
                for metric, v in values.items()
            }
        elif "sets" not in leave_out:
            entry["sets"] = {
                "rf3d_motion": {
                    "label": "rf3d-v1 motion", "value": 0.42, "low": 0.4, "high": 0.44, "folds": [0.4, 0.44],
                    "n_real": 512, "n_fake": 512, "floor": 0.05, "better": "lower", "note": "",
                }
            }  # fmt: skip
        if count > 1 and "ranks" not in leave_out:
            entry["ranks"] = [90 + 7 * abs(i - count // 2) for i in range(count + 1)]
        if count > 1 and "spread_skill" not in leave_out:
            steps = [float(f"{(i + 1) ** 0.5:.4g}") for i in range(len(drawn))]
            entry["spread_skill"] = {"frames": drawn, "spread": steps, "skill": [1.2 * v for v in steps]}
        forecasts.append(entry)
    name = f"{len(known)} → {frames - len(known)}" + (f" ({number})" if number else "")
    return {"name": name, "known": list(known), "frames": frames, "forecasts": forecasts}


def _write_shown(folder, truths, made, names, owners, known):
    how = {"fps": 10.0, "value_range": None, "generated_by": {"by": "test"}}
    for i in range(min(3, len(names))):
        place = folder / str(i)
        place.mkdir(parents=True)
        write_array(place / "truth.npz", truths[i], **how)
        for name, videos in made.items():
            write_array(place / f"{name}.npz", videos[i], **how)
        about = {"name": names[i], "unit": owners[i], "known": list(known)}
        (place / "about.json").write_text(json.dumps(about), encoding="utf-8")
