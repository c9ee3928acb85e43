"""What scoring returns: the frame that stands out, files written whole."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from framecast.score import Score, frame_bits
from framecast.video import Clip

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


# ---- codes


def code_score(*, clip=True):
    """Eight scored frames of twelve: two steps of one top code, four of four bottom codes."""
    bottom = torch.ones(4, 2, 2, dtype=torch.float64)
    bottom[2, 1, 0] = 9.0  # frames 8 and 9, below on the left
    maps = {"top": torch.tensor([2.0, 4.0], dtype=torch.float64).view(2, 1, 1), "bottom": bottom}
    record = {key: RECORD[key] for key in ("model", "frames")}
    record |= {"known_frames": [0, 1, 2, 3], "windows": [[0, 7], [4, 11]], "uniform": {"top": 9.0, "bottom": 9.0}}
    shown = Clip(torch.zeros(12, 1, 8, 8, dtype=torch.uint8)) if clip else None
    return Score(tuple(range(4, 12)), frame_bits(maps, 8), record, maps, shown)


def test_mean_over_frames_is_the_mean_over_codes():
    maps = {name: torch.rand(n, 3, side).double() for name, n, side in (("top", 2, 2), ("bottom", 6, 5))}
    codes = sum(values.numel() for values in maps.values())
    assert float(frame_bits(maps, 12).mean()) == pytest.approx(sum(float(v.sum()) for v in maps.values()) / codes)


def test_score_of_codes_tells_totals_and_levels_and_what_it_is_not():
    told = code_score().plain()
    assert told["bits_per_clip"] == 2 + 4 + 15 + 9 and told["codes"] == 2 + 16
    assert told["bits_per_code"] == pytest.approx(30 / 18) and told["bits_per_code_of"] == {"top": 3.0, "bottom": 1.5}
    assert told["least_likely_codes"] == {
        "top": {"frames": [8, 11], "row": 0, "column": 0, "bits": 4.0},
        "bottom": {"frames": [8, 9], "row": 1, "column": 0, "bits": 9.0},
    }
    assert "bits_per_dimension" not in told and told["of"] == "codes" and told["least_likely"] == 8
    assert "not of pixels" in told["meaning"] and "bound" not in told["meaning"]
    assert score().plain()["of"] == "pixels" and "bits_per_clip" not in score().plain()


def test_saved_score_of_codes_holds_its_maps(tmp_path):
    files = code_score().save(tmp_path / "out")
    names = {"score.json", "score.csv", "score.png", "score.npz", "score_map.png"}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()} == names
    with np.load(tmp_path / "out" / "score.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"top": (2, 1, 1), "bottom": (4, 2, 2)}
        assert arrays["bottom"][2, 1, 0] == 9
    with open(tmp_path / "out" / "score.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["frame", "bits_per_code", "top", "bottom"]
    assert [float(row["bottom"]) for row in rows] == [1, 1, 1, 1, 3, 3, 1, 1] and rows[4]["frame"] == "8"
    with Image.open(tmp_path / "out" / "score_map.png") as picture:
        assert "not of pixels" in picture.text["Comment"]


def test_maps_stand_below_the_frames_that_their_steps_belong_to(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("framecast.score.save_score_maps", lambda path, **told: drawn.append(told))
    code_score().save(tmp_path / "out")
    (told,) = drawn
    shown = dict(told["maps"])
    assert told["frames"] == list(range(4, 12)) and list(shown) == ["top", "bottom"]
    assert shown["top"][[4, 7, 8, 11], 0, 0].tolist() == [2, 2, 4, 4]
    assert [int(i) for i in shown["bottom"].amax((1, 2)).gt(1).nonzero()] == [8, 9]
    assert "9 where all are as likely" in told["label"]


def test_frame_of_the_least_likely_code_is_in_the_picture_of_a_long_clip(tmp_path, monkeypatch):
    drawn, bits = [], torch.ones(50, 1, 1, dtype=torch.float64)
    bits[22] = 5.0
    monkeypatch.setattr("framecast.score.save_score_maps", lambda path, **told: drawn.append(told))
    record = {**code_score().record, "windows": [[0, 103]]}
    clip = Clip(torch.zeros(104, 1, 4, 4, dtype=torch.uint8))
    Score(tuple(range(4, 104)), frame_bits({"bottom": bits}, 100), record, {"bottom": bits}, clip).save(
        tmp_path / "out"
    )
    assert 48 in drawn[0]["frames"] and {4, 103} < set(drawn[0]["frames"]) and len(drawn[0]["frames"]) == 9


def test_without_its_clip_a_score_of_codes_has_no_picture_of_maps(tmp_path):
    files = {path.name for path in code_score(clip=False).save(tmp_path / "out")}
    assert "score.npz" in files and "score_map.png" not in files
