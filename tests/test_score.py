"""What scoring returns: the frame that stands out, files written whole."""

import json

import pytest
import torch
from PIL import Image

from framecast.score import Score

RECORD = {
    "model": "mine",
    "known_frames": [0, 1],
    "frames": 6,
    "levels": 3,
    "most_levels": 9,
    "windows": [[0, 3], [2, 5]],
    "bin": 1.0,
}


def score():
    return Score((2, 3, 4, 5), torch.tensor([1.0, 2.0, 4.0, 1.0], dtype=torch.float64), RECORD)


def test_score_tells_its_mean_and_the_frame_that_stands_out():
    assert score().mean == 2 and score().least_likely == 4 and len(score()) == 4


def test_saved_score_holds_all_there_is_and_is_never_overwritten(tmp_path):
    files = score().save(tmp_path / "out")
    assert sorted(tmp_path.glob("out/*")) == sorted(files)
    told = json.loads((tmp_path / "out" / "score.json").read_text())
    assert told["bits"] == [1, 2, 4, 1] and told["frames"] == [2, 3, 4, 5] and told["windows"] == RECORD["windows"]
    assert (tmp_path / "out" / "score.csv").read_text().splitlines()[:2] == ["frame,bits_per_dimension", "2,1.0"]
    with pytest.raises(ValueError, match="out-2 is free"):
        score().save(tmp_path / "out")


def test_picture_carries_what_the_number_means(tmp_path):
    score().save(tmp_path / "out")
    with Image.open(tmp_path / "out" / "score.png") as picture:
        assert "model mine" in picture.text["Comment"] and "upper bound" in picture.text["Comment"]
        assert picture.width > 2 * picture.height > 400


@pytest.mark.parametrize(
    ("windows", "lines"), [([[0, 3], [2, 5]], [4]), ([[2, 2], [3, 3], [4, 4], [5, 5]], []), ([[0, 5]], [])]
)
def test_curve_shows_where_windows_begin_but_not_every_frame(tmp_path, monkeypatch, windows, lines):
    drawn = []
    monkeypatch.setattr("framecast.score.save_frame_curve", lambda path, **told: drawn.append(told))
    Score((2, 3, 4, 5), torch.ones(4, dtype=torch.float64), {**RECORD, "windows": windows}).save(tmp_path / "out")
    assert drawn[0]["starts"] == lines and drawn[0]["given"] == [0, 1]


def test_a_score_that_cannot_be_drawn_leaves_nothing_behind(tmp_path):
    broken = Score((2,), torch.ones(1, dtype=torch.float64), {**RECORD, "windows": None})
    with pytest.raises(TypeError):
        broken.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
