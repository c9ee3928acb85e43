# SPDX-License-Identifier: Apache-2.0
"""What scoring a clip returns: bits of its frames, with their record, and how they are written.

Bits are per dimension, of pixels, or per code, of a model that draws codes; of codes there are maps as well. A `Score`
knows no system. `framecast.generate` makes them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from framecast.data.files import new_folder
from framecast.data.plot import save_frame_curve, save_score_maps
from framecast.forecast import free_folder
from framecast.video import Clip

Of = Literal["pixels", "codes"]
MEANING: dict[Of, str] = {
    "pixels": "An estimated upper bound, in bits per pixel and channel, on -log2 of the probability that the model "
    "gives to the frames, each value known to within half of `bin`; lower is likelier. It compares clips of one size, "
    "rate and value range under one model and one number of levels; it is no measure of how well the model forecasts, "
    "and most of it is told by fine detail.",
    "codes": "-log2 of the probability that the model gives to the codes of the frames, exactly, in bits per code; "
    "lower is likelier, and `uniform` is what a code costs where all are as likely. It is the likelihood of codes, not "
    "of pixels: it compares clips of one size, rate and value range under one model with its own tokenizer, and no two "
    "models; what the tokenizer does not keep of a clip is not seen.",
}
SHOWN = 8  # frames in the picture of maps


@dataclass(frozen=True, repr=False)
class Score:
    """How likely a model finds the frames of a clip.

    Of pixels (`of`), the bits of a frame are an upper bound, estimated with random noise, on -log2 of the probability
    that the model gives to it, per pixel and channel, where a value is known to a bin (`record["bin"]`): a 255th of the
    clip's value range, which for 8-bit clips is its grey level. 8 bits are what it costs to tell a grey level without
    any model.

    It is: a number by which frames of one clip, or clips of one kind, compare under one model; a frame that stands out
    is one that the model did not expect from the given frames and from its neighbours.
    It is not: comparable over models unless data, bins and context are the same; the likelihood itself, of which it is
    a bound; a measure of forecasts (use `framecast evaluate`); nor a verdict, as likelihood models have been found
    to rate simple clips of a foreign kind highly (an all grey clip costs vortex-ramvid 2.7 bits, vortex-rvd 5.8, a flow
    about 1.4).

    Frames of one window are scored together (`record["windows"]`). Where windows are long, an odd frame also raises its
    neighbours, and the last frames of every window, with nothing after them, cost some tenths of a bit more than
    others: compare with an ordinary clip under the same context. Where every window is one frame (rvd), its bits tell
    of this frame given all true frames before it and of nothing after it; an odd frame still raises those that follow,
    which it is a poor context for.

    For frames that a model finds impossible the bound can be far above the likelihood, tens of bits in long windows
    where no frame needs more than about 8: read it as a rank there. Another seed moves a frame of vortex-ramvid by 0.03
    bits, a clip by 0.01.

    Of codes, the bits are the likelihood itself, without chance, but of the codes alone: of what the tokenizer keeps of
    a clip, in the labels of this one tokenizer. A code stands for several frames and pixels; a frame has its share of
    every code that stands for it (`frame_bits`), and `maps` tell when and where a clip is odd. `record["notes"]` says
    how far "when" goes.
    """

    frames: tuple[int, ...]  # indices of the frames scored
    bits: Tensor  # (frames,), float64
    record: dict[str, Any]  # model, windows, seed, seconds, versions; levels and bin, or uniform and notes
    maps: Mapping[str, Tensor] = field(default_factory=dict)  # of codes: by level, (steps, height, width), bits of each
    clip: Clip | None = None  # that was scored; shown above the maps

    def __repr__(self) -> str:
        each = "code" if self.maps else "dimension"
        return f"Score({self.mean:.2f} bits per {each} over {len(self.frames)} frames)"

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def of(self) -> Of:
        """What is as likely as the bits say."""
        return "codes" if self.maps else "pixels"

    @property
    def mean(self) -> float:
        """Bits per dimension, or per code, over all frames scored."""
        return float(self.bits.mean())

    @property
    def least_likely(self) -> int:
        """The frame of the most bits."""
        return self.frames[int(self.bits.argmax())]

    def least_likely_codes(self) -> dict[str, dict[str, Any]]:
        """By level, the code of the most bits: the first and last of its frames, its row and column, its bits."""
        found = {}
        for level, values in self.maps.items():
            step, row, column = map(int, np.unravel_index(int(values.argmax()), values.shape))
            each = len(self) // len(values)
            first, last = self.frames[step * each], self.frames[(step + 1) * each - 1]
            found[level] = {"frames": [first, last], "row": row, "column": column, "bits": float(values.max())}
        return found

    def plain(self) -> dict[str, Any]:
        """All there is to tell but the maps, in plain values."""
        told: dict[str, Any] = {"of": self.of, self._unit: self.mean}
        if self.maps:
            told["bits_per_clip"] = sum(float(values.sum()) for values in self.maps.values())
            told["codes"] = sum(values.numel() for values in self.maps.values())
            told["bits_per_code_of"] = {level: float(values.mean()) for level, values in self.maps.items()}
            told["least_likely_codes"] = self.least_likely_codes()
        return {
            **told,
            "frames": list(self.frames),
            "bits": self.bits.tolist(),
            "least_likely": self.least_likely,
            "meaning": MEANING[self.of],
            **{key: value for key, value in self.record.items() if key != "frames"},
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write score.json, score.csv (a line per frame) and score.png (the curve), all or nothing.

        Of codes also score.npz, the maps by level, and score_map.png, where they are shown below some frames.

        Args:
            folder: made if need be; must be empty.

        Returns:
            The files written.

        Raises:
            ValueError: the folder holds files already; a free one is named.
        """
        folder = Path(folder)
        if (free := free_folder(folder)) != folder:
            raise ValueError(
                f"{folder} is not empty, and nothing in it is overwritten: choose another, {free} is free."
            )
        paths = [folder / name for name in ("score.json", "score.csv", "score.png")]
        with new_folder(folder):
            paths[0].write_text(json.dumps(self.plain(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            by_level = {level: frame_bits({level: values}, len(self)) for level, values in self.maps.items()}
            with open(paths[1], "w", newline="", encoding="utf-8") as file:
                lines = csv.writer(file)
                lines.writerow(["frame", self._unit, *by_level])
                columns = [self.bits.tolist(), *(values.tolist() for values in by_level.values())]
                lines.writerows(zip(self.frames, *columns, strict=True))
            self._draw(paths[2])
            if self.maps:
                paths.append(folder / "score.npz")
                arrays = {level: values.numpy() for level, values in self.maps.items()}
                np.savez_compressed(paths[-1], **arrays)  # type: ignore[arg-type]
                paths += self._draw_maps(folder / "score_map.png")
        return paths

    @property
    def _unit(self) -> str:
        return "bits_per_code" if self.maps else "bits_per_dimension"

    @property
    def _comment(self) -> str:
        return f"Made by framecast, model {self.record['model']}. {MEANING[self.of]}"

    def _draw(self, path: Path) -> None:
        known, record = set(self.record["known_frames"]), self.record
        starts, done = [], set(known)
        for first, last in record["windows"]:  # a window's first frame that no earlier one has scored
            fresh = [i for i in range(first, last + 1) if i not in done]
            starts += fresh[:1] if last > first else []  # frames scored one by one need no lines between them
            done.update(fresh)
        if self.maps:
            label = "bits per code (lower is likelier)"
            title = f"likelihood of codes by {record['model']}, {self._uniform} bits where all are as likely"
        else:
            label = "bits per dimension (lower is likelier)"
            title = f"upper bound by {record['model']}, {record['levels']} of {record['most_levels']} noise levels"
        save_frame_curve(
            path,
            frames=self.frames,
            values=self.bits.tolist(),
            label=label,
            title=title,
            given=sorted(known),
            starts=starts[1:],
            comment=self._comment,
        )

    def _draw_maps(self, path: Path) -> list[Path]:
        """Some frames, those of the least likely codes among them, and below each its step's map in every level."""
        if self.clip is None:
            return []
        evenly = {self.frames[round(i * (len(self) - 1) / (SHOWN - 1))] for i in range(SHOWN)}
        maps = []
        for level, values in self.maps.items():
            per_frame = values.repeat_interleave(len(self) // len(values), 0)
            whole = values.new_zeros(len(self.clip), *values.shape[1:])
            whole[list(self.frames)] = per_frame
            maps.append((level, whole))
        save_score_maps(
            path,
            pictures=[("clip", self.clip)],
            maps=maps,
            frames=sorted(evenly | {code["frames"][0] for code in self.least_likely_codes().values()}),
            label=f"bits per code ({self._uniform} where all are as likely)",
            comment=self._comment,
        )
        return [path]

    @property
    def _uniform(self) -> str:
        return " or ".join(dict.fromkeys(f"{bits:g}" for bits in self.record["uniform"].values()))


def frame_bits(maps: Mapping[str, Tensor], frames: int) -> Tensor:
    """Bits per code of every frame, over the codes that stand for it.

    A step of f frames counts for each of them with an f-th of its bits and of its codes. The mean over frames is that
    over codes.

    Args:
        maps: by level, (steps, height, width), bits of every code; the steps of a level share the frames equally.
        frames: how many.

    Returns:
        (frames,), float64.

    Example:
        >>> bottom = torch.tensor([1.0, 1.0, 7.0, 1.0]).view(4, 1, 1).expand(4, 2, 2)
        >>> frame_bits({"top": torch.full((2, 1, 1), 4.0), "bottom": bottom}, 8)[::2]
        tensor([1.3333, 1.3333, 6.6667, 1.3333], dtype=torch.float64)
    """
    bits, codes = torch.zeros(frames, dtype=torch.float64), 0.0
    for values in maps.values():
        each = frames // len(values)
        bits += (values.double().sum((1, 2)) / each).repeat_interleave(each)
        codes += values[0].numel() / each
    return bits / codes
