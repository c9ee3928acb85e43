# SPDX-License-Identifier: Apache-2.0
"""The windows that a protocol speaks of: which frames of which clips of a folder, in which order.

A folder of an open set must be that very set. Of any other set the clips lie in `<dir>/<split>`; those that cannot be
read or are too short are left out, and that is noted. The choice of clips and starts depends on the protocol's seed and
on the clips' names alone. Frames are taken as stored, whatever their rate, fitted, and read when they are asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framecast.data import fitted
from framecast.data.array_file import generated_by
from framecast.data.clip_file import BadClip
from framecast.data.folder import Listed, index_folder
from framecast.data.simulate.sets import SETS, BouncingSet, futures, window_starts
from framecast.draws import mix
from framecast.evaluate.lazy import LazyClips, Place
from framecast.evaluate.terms import Case, Cut, Protocol
from framecast.experiment import VideoSpec
from framecast.video import Clip

_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Windows:
    """Windows by unit in turn: the first few come from different units."""

    clips: Sequence[Clip]
    units: Sequence[str]  # the independent unit of each, a flow or a file
    names: Sequence[str] = ()  # of each, with its first frame, for example flow_0003@5
    found: int = 0  # clips in the split, of any kind
    futures: Callable[[int], Tensor] | None = None  # window -> its true futures (n, unknown frames, c, h, w), 8-bit
    notes: tuple[str, ...] = ()  # what the user should know of how they were found
    deviations: tuple[str, ...] = ()  # in what their frames are not as the protocol says
    rates: tuple[float, ...] = ()  # frames per second that the clips are stored at, each once

    def __len__(self) -> int:
        return len(self.clips)

    def first(self, count: int) -> Windows:
        """The first `count` of them."""
        return replace(self, clips=self.clips[:count], units=self.units[:count], names=self.names[:count])

    def digest(self) -> str:
        """sha256 over all frames: sets of different seeds have flows of the same names."""
        whole = hashlib.sha256()
        for clip in self.clips:
            whole.update(clip.frames.contiguous().numpy().tobytes())
        return whole.hexdigest()

    def readable(self, progress: Progress | None = None) -> Windows:
        """Those that can be read to their end: every one is read once; the others are left out, and that is noted.

        Raises:
            ValueError: none can.
        """
        good, why = [], ""
        for number in range(len(self)):
            try:
                _ = self.clips[number]
                good.append(number)
            except BadClip as error:
                why = why or str(error)
            if progress is not None:
                progress(number + 1, len(self))
        if len(good) == len(self):
            return self
        if not good:
            raise ValueError(f"no window can be read; the first: {why}")
        told = f"{len(self) - len(good)} of {len(self)} windows cannot be read and are left out; the first: {why}"
        true = self.futures
        return replace(
            self,
            clips=self.clips.pick(good) if isinstance(self.clips, LazyClips) else [self.clips[i] for i in good],
            units=[self.units[i] for i in good],
            names=[self.names[i] for i in good],
            futures=None if true is None else lambda i: true(good[i]),
            notes=(*self.notes, told),
        )


def windows(protocol: Protocol, case: Case, cut: Cut, dir: Path | str, *, like: VideoSpec | None = None) -> Windows:
    """The windows of a protocol in a folder of its set.

    Args:
        protocol: which set and split, how large frames are, which chances.
        case: how many frames a window has.
        cut: which windows.
        dir: folder of the set; of a published one `<dir>/<split>`, or itself where it has no folders of splits.
        like: frames are fitted to this, a size or number of channels of 0 being the protocol's; None: to the protocol.

    Returns:
        The windows, fewer than stated where the folder has fewer clips (not so of open sets).

    Raises:
        ValueError: no such folder, no window in it, or an open set that is not there, is another one or is not whole;
            the message says how to make it.
    """
    folder = Path(dir).expanduser()
    spec = _wanted(protocol, like)
    if protocol.set in SETS:
        root, found = _open_set(protocol, folder)
        cuts = _cut_open(protocol, case, cut, root, found)
        left: list[str] = []
    else:
        root, left = _split_folder(protocol, folder)
        found = _listed(root, spec)
        cuts, why = _cut_any(protocol, case, cut, root, found, spec)
        left += why
    turns = ((clip, starts[turn]) for turn in range(cut.per_clip) for clip, starts in cuts if turn < len(starts))
    places = [Place(root / clip.path, clip, start) for clip, start in turns]
    resized = sum((place.listed.height, place.listed.width) != (spec.height, spec.width) for place in places)
    ours = resized and protocol.resampling and (spec.height, spec.width) == (protocol.height, protocol.width)
    names = [place.listed.path if protocol.set not in SETS else place.path.stem for place in places]
    return Windows(
        clips=LazyClips(places, case.frames, spec),
        units=names,
        names=[f"{name}@{place.start}" for name, place in zip(names, places)],
        found=len(found),
        futures=_true_futures(protocol, case, places, spec),
        notes=(*left, *_fitting(places, spec)),
        deviations=(f"frames resized by antialiased bilinear, not by {protocol.resampling}",) if ours else (),
        rates=tuple(sorted({round(place.listed.fps, 2) for place in places if place.listed.fps})),
    )


def _wanted(protocol: Protocol, like: VideoSpec | None) -> VideoSpec:
    """What frames are fitted to; never resampled in time, since protocols count frames as stored."""
    own = VideoSpec(channels=protocol.channels, height=protocol.height, width=protocol.width, clip_frames=1)
    if like is None:
        return own
    return replace(
        like,
        channels=like.channels or own.channels,
        height=like.height or own.height,
        width=like.width or own.width,
        fps=None,
    )


# ---- open sets: exactly the one that is meant


def _make(protocol: Protocol, folder: Path) -> str:
    """How to come by the set; in a folder of its own where the protocol's clips are longer than those of the set."""
    frames = max(case.frames for case in protocol.cases)
    if frames <= SETS[protocol.set].frames:
        return f"make it: framecast data simulate {protocol.set} {folder}"
    name = folder if folder.name.endswith(f"-{frames}") else folder.with_name(f"{folder.name}-{frames}")
    made = f"framecast data simulate {protocol.set} {name} --frames {frames}"
    return f"make it with longer clips, {made}, and give --data {name}"


