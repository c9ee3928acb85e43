# SPDX-License-Identifier: Apache-2.0
"""Bouncing digits: straight flight, random reflection, futures that share their past."""

import math

import numpy as np
import pytest
import torch

from framecast.data.simulate.bouncing import Bouncing, Moving, advance, clip, draw, film, futures, start


def block(x, y, direction, speed, side=4):
    return Moving(np.full((side, side), 255, np.uint8), x, y, direction, speed)


def test_clip_is_a_grey_uint8_video_with_ink():
    video = clip(Bouncing(), frames=16, seed=3)
    assert video.shape == (16, 1, 32, 32) and video.dtype == torch.uint8
    assert (video.flatten(1).max(1).values > 150).all()


def test_same_seed_gives_same_clip_and_prefix():
    assert torch.equal(clip(Bouncing(), frames=16, seed=3)[:5], clip(Bouncing(), frames=5, seed=3))
    assert not torch.equal(clip(Bouncing(), frames=5, seed=3), clip(Bouncing(), frames=5, seed=4))


def test_flight_between_walls_is_straight():
    scene, rng = Bouncing(size=64), np.random.default_rng(0)
    (digit,) = advance(scene, (block(20.0, 30.0, 0.5, 2.0),), rng)
    assert digit.x == pytest.approx(20 + 2 * math.cos(0.5)) and digit.y == pytest.approx(30 + 2 * math.sin(0.5))
    assert digit.direction == 0.5


@pytest.mark.parametrize(
    ("x", "y", "towards", "inwards"),
    [
        (0.0, 14.0, math.pi, 0.0),
        (28.0, 14.0, 0.0, math.pi),
        (14.0, 0.0, -1.5708, 1.5708),
        (14.0, 28.0, 1.5708, -1.5708),
    ],
)
def test_directions_after_a_wall_are_uniform_over_the_half_circle(x, y, towards, inwards):
    scene, rng = Bouncing(size=32), np.random.default_rng(1)
    after = [advance(scene, (block(x, y, towards, 1.0),), rng)[0].direction for _ in range(4000)]
    turned = np.angle(np.exp(1j * (np.array(after) - inwards)))
    assert np.abs(turned).max() <= math.pi / 2 + 1e-4
    counts = np.histogram(turned, bins=8, range=(-math.pi / 2, math.pi / 2))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-squared with 7 degrees of freedom, p = 0.001


def test_digits_stay_inside_and_keep_their_speed():
    scene, rng = Bouncing(speed=(3.0, 3.0)), np.random.default_rng(2)
    state = start(scene, rng)
    for _ in range(2000):
        before, state = state, advance(scene, state, rng)
        for old, new in zip(before, state):
            height, width = new.shape.shape
            assert 0 <= new.x <= 32 - width and 0 <= new.y <= 32 - height
            travelled = math.hypot(new.x - old.x, new.y - old.y)
            assert travelled <= 3 + 1e-9
            assert new.direction != old.direction or travelled == pytest.approx(3)


def test_drawing_moves_by_fractions_and_keeps_ink():
    scene = Bouncing(size=16)
    whole, shifted = draw(scene, (block(5, 6, 0, 1),)), draw(scene, (block(5.25, 6, 0, 1),))
    assert whole[6:10, 5:9].min() == 255 and whole.astype(int).sum() == 16 * 255
    assert shifted[7, 5] == 191 and shifted[7, 9] == 64
    assert draw(scene, (block(12.0, 12.0, 0, 1),))[12:, 12:].min() == 255  # at the far walls


def test_overlap_takes_the_brighter():
    dim = Moving(np.full((4, 4), 100, np.uint8), 5, 5, 0, 1)
    frame = draw(Bouncing(size=16), (block(7, 7, 0, 1), dim))
    assert frame[7, 7] == 255 and frame[5, 5] == 100


def test_futures_differ_only_after_walls():
    scene = Bouncing()
    many = futures(scene, known=4, frames=12, count=20, seed=8)
    assert many.shape == (20, 12, 1, 32, 32)
    assert torch.equal(many[:3], futures(scene, known=4, frames=12, count=3, seed=8))
    assert len({future.numpy().tobytes() for future in many}) > 10


def test_futures_continue_the_clip_where_no_wall_is_met():
    scene = Bouncing(size=200, speed=(1.5, 1.5))  # far walls: flight is straight for most seeds
    same = sum(
        torch.equal(clip(scene, frames=8, seed=seed)[4:], futures(scene, known=4, frames=4, count=1, seed=seed)[0])
        for seed in range(12)
    )
    assert same >= 8


def test_clip_and_futures_follow_one_law():
    scene, ends = Bouncing(), []
    for seed in range(60):
        truth = clip(scene, frames=16, seed=seed)[15].float()
        drawn = futures(scene, known=4, frames=12, count=2, seed=seed)[:, -1].float()
        ends.append(((truth - drawn[0]).abs().mean() - (drawn[1] - drawn[0]).abs().mean()).item())
    assert abs(np.mean(ends)) < 3 * np.std(ends) / math.sqrt(60)


def test_film_begins_with_its_state():
    scene, rng = Bouncing(), np.random.default_rng(5)
    state = start(scene, rng)
    video, states = film(scene, state, 3, rng)
    assert states[0] is state and np.array_equal(video[0, 0].numpy(), draw(scene, state))


def test_futures_without_a_known_frame_are_refused():
    with pytest.raises(ValueError, match="known is 0"):
        futures(Bouncing(), known=0, frames=4, count=1, seed=0)
