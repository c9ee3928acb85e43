# SPDX-License-Identifier: Apache-2.0
"""A run whose groups no longer learn against each other is stopped, and its last good checkpoint is kept and named."""

import json
import re
from pathlib import Path

import pytest
import torch

from framecast.checkpoint import load_tensors
from framecast.system import Loss
from framecast.train import sound
from framecast.train.loop import Diverged
from framecast.train.run import Stopped, run
from framecast.train.sound import Soundness
from tests.tiny import change
from tests.train.duel import CodecStage, DuelExperiment
from tests.train.test_resume import StopAt

STEP = re.compile(r"step_(\d+)")


def watched(losses, patience, monkeypatch):
    """What `tick` answers to the losses of a group, at steps 0, 1, ..."""
    monkeypatch.setattr(sound, "PATIENCE", patience)
    guard = Soundness({"critic": (0.05, 4.0)})
    return guard, [guard.tick("critic", loss, step=step) for step, loss in enumerate(losses)]


def test_patience_is_over_after_so_many_turns_in_a_row(monkeypatch):
    guard, over = watched([1.0, 0.01, 5.0, 0.04], 3, monkeypatch)
    assert over == [False, False, False, True]
    assert guard.since == 1


def test_patience_begins_anew_after_a_turn_within_the_range(monkeypatch):
    guard, over = watched([0.01, 0.01, 1.0, 0.01, 0.01], 3, monkeypatch)
    assert not any(over)
    assert guard.since == 3


@pytest.mark.parametrize("loss", [0.05, 4.0])
def test_bounds_belong_to_the_range(monkeypatch, loss):
    assert watched([loss], 1, monkeypatch)[1] == [False]


def test_two_hundred_turns_are_waited_for():
    guard = Soundness({"critic": (0.05, 4.0)})
    over = [guard.tick("critic", 9.0, step=2 * turn) for turn in range(200)]
    assert over.index(True) == 199


def test_turns_of_other_groups_neither_count_nor_heal(monkeypatch):
    monkeypatch.setattr(sound, "PATIENCE", 2)
    guard = Soundness({"critic": (0.05, 4.0)})
    told = [guard.tick("critic", 9.0, step=0), guard.tick("model", 900.0, step=1), guard.tick("critic", 9.0, step=2)]
    assert told == [False, False, True]
    assert guard.since == 0


# ---- in a run: the critic learns in steps 2, 5, 8, ...


def astray(monkeypatch, *, first, until=10**9, value=9.0, patience=3):
    """Let the critic's loss be `value` from step `first` on, before step `until`, and 1 elsewhere."""
    honest = CodecStage.loss

    def loss(self, examples, *, step, turn, rng):
        found = honest(self, examples, step=step, turn=turn, rng=rng)
        if turn != "critic":
            return found
        return Loss(0.0 * found.total + (value if first <= step < until else 1.0), found.terms)

    monkeypatch.setattr(CodecStage, "loss", loss)
    monkeypatch.setattr(CodecStage, "sound", lambda self: {"critic": (0.05, 4.0)})
    monkeypatch.setattr(sound, "PATIENCE", patience)


def duel(clips, **settings):
    often = {"max_steps": 30, "checkpoint_every": 2, "keep": 2, "preview_every": None}
    return change(DuelExperiment(), data={"dir": str(clips)}, **{**often, **settings})


def checkpoints(folder):
    return sorted(int(STEP.search(p.name)[1]) for p in Path(folder, "checkpoints").iterdir() if p.name != "last")


def test_run_out_of_its_range_stops_and_names_the_last_good_checkpoint(clips, monkeypatch):
    astray(monkeypatch, first=8)  # turns at 8, 11, 14
    said = (
        r"the loss of the critic has been outside 0\.05 to 4 for 3 of their steps in a row, since step 8 \(now 9\)\. "
        r"The last good checkpoint is r.checkpoints.step_00000006; use that"
    )
    with pytest.raises(Diverged, match=said):
        run(duel(clips), out="r", device="cpu")
    # weights of step 8 gave the first loss out of the range, so the checkpoint of step 8 is none from before
    assert checkpoints("r") == [6, 12, 14]
    kept = load_tensors(Path("r/checkpoints/step_00000006/train_state.safetensors"))
    assert kept["model/weights/codec/seen"] == 6
    assert "The last good checkpoint is" in Path("r/log.txt").read_text()


def test_good_checkpoint_goes_once_training_is_sound_again(clips, monkeypatch):
    astray(monkeypatch, first=5, until=9)  # turns at 5 and 8; sound again at 11
    run(duel(clips, max_steps=16), out="r", device="cpu")
    assert checkpoints("r") == [14, 16]


def test_loss_too_low_is_as_bad_as_one_too_high(clips, monkeypatch):
    astray(monkeypatch, first=2, value=0.01)
    with pytest.raises(Diverged, match=r"for 3 of their steps .+ since step 2 \(now 0\.01\)\. No checkpoint had been"):
        run(duel(clips, checkpoint_every=4), out="r", device="cpu")


def test_stop_and_resume_count_on(clips, monkeypatch):
    astray(monkeypatch, first=8)
    with pytest.raises(Stopped):
        run(duel(clips), out="r", device="cpu", progress=StopAt(13))
    state = json.loads(Path("r/checkpoints/step_00000013/train_state.json").read_text())
    assert state["astray"] == {"critic": [2, 8]}
    with pytest.raises(Diverged, match=r"since step 8 .+ The last good checkpoint is r.checkpoints.step_00000006"):
        run(None, resume="r", device="cpu")
    assert 6 in checkpoints("r")
    assert max(checkpoints("r")) == 14  # the third turn in a row is that of step 14


def test_value_that_is_no_number_names_the_good_checkpoint_too(clips, monkeypatch):
    astray(monkeypatch, first=5, patience=100)
    wild = CodecStage.loss

    def loss(self, examples, *, step, turn, rng):
        found = wild(self, examples, step=step, turn=turn, rng=rng)
        return Loss(found.total * float("nan"), found.terms) if step == 11 else found

    monkeypatch.setattr(CodecStage, "loss", loss)
    with pytest.raises(Diverged, match=r"diverged at step 11 \(.*loss nan.+ last good checkpoint is .+step_00000004;"):
        run(duel(clips), out="r", device="cpu")
    assert checkpoints("r") == [4, 8, 10]


def test_guard_changes_no_bit_of_a_sound_run(clips, monkeypatch):
    plain = run(duel(clips, max_steps=8), out="a", device="cpu")
    monkeypatch.setattr(CodecStage, "sound", lambda self: {"critic": (0.0, 1e9)})
    guarded = run(duel(clips, max_steps=8), out="b", device="cpu")
    assert guarded.loss == plain.loss
    ours, theirs = (load_tensors(done.checkpoint / "train_state.safetensors") for done in (plain, guarded))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
