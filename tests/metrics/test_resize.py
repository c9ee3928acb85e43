"""Resizing, by ramps: what every convention makes of them is known in closed form."""

import pytest
import torch

from framecast.metrics.resize import CONVENTIONS, resize, short_side_crop

WHERE = {
    "half_pixel": lambda i, n, m: ((i + 0.5) * n / m - 0.5).clamp(0, n - 1),
    "align_corners": lambda i, n, m: i * (n - 1) / (m - 1),
    "tf1": lambda i, n, m: (i * n / m).clamp(max=n - 1),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("sizes", "made"), [((5, 6), (9, 13)), ((64, 48), (224, 224)), ((240, 320), (112, 112))])
def test_a_ramp_tells_where_output_pixels_look(convention, sizes, made):
    (h, w), (height, width) = sizes, made
    rows, columns = torch.arange(h, dtype=torch.float64)[:, None], torch.arange(w, dtype=torch.float64)
    found = resize((1000 * rows + columns).expand(2, 3, h, w), height, width, convention=convention)
    y = WHERE[convention](torch.arange(height, dtype=torch.float64), h, height)[:, None]
    x = WHERE[convention](torch.arange(width, dtype=torch.float64), w, width)
    assert found.shape == (2, 3, height, width)
    assert torch.allclose(found, (1000 * y + x).expand_as(found), atol=1e-8, rtol=0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_frames_of_the_size_wanted_stay_as_they_are(convention):
    frames = torch.rand(2, 3, 7, 9)
    assert torch.equal(resize(frames, 7, 9, convention=convention), frames)


def test_short_side_keeps_proportions_and_takes_the_middle():
    frames = torch.arange(47.0).expand(30, 47)
    made = short_side_crop(frames, 15)
    assert made.shape == (15, 15)
    assert torch.allclose(made.diff(dim=1), torch.full((15, 14), 47 / 24), atol=1e-4)  # 47 columns became 24
    assert made.mean().item() == pytest.approx(23 - 0.5 * 47 / 24, abs=1e-4)  # 4 columns are cut before, 5 behind
    assert torch.equal(short_side_crop(frames.T, 15), made.T)


def test_short_side_of_square_frames_is_plain_resizing():
    frames = torch.rand(2, 20, 20)
    assert torch.equal(short_side_crop(frames, 33), resize(frames, 33, 33, convention="half_pixel"))


def test_unknown_convention_is_refused(unchecked):
    with pytest.raises(ValueError, match="it can be half_pixel, align_corners or tf1"):
        resize(torch.rand(4, 4), 8, 8, convention="bicubic")