def _open_set(protocol: Protocol, folder: Path) -> tuple[Path, list[Listed]]:
    """The split's folder and its clips."""
    root = folder / protocol.split
    try:
        return root, index_folder(root)
    except ValueError:
        raise ValueError(f"{root} holds no clips of {protocol.set}; {_make(protocol, folder)}") from None


def _cut_open(
    protocol: Protocol, case: Case, cut: Cut, root: Path, found: list[Listed]
) -> list[tuple[Listed, list[int]]]:
    """The first clips with all the starts that the cut asks for.

    Raises:
        ValueError: any of them is not as it must be.
    """
    kind = "clip" if isinstance(SETS[protocol.set], BouncingSet) else "flow"
    make, chosen = _make(protocol, root.parent), found[: cut.clips]
    if len(chosen) < (cut.clips or 1):
        raise ValueError(f"{root.parent} holds {len(found)} of the {cut.clips} {protocol.split} {kind}s; {make}")
    cuts, meant = [], (protocol.set, protocol.split, protocol.seed)
    for clip in chosen:
        path = root / clip.path
        told = generated_by(path)
        if clip.problem is not None:
            raise ValueError(f"{clip.problem.rstrip('.')}; {make}")
        if tuple(told.get(key) for key in ("set", "split", "seed")) != meant:
            raise ValueError(
                f"{path} is not a {protocol.split} {kind} of {protocol.set} with seed {protocol.seed}; {make}"
            )
        starts = _starts(protocol, case, cut, clip, told)
        if len(starts) < cut.per_clip:
            need = f"{cut.per_clip} windows of {case.frames} frames" if cut.per_clip > 1 else f"{case.frames} frames"
            raise ValueError(f"{path} has {clip.frames} frames, too few for {need} of the protocol; {make}")
        cuts.append((clip, starts))
    return cuts


# ---- any other folder


