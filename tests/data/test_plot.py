"""Figures: what is drawn, where the scale ends, what is left out."""

import numpy as np
import pytest
import torch
from PIL import Image

from framecast.data.plot import save_curves, save_score_maps
from framecast.forecast import Forecast
from framecast.video import Clip


def test_score_maps_show_the_frames_asked_for_and_carry_their_comment(tmp_path):
    clip = Clip(torch.zeros(6, 1, 8, 8, dtype=torch.uint8))
    maps = torch.zeros(6, 8, 8)
    maps[4, :4] = 9.0
    how = {"pictures": [("truth", clip)], "maps": [("CRPS", maps)], "label": "CRPS, levels"}
    bright = save_score_maps(tmp_path / "a.png", frames=[2, 4], comment="made", **how)
    dark = save_score_maps(tmp_path / "b.png", frames=[2, 3], **how)
    with Image.open(bright) as picture, Image.open(dark) as other:
        assert picture.text["Comment"] == "made"
        light, dim = (np.asarray(p.convert("RGB"), float) for p in (picture, other))
    # the top of the scale is pale yellow, its bottom black; only one of the two figures has a value to show there
    yellow = np.abs(light - [252, 253, 191]).max(-1) < 6
    assert yellow.sum() > 200 > 2 * (np.abs(dim - [252, 253, 191]).max(-1) < 6).sum()


def test_an_existing_figure_is_not_overwritten(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    clip = Clip(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(FileExistsError, match="exists already"):
        save_score_maps(
            tmp_path / "a.png",
            pictures=[("truth", clip)],
            maps=[("CRPS", torch.zeros(1, 4, 4))],
            frames=[0],
            label="CRPS",
        )
    assert (tmp_path / "a.png").read_text() == "mine"


def test_a_forecast_without_truth_has_no_map(tmp_path):
    forecast = Forecast(torch.zeros(2, 3, 1, 4, 4), (True, False, False), None, (-1.0, 1.0), {"model": "m"})
    assert forecast.save_crps_map(tmp_path / "map.png") is None
    assert not list(tmp_path.iterdir())


def test_curves_draw_every_loss_and_replace_the_older_figure(tmp_path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,loss,lr,validation_loss\n1,2.0,1e-3,\n2,1.0,1e-3,1.5\n3,0.5,1e-3,1.2\n")
    first = save_curves(tmp_path / "curves.png", metrics).read_bytes()
    metrics.write_text("step,loss,lr,validation_loss\n1,2.0,1e-3,\n2,1.0,1e-3,\n")
    assert save_curves(tmp_path / "curves.png", metrics).read_bytes() != first
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == ["curves.png"]


@pytest.mark.parametrize("text", ["step,loss\n", "step,loss\n1,2.0\n", "step,seconds\n1,2\n2,3\n"])
def test_a_run_with_nothing_to_draw_gets_no_figure(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert save_curves(tmp_path / "curves.png", tmp_path / "metrics.csv") is None
