# SPDX-License-Identifier: Apache-2.0
"""The training clips as a table to look things up in: which windows of them were most like some given frames?

Hides reading a folder at the size of the question and the search: distances come from one matrix product per clip, so
that a frame that lies in many windows is compared once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from framecast.data.clip_file import BadClip
from framecast.data.fit import read_fitted
from framecast.data.folder import Listed, index_folder
from framecast.experiment import VideoSpec
from framecast.video import to_video

_log = logging.getLogger(__name__)
_MEMORY = 4 * 2**30  # most bytes of frames held, as float32


def _count(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


class Library:
    """All frames of a folder of clips, at one size.

    Args:
        folder: searched recursively; clips are read frame by frame as stored, whatever their rate.
        channels, height, width: of the frames that will be asked about; clips are resized and centre cropped to it.

    Raises:
        ValueError: no clips in it that have these channels, or more than memory should hold.
    """

    def __init__(self, folder: str | Path, *, channels: int, height: int, width: int):
        self.folder = Path(folder).expanduser()
        listed = [clip for clip in index_folder(self.folder) if self._usable(clip, channels)]
        if not listed:
            raise ValueError(self._nothing(channels))
        need = 4 * channels * height * width * sum(clip.frames for clip in listed)
        if need > _MEMORY:
            raise ValueError(
                f"the clips of {folder} take {need / 2**30:.1f} GiB at {width}x{height} pixels, and at most "
                f"{_MEMORY / 2**30:.0f} GiB are searched: name a folder with fewer of them, or give a smaller clip."
            )
        spec = VideoSpec(channels=channels, height=height, width=width, clip_frames=1)
        self.clips: list[Tensor] = []  # (frames, channels * height * width) each
        for clip in listed:
            try:
                self.clips.append(to_video(read_fitted(self.folder / clip.path, spec)[0])[0].flatten(1))
            except BadClip as error:
                _log.warning("%s is left out of the search: %s", clip.path, error)
        if not self.clips:
            raise ValueError(f"no clip in {self.folder} can be read to its end: framecast data check {self.folder}")
        self.warned = False  # that it holds what it is asked about; once is enough
        self.squares = [frames.square().sum(1) for frames in self.clips]

    def _usable(self, clip: Listed, channels: int) -> bool:
        if clip.problem is not None:
            _log.warning("%s is left out of the search: %s", clip.path, clip.problem)
        return clip.problem is None and clip.channels == channels

    def _nothing(self, channels: int) -> str:
        """Why no clip of the folder can be used."""
        clips = index_folder(self.folder)
        broken = next((clip.problem for clip in clips if clip.problem is not None), "")
        other = next((clip for clip in clips if clip.problem is None), None)
        if other is None:
            return f"no clip in {self.folder} can be read: {broken}"
        flag = {(1, 3): "add --rgb, or ", (3, 1): "add --gray, or "}.get((channels, other.channels), "")
        return (
            f"the clips of {self.folder} have {_count(other.channels)} ({other.path}), the given one has {channels}: "
            f"{flag}name a folder of clips like it."
        )

    def nearest(
        self, given: Float[Tensor, "b k c h w"], places: Sequence[int], *, length: int, count: int
    ) -> Float[Tensor, "b n t c h w"]:
        """Windows whose frames at `places` are nearest to the given ones in squared distance, the nearest first.

        Args:
            given: known frames in -1 to 1.
            places: where in the window each of them lies.
            length: frames of a window.
            count: how many; fewer come back where the clips have fewer.

        Raises:
            ValueError: no clip is that long.
        """
        asked = given.flatten(2)
        scores: list[Tensor] = []
        spots: list[tuple[int, int]] = []
        for number, frames in enumerate(self.clips):
            starts = len(frames) - length + 1
            if starts < 1:
                continue
            # |r - q|^2 without |q|^2, which is the same for every window
            away = self.squares[number] - 2 * asked @ frames.T
            scores.append(torch.stack([away[:, k, at : at + starts] for k, at in enumerate(places)]).sum(0))
            spots += [(number, start) for start in range(starts)]
        if not spots:
            longest = max(map(len, self.clips))
            raise ValueError(
                f"the longest clip of {self.folder} has {longest} frames, a window takes {length}: ask for fewer "
                "frames, or name a folder of longer clips."
            )
        best = torch.cat(scores, dim=1).topk(min(count, len(spots)), dim=1, largest=False).indices
        windows = [self.clips[clip][start : start + length] for clip, start in (spots[i] for i in best.flatten())]
        return torch.stack(windows).view(*best.shape, length, *given.shape[2:])
