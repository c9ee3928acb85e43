# SPDX-License-Identifier: Apache-2.0
"""What is asked for: which frames of the wanted video are known, and by which windows they can be filled. No torch.

Frame indices are 0-based everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_FRAMES = 1_000_000  # an index or a length beyond it is a slip of the finger, and would fill the memory


class UnsupportedTask(ValueError):
    """The system cannot answer such a set of known frames; the message says what it can do."""


@dataclass(frozen=True)
class Task:
    """Which frames of the wanted video are known; its length is the length of the wanted video."""

    verb: str  # predict, infill, interpolate or generate: for messages and records
    known: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.known)

    @classmethod
    def predict(cls, context: int, horizon: int) -> Task:
        """`context` given frames, then `horizon` frames to draw."""
        if context < 1 or horizon < 1:
            raise ValueError(f"predict needs at least 1 known frame and a horizon of 1, got {context} and {horizon}.")
        return cls("predict", (True,) * context + (False,) * horizon)

    @classmethod
    def infill(cls, known_frames: Sequence[int], frames: int) -> Task:
        """A video of `frames` frames of which those at `known_frames` are given."""
        if not known_frames:
            raise ValueError("infill needs at least one known frame; to draw whole clips use generate.")
        outside = [i for i in known_frames if not 0 <= i < frames]
        if outside:
            raise ValueError(f"known frame {outside[0]} is outside the clip: it has frames 0 to {frames - 1}.")
        wanted = set(known_frames)
        if len(wanted) == frames:
            raise ValueError(f"all {frames} frames are known: there is nothing to fill in.")
        return cls("infill", tuple(i in wanted for i in range(frames)))

    @classmethod
    def interpolate(cls, given: int, factor: int) -> Task:
        """Every `factor`-th frame is given; the first and the last are, and the duration stays."""
        if given < 2:
            raise ValueError(f"interpolate needs at least 2 frames, got {given}.")
        if factor < 2:
            raise ValueError(f"interpolate needs a factor of 2 or more, got {factor}.")
        if (given - 1) * factor >= MOST_FRAMES:
            raise ValueError(
                f"{given} frames at a factor of {factor} make over {MOST_FRAMES:,} frames: take a smaller factor."
            )
        return cls("interpolate", tuple(i % factor == 0 for i in range((given - 1) * factor + 1)))

    @classmethod
    def generate(cls, frames: int) -> Task:
        """`frames` frames, none given."""
        if frames < 1:
            raise ValueError(f"generate needs at least 1 frame, got {frames}.")
        return cls("generate", (False,) * frames)


@dataclass(frozen=True)
class Window:
    """One `sample` call: these frames of the whole video, of which these are finished when it runs.

    Indices below 0 or past the end are surplus: they are drawn to fill the window and dropped.
    """

    frames: tuple[int, ...]
    known: tuple[bool, ...]


def sliding_windows(known: Sequence[bool], length: int, overlap: int) -> list[Window]:
    """Fill a video of any length with windows of `length` frames, in order of time.

    The first window sees everything given at its positions; a later one begins `overlap` frames before the first
    frame that is still missing. Where it can, a window ends on a given frame, so that no frame is drawn blind to a
    given neighbour (no seams); it then reaches further back instead, and before frame 0 if need be (surplus frames).
    From length 3 on it always can.

    Args:
        known: True where a frame is given.
        length: frames of every window.
        overlap: finished frames that a later window sees, 1 to length - 1.

    Returns:
        The windows. Every missing frame is first drawn in exactly one of them and known in all later ones.

    Example:
        >>> [w.frames[0] for w in sliding_windows([True] * 4 + [False] * 28, length=16, overlap=4)]
        [0, 12, 24]
    """
    if not 1 <= overlap < length:
        raise ValueError(f"overlap {overlap} must be at least 1 and below the window of {length} frames.")
    finished = list(known)
    last = max((i for i, given in enumerate(known) if given), default=-1)
    windows: list[Window] = []
    missing = 0  # first frame that is
    while missing < len(known):
        if finished[missing]:
            missing += 1
            continue
        start = 0 if missing < length and not windows else max(0, missing - overlap)
        end = start + length
        if end <= last or end > len(known) >= length:
            anchors = [i for i in range(missing + 1, min(end, len(known))) if known[i]]
            if anchors:
                end = anchors[-1] + 1
            elif end < len(known) and known[end]:
                # the frame behind the window is given: take it in, or, where that would lose sight of the finished
                # frame before the gap, leave half of the gap to a window that can
                end += 1 if missing - start > 1 else -((end - missing) // 2)
            start = end - length
        frames = tuple(range(start, end))
        windows.append(Window(frames, tuple(0 <= i < len(finished) and finished[i] for i in frames)))
        for i in frames:
            if 0 <= i < len(finished):
                finished[i] = True
    return windows


def parse_frames(text: str) -> list[int]:
    """Frame indices written as `0-3,14-15`: 0-based, ranges inclusive, sorted, each once.

    Raises:
        ValueError: anything else, a range that runs backwards, or an index no clip has.

    Example:
        >>> parse_frames("0-3,14-15")
        [0, 1, 2, 3, 14, 15]
    """
    indices: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"frames {text!r}: {piece.strip()!r} is not an index or a range; write for example 0-3,14-15."
            )
        begin, end = int(first), int(last) if dash else int(first)
        if end < begin:
            raise ValueError(f"frames {text!r}: the range {piece.strip()} runs backwards; write {end}-{begin}.")
        if end >= MOST_FRAMES:
            raise ValueError(f"frames {text!r}: {end} is too high an index; clips have at most {MOST_FRAMES:,} frames.")
        indices.update(range(begin, end + 1))
    return sorted(indices)
