# SPDX-License-Identifier: Apache-2.0
"""What scoring a clip returns: bits per dimension of its frames, with their record, and how they are written.

A `Score` knows no system. `framecast.generate` makes them.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from framecast.data.files import new_folder
from framecast.data.plot import save_frame_curve
from framecast.forecast import free_folder

MEANING = (
    "An estimated upper bound, in bits per pixel and channel, on -log2 of the probability that the model gives to the "
    "frames, each value known to within half of `bin`; lower is likelier. It compares clips of one size, rate and "
    "value range under one model and one number of levels; it is no measure of how well the model forecasts, and most "
    "of it is told by fine detail."
)


@dataclass(frozen=True, repr=False)
class Score:
    """How likely a model finds the frames of a clip.

    The bits of a frame are an upper bound, estimated with random noise, on -log2 of the probability that the model
    gives to it, per pixel and channel, where a value is known to a bin (`record["bin"]`): a 255th of the clip's value
    range, which for 8-bit clips is its grey level. 8 bits are what it costs to tell a grey level without any model.

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
    """

    frames: tuple[int, ...]  # indices of the frames scored
    bits: Tensor  # (frames,), float64
    record: dict[str, Any]  # model, levels, windows, bin, seed, seconds, versions

    def __repr__(self) -> str:
        return f"Score({self.mean:.2f} bits per dimension over {len(self.frames)} frames)"

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def mean(self) -> float:
        """Bits per dimension over all frames scored."""
        return float(self.bits.mean())

    @property
    def least_likely(self) -> int:
        """The frame of the most bits."""
        return self.frames[int(self.bits.argmax())]

    def plain(self) -> dict[str, Any]:
        """All there is to tell, in plain values."""
        return {
            "bits_per_dimension": self.mean,
            "frames": list(self.frames),
            "bits": self.bits.tolist(),
            "least_likely": self.least_likely,
            "meaning": MEANING,
            **{key: value for key, value in self.record.items() if key != "frames"},
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write score.json, score.csv (a line per frame) and score.png (the curve), all or nothing.

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
            with open(paths[1], "w", newline="", encoding="utf-8") as file:
                lines = csv.writer(file)
                lines.writerow(["frame", "bits_per_dimension"])
                lines.writerows(zip(self.frames, self.bits.tolist(), strict=True))
            self._draw(paths[2])
        return paths

    def _draw(self, path: Path) -> None:
        known, record = set(self.record["known_frames"]), self.record
        starts, done = [], set(known)
        for first, last in record["windows"]:  # a window's first frame that no earlier one has scored
            fresh = [i for i in range(first, last + 1) if i not in done]
            starts += fresh[:1] if last > first else []  # frames scored one by one need no lines between them
            done.update(fresh)
        save_frame_curve(
            path,
            frames=self.frames,
            values=self.bits.tolist(),
            label="bits per dimension (lower is likelier)",
            title=f"upper bound by {record['model']}, {record['levels']} of {record['most_levels']} noise levels",
            given=sorted(known),
            starts=starts[1:],
            comment=f"Made by framecast, model {record['model']}. {MEANING}",
        )
