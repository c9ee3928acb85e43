# SPDX-License-Identifier: Apache-2.0
"""Training clips: an infinite, deterministic stream cut from a folder of files.

Position p of the stream is a pure function of (seed, p): epoch p // windows has its own permutation of all windows, and
flip and random crop come from a stream of random numbers keyed by p. A run that knows its step therefore resumes
exactly, for any batch size, number of processes or devices. Read next: `framecast.data.fitted` (reading, resizing).
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from framecast.data.fitted import FittedFrames, cut
from framecast.data.folder import Listed, Progress, index_folder
from framecast.data.windows import Part, Plan, Rejected, count, plan, reason
from framecast.draws import mix
from framecast.experiment import DataConfig
from framecast.video import Clip, Video, to_video

_log = logging.getLogger(__name__)
Split = Literal["train", "validation"]

__all__ = ["ClipStream", "Rejected", "Split", "Window", "loader", "open_streams"]


@dataclass(frozen=True)
class Window:
    """One training clip: where it comes from."""

    path: str
    frames: tuple[int, ...]  # source frames, the last repeated where the file is too short
    valid: int  # how many of them are the file's own


class ClipStream(Dataset[tuple[Tensor, Tensor]]):
    """Infinite stream of training clips by position; see `open_streams`.

    `stream[p]` is `stream.clip(p)`: a view for torch's loaders. It travels to other processes; caches stay behind.
    """

    def __init__(self, plan: Plan, *, split: Split, seed: int):
        self.parts = plan.train if split == "train" else plan.validation
        self.config = plan.config
        self.video = plan.video
        self.split = split
        self.seed = seed
        self.rejected = list(plan.rejected)
        self.notes = list(plan.notes)
        self.borrowed = plan.borrowed  # nothing is held out: validation sees the training clips
        self.windows = sum(part.windows for part in self.parts)
        self._ends = np.cumsum([part.windows for part in self.parts])
        self.root = Path(self.config.dir).expanduser()
        self._reader = FittedFrames(self.root, self.config)
        self._broken: set[str] = set()

    @property
    def files(self) -> tuple[Listed, ...]:
        """The files of this split."""
        return tuple(part.listed for part in self.parts)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.clip(position)

    def clip(self, position: int) -> tuple[Float32[Tensor, "t c h w"], Bool[Tensor, "t"]]:
        """The clip at a position of the stream, in -1 to 1, and which of its frames are not padding.

        A file that breaks while it is read is replaced by the same window of the next sound file, and named once in
        the log.

        Raises:
            ValueError: too many files break.
        """
        number = self.number(position)
        rng = torch.Generator().manual_seed(mix("clip", self.seed, position))
        down, right, mirror = torch.rand(3, generator=rng).tolist()
        if self.split == "validation" or self.config.crop == "center":
            down, right = 0.5, 0.5
        return self._load(number, crop=(down, right), mirror=self._flips and mirror < 0.5)

    def number(self, position: int) -> int:
        """Number of the window at a position, from 0 to windows - 1: each epoch walks its own permutation."""
        epoch, place = divmod(int(position), self.windows)
        return int(_permutation(mix("epoch", self.seed, epoch), self.windows)[place])

    def uncached(self) -> ClipStream:
        """The same stream, which keeps no file decoded: for a look at few clips."""
        same = copy(self)
        same._reader, same._broken = FittedFrames(self.root, replace(self.config, cache="none")), set()
        return same

    def batch(self, positions: Iterable[int]) -> tuple[Video, Bool[Tensor, "b t"]]:
        """The clips at these positions, stacked."""
        clips, valid = zip(*(self.clip(position) for position in positions))
        return torch.stack(clips), torch.stack(valid)

    def first(self, n: int) -> Video:
        """Up to n clips spread evenly over all windows, uncropped by chance and unmirrored: for previews."""
        n = min(n, self.windows)
        chosen = [self._load(i * self.windows // n, crop=(0.5, 0.5), mirror=False)[0] for i in range(n)]
        return torch.stack(chosen)

    def window(self, position: int) -> Window:
        """Where the clip at a position comes from (before any replacement of a broken file)."""
        part, frames, valid = self._cut(self.number(position))
        return Window(part.listed.path, tuple(int(f) for f in frames), valid)

    def few_clips(self, batch: int, *, stage: str) -> str | None:
        """A sentence where a global batch holds more clips than there are, else None."""
        if self.windows >= batch:
            return None
        times = batch // self.windows
        often = f"every clip appears {times} times or more" if times > 1 else "some clips appear twice"
        return (
            f"{count(self.windows, 'clip')} but global batch {batch}: {often} in a batch; "
            f"lower stages.{stage}.batch, or data.spacing/stride to get more."
        )

    @property
    def _flips(self) -> bool:
        return self.config.flip and self.split == "train"

    def _cut(self, number: int) -> tuple[Part, np.ndarray, int]:
        """File, source frames and count of real frames of window `number`."""
        at = int(np.searchsorted(self._ends, number, side="right"))
        part = self.parts[at]
        within = number - int(self._ends[at]) + part.windows
        length, stride = self.video.clip_frames, self.config.stride
        span = (length - 1) * stride + 1
        start = min(within * self.config.spacing, max(0, len(part.frames) - span))
        frames = np.asarray(part.frames[start : start + span : stride], dtype=np.int64)
        return part, np.pad(frames, (0, length - len(frames)), mode="edge"), len(frames)

    def _load(self, number: int, *, crop: tuple[float, float], mirror: bool) -> tuple[Tensor, Tensor]:
        """Window `number` as a clip, or its stand-in."""
        for _ in self.parts:
            part, frames, valid = self._cut(number)
            try:
                pictures = self._reader.read(part.listed, frames, used=part.frames)
                pictures = cut(pictures, height=self.video.height, width=self.video.width, crop=crop)
                video = to_video(Clip(pictures, value_range=part.listed.value_range))[0]
            except (ValueError, OSError) as error:  # BadClip, values outside the declared range, a failing disk
                self._give_up_on(part.listed.path, error)
                number = self._elsewhere(number)
                continue
            return (video.flip(-1) if mirror else video), torch.arange(self.video.clip_frames) < valid
        raise ValueError(f"no file of {self.config.dir} can be read any more; run `framecast data check`.")

    def _elsewhere(self, number: int) -> int:
        """The window of the next file that stands for window `number`."""
        at = int(np.searchsorted(self._ends, number, side="right"))
        within = number - int(self._ends[at]) + self.parts[at].windows
        following = (at + 1) % len(self.parts)
        part = self.parts[following]
        return int(self._ends[following]) - part.windows + within % part.windows

    def _give_up_on(self, path: str, error: Exception) -> None:
        """Name a broken file once; refuse to go on when they are too many to be chance."""
        if path in self._broken:
            return
        self._broken.add(path)
        why = reason(path, str(error))
        _log.warning("%s: %s Other clips are used in its place.", path, why)
        if len(self._broken) > max(3, len(self.parts) // 10) or len(self._broken) == len(self.parts):
            raise ValueError(
                f"{len(self._broken)} of {len(self.parts)} files of {self.config.dir} broke while being read, the last "
                f"{path}: {why} Run `framecast data check {self.config.dir}` and repair or remove them."
            ) from error


@lru_cache(maxsize=4)  # a batch may span two epochs, for two streams
def _permutation(seed: int, length: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def loader(
    stream: ClipStream, batches: Iterable[Sequence[int]], *, workers: int
) -> Generator[tuple[Video, Bool[Tensor, "b t"]], None, None]:
    """Batches of clips in the order asked for, read in `workers` processes (0: in this one).

    Args:
        stream: of clips.
        batches: positions of each batch; may be infinite.
        workers: number of reading processes; what is read does not depend on it.

    Raises:
        ValueError: too many files break.
    """
    if workers == 0:
        yield from map(stream.batch, batches)
        return
    quiet = torch.Generator().manual_seed(0)  # else the loader draws from the global generator, which dropout uses
    source = DataLoader(
        stream, batch_sampler=map(list, batches), num_workers=workers, generator=quiet, worker_init_fn=_outlive
    )
    reading: Any = iter(source)
    try:
        yield from map(tuple, reading)
    except ValueError as error:
        words = str(error).rstrip().splitlines()[-1]  # the rest is the traceback of the reading process
        raise ValueError(words.removeprefix("ValueError: ")) from None
    finally:
        reading._shutdown_workers()  # torch does so when nobody holds the iterator; a traceback may hold it for long


def _outlive(worker: int) -> None:
    """Let a reading process live on when all are told to stop: training wants more clips until its step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not forever, lest it keeps a program from ending
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(600))


def open_streams(
    config: DataConfig, *, clip_frames: int, min_frames: int, seed: int, progress: Progress | None = None
) -> tuple[ClipStream, ClipStream]:
    """Streams of training and of validation clips of the folder `config.dir`, by the rules of `framecast.data.windows`.

    Args:
        config: folder, cutting and reading.
        clip_frames: frames of a clip.
        min_frames: shortest clip that is padded; shorter ones are rejected.
        seed: of the order of the clips, flips and random crops.
        progress: called with (opened, to open) while files are looked at for the first time.

    Raises:
        ValueError: settings out of range, no folder, no usable clip, or unlike frame rates.
    """
    listed = index_folder(Path(config.dir), value_range=config.value_range, progress=progress)
    cut = plan(listed, config, clip_frames=clip_frames, min_frames=min_frames)
    return ClipStream(cut, split="train", seed=seed), ClipStream(cut, split="validation", seed=seed)
