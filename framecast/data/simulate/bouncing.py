# SPDX-License-Identifier: Apache-2.0
"""Digits that move straight on and leave walls in a random direction: a video with many futures, all of them known.

Between walls a digit keeps its speed and direction. At a wall its new direction is drawn uniformly from the half circle
that points inwards, so the futures of a few frames are many and the truth can be drawn again from any state. The idea
is that of stochastic Moving MNIST (Denton and Fergus, 2018), without its data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from framecast.data.image_file import glyph
from framecast.draws import mix


@dataclass(frozen=True, kw_only=True)
class Bouncing:
    """What bounces, and where."""

    size: int = 32  # side of a frame in pixels
    glyph: int = 12  # font height of the digits in pixels
    digits: int = 2  # how many move at once
    speed: tuple[float, float] = (1.5, 3.0)  # pixels per frame, drawn uniformly once per digit


@dataclass(frozen=True)
class Moving:
    """One digit now."""

    shape: np.ndarray  # (h, w) uint8
    x: float  # left edge in pixels
    y: float  # top edge in pixels
    direction: float  # radians from the x axis towards greater y
    speed: float  # pixels per frame


State = tuple[Moving, ...]


def start(scene: Bouncing, rng: np.random.Generator) -> State:
    """Digits, places, directions and speeds, each drawn uniformly."""
    moving = []
    for _ in range(scene.digits):
        shape = glyph(str(rng.integers(10)), scene.glyph)
        moving.append(
            Moving(
                shape=shape,
                x=rng.random() * (scene.size - shape.shape[1]),
                y=rng.random() * (scene.size - shape.shape[0]),
                direction=rng.random() * 2 * math.pi,
                speed=scene.speed[0] + rng.random() * (scene.speed[1] - scene.speed[0]),
            )
        )
    return tuple(moving)


def advance(scene: Bouncing, state: State, rng: np.random.Generator) -> State:
    """The state one frame later."""
    return tuple(_advance(scene, digit, rng) for digit in state)


def _advance(scene: Bouncing, digit: Moving, rng: np.random.Generator) -> Moving:
    """Straight to the next wall, there off into the half circle inwards, until the frame's time is used up."""
    x, y, direction, left = digit.x, digit.y, digit.direction, 1.0
    height, width = digit.shape.shape
    far_x, far_y = scene.size - width, scene.size - height
    while True:
        v_x, v_y = digit.speed * math.cos(direction), digit.speed * math.sin(direction)
        to_x, to_y = _time_to_wall(x, v_x, far_x), _time_to_wall(y, v_y, far_y)
        if min(to_x, to_y) >= left:
            x, y = min(max(x + v_x * left, 0.0), far_x), min(max(y + v_y * left, 0.0), far_y)
            return replace(digit, x=x, y=y, direction=direction)
        if to_x <= to_y:
            left, x, y = left - to_x, 0.0 if v_x < 0 else far_x, min(max(y + v_y * to_x, 0.0), far_y)
            inwards = 0.0 if v_x < 0 else math.pi
        else:
            left, y, x = left - to_y, 0.0 if v_y < 0 else far_y, min(max(x + v_x * to_y, 0.0), far_x)
            inwards = math.pi / 2 if v_y < 0 else -math.pi / 2
        direction = inwards + (rng.random() - 0.5) * math.pi


def _time_to_wall(at: float, speed: float, far: float) -> float:
    """Frames until the coordinate reaches 0 or `far`."""
    if speed == 0:
        return math.inf
    return max(0.0, (far - at if speed > 0 else -at) / speed)


def draw(scene: Bouncing, state: State) -> np.ndarray:
    """The state as a frame (size, size) uint8: each digit shifted by fractions of a pixel, the brightest wins."""
    frame = np.zeros((scene.size, scene.size), np.float64)
    for digit in state:
        height, width = digit.shape.shape
        left, top = min(int(digit.x), scene.size - width), min(int(digit.y), scene.size - height)
        part_x, part_y = digit.x - left, digit.y - top
        spread = np.zeros((height + 1, width + 1))
        for down, share_y in ((0, 1 - part_y), (1, part_y)):
            for right, share_x in ((0, 1 - part_x), (1, part_x)):
                spread[down : down + height, right : right + width] += share_y * share_x * digit.shape
        seen = frame[top : top + height + 1, left : left + width + 1]
        np.maximum(seen, spread[: seen.shape[0], : seen.shape[1]], out=seen)
    return np.rint(frame).astype(np.uint8)


def film(scene: Bouncing, state: State, frames: int, rng: np.random.Generator) -> tuple[Tensor, list[State]]:
    """Frames from this state on, it being the first, (frames, 1, size, size) uint8, and the state at each frame."""
    states = [state]
    while len(states) < frames:
        states.append(advance(scene, states[-1], rng))
    pictures = [draw(scene, s) for s in states[:frames]]
    return torch.from_numpy(np.stack(pictures)[:, None]), states[:frames]


def clip(scene: Bouncing, *, frames: int, seed: int) -> Tensor:
    """One clip (frames, 1, size, size) uint8.

    Args:
        scene: what bounces.
        frames: length; a longer clip of the same seed begins with the shorter one.
        seed: of this clip, for example `mix("bouncing32", seed, "test", index)`.

    Example:
        >>> clip(Bouncing(), frames=16, seed=1).shape
        torch.Size([16, 1, 32, 32])
    """
    rng = np.random.Generator(np.random.PCG64(mix("bouncing", seed)))
    return film(scene, start(scene, rng), frames, rng)[0]


def futures(scene: Bouncing, *, known: int, frames: int, count: int, seed: int) -> Tensor:
    """True futures of the clip of this seed, drawn again from its state at the last known frame.

    The clip's own continuation is one more draw from the same law.

    Args:
        scene: as for `clip`.
        known: frames given; the state is that of frame `known` - 1.
        frames: that follow.
        count: of futures.
        seed: of the clip.

    Returns:
        (count, frames, 1, size, size) uint8.

    Raises:
        ValueError: no known frame.
    """
    if known < 1:
        raise ValueError(f"futures continue from known frames; known is {known}, give 1 or more.")
    rng = np.random.Generator(np.random.PCG64(mix("bouncing", seed)))
    state = film(scene, start(scene, rng), known, rng)[1][-1]
    drawn = []
    for number in range(count):
        rng = np.random.Generator(np.random.PCG64(mix("bouncing future", seed, known, number)))
        drawn.append(film(scene, state, frames + 1, rng)[0][1:])
    return torch.stack(drawn)
