# SPDX-License-Identifier: Apache-2.0
"""What a request for frames returns: drawn videos in the units of the clip they answer, with their record.

A `Forecast` knows how it came about, how it compares with the truth where there is one, and how it is written to a
folder; it knows no system. `framecast.generate` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framecast.data.array_file import write_array
from framecast.data.files import new_folder
from framecast.data.image_file import write_image
from framecast.data.media import Row, save_framed, strip
from framecast.data.plot import save_score_maps
from framecast.metrics.forecast import crps, eight_bit, hold, scores
from framecast.video import Clip

_STRIP_ROWS = 8  # samples shown in strip.png


def free_folder(folder: str | Path) -> Path:
    """`folder` if it does not exist or is empty, else the first free one of `folder-2`, `folder-3`, …"""
    first, number = Path(folder), 1
    path = first
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
        number += 1
        named = first if first.name else first / "out"  # the working folder has no name here
        path = named.with_name(f"{named.name}-{number}")
    return path


@dataclass(frozen=True, repr=False)
class Forecast:
    """Drawn videos in the units of the clip they answer, and how they came about."""

    video: Tensor  # (samples, frames, channels, height, width), uint8 or float32 like the clip
    known: tuple[bool, ...]  # True where a frame was given
    fps: float | None
    value_range: tuple[float, float]
    record: dict[str, Any]  # model, task, sampling options, seed, seconds, versions
    truth: Tensor | None = None  # what the source holds at the first frames of the video, where it goes on

    def __repr__(self) -> str:
        samples, frames, channels, height, width = self.video.shape
        return f"Forecast({samples} × {frames} frames of {channels}×{height}×{width}, {sum(self.known)} of them given)"

    def __len__(self) -> int:
        return len(self.video)

    def clip(self, sample: int = 0) -> Clip:
        """One of the samples as a Clip."""
        return Clip(self.video[sample], fps=self.fps, value_range=self.value_range)

    def scores(self) -> dict[str, Any] | None:
        """CRPS and PSNR of the drawn frames against the truth, in 8-bit units, beside those of persistence.

        Returns:
            `frames` (indices scored), and for `model` and `persistence` (the nearest given frame before, held) each
            `crps`, `crps_fair`, `psnr` and their lists over frames; None where no drawn frame has a truth.
        """
        count = 0 if self.truth is None else min(len(self.truth), len(self.known))
        drawn = [i for i in range(count) if not self.known[i]]
        if self.truth is None or not drawn:
            return None
        truth = eight_bit(self.truth[:count], value_range=self.value_range)
        held = truth[hold(self.known[:count])][None] if any(self.known[:count]) else None
        made = eight_bit(self.video[:, :count], value_range=self.value_range)
        result: dict[str, Any] = {"unit": "8-bit levels", "samples": len(self), "frames": drawn}
        result["model"] = scores(made[:, drawn], truth[drawn])
        if held is not None:
            result["persistence"] = scores(held[:, drawn], truth[drawn])
        return result

    def save(self, folder: str | Path, *, formats: Sequence[str] = ("mp4",), plain: bool = False) -> list[Path]:
        """Write one video per sample and format, samples.npz (lossless), strip.png and result.json, all or nothing.

        Args:
            folder: made if need be; must be empty.
            formats: of mp4, webp, gif; `npz` alone leaves the videos out.
            plain: no coloured edges around given (green) and drawn (red) frames.

        Returns:
            The files written.

        Raises:
            ValueError: the folder holds files already; a free one is named.
        """
        folder = Path(folder)
        free = free_folder(folder)
        if free != folder:
            raise ValueError(
                f"{folder} is not empty, and nothing in it is overwritten: choose another, {free} is free."
            )
        with new_folder(folder):
            return self._write(folder, formats, plain=plain)

    def save_crps_map(self, path: str | Path) -> Path | None:
        """Draw where the forecast is wrong: fair CRPS of every pixel under truth and mean forecast, at up to 6 frames.

        Returns:
            The PNG; None where no drawn frame has a truth.
        """
        count = 0 if self.truth is None else min(len(self.truth), len(self.known))
        drawn = [i for i in range(count) if not self.known[i]]
        if self.truth is None or not drawn:
            return None
        made = eight_bit(self.video[:, :count], value_range=self.value_range)
        maps = crps(made, eight_bit(self.truth[:count], value_range=self.value_range), estimator="fair").mean(1)
        mean = self.video[:, :count].to(torch.float32).mean(0)
        mean = mean if self.video.is_floating_point() else mean.round().to(self.video.dtype)
        truth, forecast = (Clip(v, self.fps, self.value_range) for v in (self.truth[:count], mean))
        shown = sorted({drawn[round(i * (len(drawn) - 1) / 5)] for i in range(6)})
        return save_score_maps(
            path,
            pictures=[("truth", truth), ("mean forecast", forecast)],
            maps=[("fair CRPS", maps.clamp(min=0))],  # the fair estimate of a small score can fall below zero
            frames=shown,
            label="fair CRPS, 8-bit levels",
            comment=f"Generated by framecast, model {self.record['model']}.",
        )

    def _write(self, folder: Path, formats: Sequence[str], *, plain: bool) -> list[Path]:
        r = self.record
        given = ", ".join(map(str, r["known_frames"])) or "none"
        model = f"{r['model']} {r['sha256']}".strip()  # a simple forecast has no weights
        comment = f"Generated by framecast, model {model}, seed {r['seed']}; frames given: {given}."
        files = [
            save_framed(folder / f"sample_{i:02d}.{form}", self.clip(i), self.known, plain=plain, comment=comment)
            for i in range(len(self))
            for form in formats
            if form != "npz"
        ]
        files.append(write_image(folder / "strip.png", strip(self._rows(), plain=plain), comment=comment))
        write_array(
            folder / "samples.npz", self.video, fps=self.fps, value_range=self.value_range, generated_by=self.record
        )
        result = {**r, "scores": self.scores()}
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return [*files, folder / "samples.npz", folder / "result.json"]

    def _rows(self) -> list[Row]:
        """What the strip shows: the truth where there is one, then the first samples."""
        rows = [Row(f"sample {i}", self.clip(i), self.known) for i in range(min(len(self), _STRIP_ROWS))]
        if self.truth is not None:
            truth = Clip(self.truth[: len(self.known)], fps=self.fps, value_range=self.value_range)
            rows.insert(0, Row("truth", truth))
        return rows
