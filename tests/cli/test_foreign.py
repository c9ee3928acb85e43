# SPDX-License-Identifier: Apache-2.0
"""A clip of another kind than the training clips is told on the command line, in its JSON and in Python."""

import logging

import numpy as np
import pytest
import torch

import framecast
from framecast.checkpoint import describe
from framecast.task import Task
from framecast.train.run import run
from framecast.video import Clip
from tests.tiny import change, ramvid, write_clips

SAID = "does not look like what squares was trained on"


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A model of moving squares, hardly trained."""
    at = tmp_path_factory.mktemp("foreign")
    clips = write_clips(at / "clips", files=6, frames=12)
    return run(change(ramvid(), data={"dir": str(clips)}, max_steps=2), out=at / "squares", device="cpu").dir


@pytest.fixture
def noise(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "noise.npy", rng.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8))
    return tmp_path / "noise.npy"


@pytest.fixture
def own(tmp_path):
    """A clip of the same kind."""
    write_clips(tmp_path / "own", files=1, frames=12)
    return tmp_path / "own" / "clip0.npy"


def test_training_leaves_word_of_its_clips_in_the_model(squares):
    told = describe(squares).provenance["appearance"]
    assert told["values"] == "pictures" and told["clips"] >= 16
    assert set(told) == {"clips", "values", "level", "contrast", "detail", "change"}
    assert all(low <= middle <= high for low, middle, high in (told[k] for k in ("level", "contrast", "change")))


@pytest.mark.parametrize(
    "words", [("predict",), ("infill", "--known", "0,4"), ("interpolate", "--frames", 3)], ids=lambda words: words[0]
)
def test_foreign_clip_is_told_before_drawing_and_in_json(cast, squares, noise, own, words):
    verb, *rest = words
    ran = cast(verb, squares, noise, *rest, "--json")
    assert ran.code == 0
    (line,) = [line for line in ran.err.splitlines() if line.startswith("note: ")]
    assert SAID in line and line.endswith("framecast train ramvid/tiny32 --data DIR")
    assert SAID in ran.json["results"][0]["unlike"]
    assert SAID in cast(verb, squares, noise, *rest, "--json", "--dry-run").json["results"][0]["unlike"]
    ran = cast(verb, squares, own, *rest, "--json")
    assert "does not look" not in ran.err and ran.json["results"][0]["unlike"] is None


def test_only_known_frames_are_judged(squares, noise, own):
    model = framecast.load(squares, device="cpu")
    mixed = torch.from_numpy(np.concatenate([np.load(own).transpose(0, 3, 1, 2)[:4], np.load(noise)[:8]]))
    assert model.unlike(Clip(mixed), Task.predict(4, 8)) is None
    assert SAID in model.unlike(Clip(mixed), Task.predict(8, 4))
    assert SAID in model.unlike(Clip(mixed))


def test_black_clip_is_told(cast, squares, tmp_path):
    np.save(tmp_path / "black.npy", np.zeros((12, 1, 8, 8), np.uint8))
    assert "every pixel of a frame has the same value" in cast("predict", squares, "black.npy").err


def test_model_that_does_not_tell_says_nothing(cast, model_folder, noise):
    ran = cast("predict", model_folder, noise, "--json")
    assert "note: " not in ran.err and ran.json["results"][0]["unlike"] is None


def test_reading_in_python_logs_a_warning(squares, noise, own, caplog):
    model = framecast.load(squares, device="cpu")
    with caplog.at_level(logging.WARNING):
        framecast.read(own, like=model)
        assert not caplog.records
        clip = framecast.read(noise, like=model)
    assert SAID in caplog.text
    assert SAID in model.predict(clip[:2], 3).record["unlike"]


def test_negative_range_needs_no_equals_sign(cast, model_folder, tmp_path):
    np.save(tmp_path / "field.npy", np.linspace(-1, 1, 12 * 64, dtype=np.float32).reshape(12, 1, 8, 8))
    assert cast("predict", model_folder, "field.npy", "--value-range", "-1,1", "--dry-run").code == 0
