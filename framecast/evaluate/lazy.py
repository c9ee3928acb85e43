# SPDX-License-Identifier: Apache-2.0
"""Windows that are read from their files when somebody asks for them, fitted, and kept while memory allows.

A set of thousands of videos has places at once and frames one at a time; a small set is read from disk once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from framecast.data.fit import Colour, read_fitted
from framecast.data.folder import Listed
from framecast.experiment import VideoSpec
from framecast.video import Clip

_MEMORY = 2**30  # most bytes of frames that are kept


@dataclass(frozen=True)
class Place:
    """Where a window lies."""

    path: Path
    listed: Listed
    start: int  # its first frame


@dataclass
class _Kept:
    """Frames that have been read, as many as memory should hold."""

    clips: dict[tuple[Path, int], Clip] = field(default_factory=dict)
    bytes: int = 0


class LazyClips(Sequence[Clip]):
    """Clips at places; parts of it share what has been read.

    Args:
        places: of the windows.
        frames: of each window.
        spec: what frames are fitted to.

    Asked for a clip it raises BadClip where that cannot be read.
    """

    def __init__(self, places: Sequence[Place], frames: int, spec: VideoSpec, kept: _Kept | None = None):
        self.places, self.frames, self.spec = places, frames, spec
        self._kept = kept or _Kept()

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> LazyClips: ...
    def __getitem__(self, index: int | slice) -> Clip | LazyClips:
        if isinstance(index, slice):
            return self.pick(range(*index.indices(len(self))))
        place = self.places[index]
        key = place.path, place.start
        if key in self._kept.clips:
            return self._kept.clips[key]
        colour = _colour(place.listed.channels, self.spec.channels)
        clip, _ = read_fitted(place.path, self.spec, colour=colour, start=place.start, frames=self.frames)
        if self._kept.bytes + clip.frames.nbytes <= _MEMORY:
            self._kept.clips[key] = clip
            self._kept.bytes += clip.frames.nbytes
        return clip

    def pick(self, numbers: Sequence[int]) -> LazyClips:
        """Some of them, by number."""
        return LazyClips([self.places[i] for i in numbers], self.frames, self.spec, self._kept)


def _colour(have: int, wanted: int) -> Colour:
    return "keep" if have == wanted else "gray" if wanted == 1 else "rgb"