def _split_folder(protocol: Protocol, folder: Path) -> tuple[Path, list[str]]:
    """The folder of the split, and a note where it is not one of its own.

    Raises:
        ValueError: there is no folder, or only those of other splits.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(
            f"{folder} {what}; {protocol.name} needs the clips of {protocol.set} in {folder / protocol.split}."
        )
    if (folder / protocol.split).is_dir():
        return folder / protocol.split, []
    if others := sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.lower() in _SPLITS):
        raise ValueError(
            f"{folder} has folders {', '.join(others)} and none named {protocol.split}, the split that {protocol.name} "
            f"is about: name the right one so."
        )
    return folder, [f"{folder} has no folder {protocol.split}: all clips in it are taken to be that split."]


def _listed(root: Path, spec: VideoSpec) -> list[Listed]:
    return index_folder(root, value_range=None if spec.value_range == (0.0, 255.0) else spec.value_range)


def _cut_any(
    protocol: Protocol, case: Case, cut: Cut, root: Path, found: list[Listed], spec: VideoSpec
) -> tuple[list[tuple[Listed, list[int]]], list[str]]:
    """Clips that can be used with their starts, as many as the cut asks for, and notes on the others.

    Raises:
        ValueError: none can be used.
    """
    broken = [clip for clip in found if clip.problem is not None]
    sound = [clip for clip in found if clip.problem is None]
    other = [clip for clip in sound if clip.channels != spec.channels and {clip.channels, spec.channels} != {1, 3}]
    usable, short = [], 0
    for clip in (clip for clip in sound if clip not in other):
        told = generated_by(root / clip.path) if cut.how == "phases" else {}
        starts = _starts(protocol, case, cut, clip, told)
        usable += [(clip, starts)] if starts else []
        short += not starts
    notes = []
    if broken:
        notes.append(f"{len(broken)} of {len(found)} clips cannot be read, left out; the first: {broken[0].problem}")
    if other:
        notes.append(f"{len(other)} of {len(found)} clips left out for their channels; the first: {other[0].path}.")
    if short:
        at = f" behind frame {cut.start}" if cut.how == "from_start" and cut.start else ""
        length = "another length than" if cut.how == "whole" else "under"
        notes.append(f"{short} of {len(found)} clips have {length} {case.frames} frames{at}, left out.")
    if not usable:
        raise ValueError(f"no clip in {root} gives a window of {protocol.name}: {' '.join(notes)}")
    if cut.choose == "random":
        usable = sorted(usable, key=lambda pair: mix("choose", protocol.seed, pair[0].path))
    return usable[: cut.clips], notes


# ---- where windows begin


def _starts(protocol: Protocol, case: Case, cut: Cut, clip: Listed, told: dict[str, Any]) -> list[int]:
    """First frames of a clip's windows, at most `per_clip`; none where it is too short.

    Args:
        protocol: for its seed.
        case: how long windows are.
        cut: how they are cut.
        clip: as listed.
        told: what the clip says of itself; its shedding period is needed for windows by phase.
    """
    room = clip.frames - case.frames + 1  # possible starts
    if cut.how == "phases":
        period = told.get("period", math.nan)
        if not math.isfinite(period):
            raise ValueError(f"{clip.path} does not say how long its flow sheds for, so its windows have no place.")
        return [start for start in window_starts(period, cut.per_clip) if start < room]
    if room < 1 or (cut.how == "whole" and room > 1):
        return []
    if cut.how == "random":
        rng = np.random.Generator(np.random.PCG64(mix("start", protocol.seed, clip.path)))
        return rng.choice(room, size=min(cut.per_clip, room), replace=False).tolist()
    if cut.how == "every":
        return list(range(min(cut.per_clip, room)))
    return [cut.start] if cut.start < room else []


# ---- what is said of frames, and true futures


def _fitting(places: Sequence[Place], spec: VideoSpec) -> Iterable[str]:
    """Notes on what is done to frames."""
    sizes = Counter((p.listed.width, p.listed.height) for p in places)
    sizes.pop((spec.width, spec.height), None)
    if sizes:
        (width, height), most = sizes.most_common(1)[0]
        yield (
            f"{sizes.total()} of {len(places)} windows resized to {spec.width}x{spec.height}, short side and centre "
            f"crop; {most} are {width}x{height}."
        )
    if recoloured := sum(place.listed.channels != spec.channels for place in places):
        how = "turned grey" if spec.channels == 1 else "repeated over 3 channels"
        yield f"{recoloured} of {len(places)} windows {how}."


def _true_futures(
    protocol: Protocol, case: Case, places: Sequence[Place], spec: VideoSpec
) -> Callable[[int], Tensor] | None:
    """Draws true futures of a window again from its state at the last known frame, where the set can do so."""
    leading = 0 < len(case.known) < case.frames and case.known == tuple(range(len(case.known)))
    if not protocol.futures or not leading or not isinstance(SETS.get(protocol.set), BouncingSet):
        return None

    def again(window: int) -> Tensor:
        place = places[window]
        clips = futures(
            protocol.set,
            protocol.split,  # type: ignore[arg-type]
            generated_by(place.path)["number"],
            known=place.start + len(case.known),
            frames=len(case.unknown),
            count=protocol.futures,
            seed=protocol.seed,
        )
        drawn = torch.stack([clip.frames for clip in clips])
        sized = fitted.fit(drawn.flatten(0, 1), channels=spec.channels, height=spec.height, width=spec.width)
        return sized.unflatten(0, drawn.shape[:2])

    return again
