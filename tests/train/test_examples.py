# SPDX-License-Identifier: Apache-2.0
"""Examples of micro-batches: made anew in the order of training, or once of every window and kept."""

from dataclasses import replace

import pytest
import torch

from framecast.draws import draws
from framecast.train.examples import Fresh, Kept, open_examples
from framecast.train.plan import prepare
from framecast.train.run import run
from tests.tiny import TINY, change
from tests.toy import PixelStage


class Counting(PixelStage):
    """Examples that tell how they were asked for, and are the same for a clip in any company."""

    keeps = True

    def examples(self, clip, valid, rng):
        self.asked = [*getattr(self, "asked", []), list(rng.rows)]
        return {"mean": clip.mean(dim=(2, 3, 4)), "count": valid.sum(dim=1)}


def opened(clips, places, stage=Counting, **data):
    """A job of the toy, its stage replaced, and what gives its examples."""
    job = prepare(change(TINY["toy"](), data={"dir": str(clips), **data}), device="cpu")
    part = stage(job.system, job.settings)
    return job, part, open_examples(part, job.train, job.fabric, places, workers=job.experiment.data.workers)


def test_every_window_is_looked_at_once_and_by_itself(clips):
    job, stage, source = opened(clips, [])
    windows = job.train.windows
    with source as examples:
        assert isinstance(examples, Kept)
        for first in range(0, 3 * windows, 2):  # three epochs
            examples.of([first, first + 1], draws(first, [first, first + 1]))
    assert sorted(stage.asked) == [[number] for number in range(windows)]


def test_kept_examples_are_those_of_the_clips_asked_for(clips):
    job, _, source = opened(clips, [])
    positions = [5, 2, 5 + job.train.windows]
    with source as examples:
        found = examples.of(positions, draws(0, positions))
        clip, valid = job.train.batch(positions)
    assert torch.equal(found["mean"], clip.mean(dim=(2, 3, 4)))
    assert torch.equal(found["count"], valid.sum(dim=1))


def test_kept_examples_do_not_depend_on_where_a_run_began(clips):
    class Chance(Counting):
        def examples(self, clip, valid, rng):
            return {"noise": rng.normal((len(clip), 3))}  # no stage should; it must not spoil a resumed run if it does

    (_, _, one), (_, _, two) = opened(clips, [], Chance), opened(clips, [], Chance)
    with one as early, two as late:
        early.of(range(6), draws(1, range(6)))
        first, second = (source.of([4, 5], draws(7, [4, 5]))["noise"] for source in (early, late))
    assert torch.equal(first, second)


def test_fresh_examples_are_made_of_every_batch_with_its_own_noise(clips):
    class Noisy(PixelStage):
        def examples(self, clip, valid, rng):
            return {"clip": clip, "noise": rng.normal((len(clip), 3))}

    places = [[3, 1], [0, 2]]
    job, _, source = opened(clips, places, Noisy)
    with source as examples:
        assert isinstance(examples, Fresh)
        for at in places:
            found = examples.of(at, draws(9, at))
            assert torch.equal(found["clip"], job.train.batch(at)[0])
            assert torch.equal(found["noise"], draws(9, at).normal((2, 3)))


@pytest.mark.parametrize("data", [{"flip": True}, {"crop": "random"}])
def test_clips_that_change_are_not_kept(clips, data, monkeypatch):
    monkeypatch.setattr(PixelStage, "keeps", True)
    with pytest.raises(ValueError, match=r"stages\.pixel keeps what it makes of every clip, .+ data\.flip to false"):
        opened(clips, [], **data)


def test_a_run_of_kept_examples_equals_one_of_fresh_ones(clips, monkeypatch):
    experiment = change(TINY["toy"](), data={"dir": str(clips)}, accumulate=2)
    experiment = replace(experiment, model=replace(experiment.model, dropout=0.3))
    fresh = run(experiment, out="fresh", device="cpu")
    monkeypatch.setattr(PixelStage, "keeps", True)
    kept = run(experiment, out="kept", device="cpu")
    assert kept.loss == fresh.loss
    ours, theirs = (done.model.system.state_dict() for done in (kept, fresh))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
