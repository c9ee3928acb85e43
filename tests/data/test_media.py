"""Pictures for people: colours, edges, labels, whole enlargement."""

import av
import pytest
import torch
from PIL import Image

from framecast.data.clip_file import read_clip
from framecast.data.image_file import write_image
from framecast.data.media import Row, _columns, framed, grid, save_framed, save_view, strip, viewable
from framecast.video import Clip

GREEN, RED, PAPER = (30, 160, 60), (210, 45, 45), (255, 255, 255)


def clip(count=6, height=16, width=20, value=90, fps=8.0):
    return Clip(torch.full((count, 3, height, width), value, dtype=torch.uint8), fps)


def share(picture, colour):
    """How much of a picture (3, H, W) has exactly this colour."""
    return (picture == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0).float().mean().item()


def test_a_field_about_zero_is_blue_white_and_red():
    field = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    low, middle, high = viewable(Clip(field, value_range=(-1.0, 1.0)))[0, :, 0].T.int().tolist()
    assert low[2] > low[0] + 50 and high[0] > high[2] + 50
    assert min(middle) > 240


def test_other_single_channels_are_grey_and_scaled_by_their_range():
    field = torch.tensor([2.0, 3.0, 4.0, 9.0]).view(1, 1, 1, 4)
    shown = viewable(Clip(field, value_range=(2.0, 4.0)))
    assert shown.flatten().tolist() == [0, 128, 255, 255] and shown.shape[1] == 1


@pytest.mark.parametrize("channels", [2, 5])
def test_of_many_channels_the_first_is_shown(channels):
    frames = torch.randint(0, 255, (2, channels, 4, 4), dtype=torch.uint8)
    assert torch.equal(viewable(Clip(frames)), frames[:, :1])


def test_small_videos_are_enlarged_by_whole_factors_without_smoothing():
    frames = torch.randint(0, 255, (2, 3, 30, 40), dtype=torch.uint8)
    shown = framed(Clip(frames, 8.0)).frames
    assert shown.shape == (2, 3, 150, 200)
    assert torch.equal(shown[..., ::5, ::5], frames) and torch.equal(shown[..., 4::5, 4::5], frames)
    large = Clip(torch.zeros(1, 3, 128, 300, dtype=torch.uint8))
    assert framed(large).frames.shape == large.frames.shape


def test_given_frames_have_a_green_edge_and_made_ones_a_red_one():
    shown = framed(clip(3), [True, False, False])
    assert shown.fps == 8.0
    for frame, colour in zip(shown.frames, (GREEN, RED, RED)):
        border = torch.cat([frame[:, 0], frame[:, -1], frame[:, :, 0], frame[:, :, -1]], dim=1)
        assert share(border[..., None], colour) == 1
    assert share(shown.frames[0], (90, 90, 90)) > 0.9  # the edge lies outside of the picture
    assert share(framed(clip(3), [True, False, False], plain=True).frames[1], (90, 90, 90)) == 1
    with pytest.raises(ValueError, match="2 frames are said to be given or made, the clip has 3"):
        framed(clip(3), [True, False])


def test_a_strip_of_many_frames_shows_where_they_cease_to_be_given():
    known = [True] * 6 + [False] * 94
    rows = [Row("sample", Clip(torch.zeros(100, 1, 4, 4, dtype=torch.uint8)), known)]
    assert _columns(rows, 100, 12) == [0, 5, 6, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert _columns([Row("truth", rows[0].clip)], 100, 3) == [0, 50, 99]


def rows():
    known = [True, True, False, False, False, False]
    return [Row("context", clip(2), [True, True]), Row("truth", clip()), Row("sample 0", clip(value=120), known)]


def test_a_strip_has_a_row_per_video_and_a_column_per_frame():
    three, two = strip(rows()), strip(rows(), frames=[0, 5])
    assert three.dtype == torch.uint8 and three.shape[0] == 3
    assert three.shape[1] == two.shape[1] and three.shape[2] > 2 * two.shape[2]
    assert strip(rows()[:1]).shape[1] < three.shape[1]
    assert share(two, GREEN) == pytest.approx(2 * share(two, RED), rel=1e-3)  # frame 0 twice given, frame 5 once made
    plain = strip(rows(), plain=True)
    assert share(plain, GREEN) == share(plain, RED) == 0


def test_a_strip_of_a_long_video_stays_narrow():
    long = [Row("truth", clip(300))]
    assert strip(long, columns=10).shape == strip([Row("truth", clip(10))]).shape


def test_labels_and_frame_numbers_are_written():
    one = [Row("context", clip())]
    other = [Row("c0ntext", clip())]
    assert not torch.equal(strip(one, frames=[0]), strip(other, frames=[0]))
    assert not torch.equal(strip(one, frames=[0]), strip(one, frames=[3]))


def test_a_grid_shows_videos_side_by_side_under_their_labels():
    together = grid(rows())
    assert len(together) == 6 and together.fps == 8.0
    assert share(together.frames[1], GREEN) == pytest.approx(2 * share(together.frames[2], RED), rel=1e-3)
    assert share(together.frames[5], PAPER) > share(together.frames[0], PAPER)  # the context has ended
    stacked = grid(rows(), columns=2)
    assert stacked.frames.shape[-2] > together.frames.shape[-2] > 0
    assert stacked.frames.shape[-1] < together.frames.shape[-1]


def test_videos_of_unlike_sizes_do_not_share_a_picture():
    with pytest.raises(ValueError, match="need one size"):
        grid([Row("a", clip()), Row("b", clip(height=18))])
    with pytest.raises(ValueError, match="at least one"):
        strip([])


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif"])
def test_views_are_saved_by_their_suffix(tmp_path, suffix):
    field = Clip(torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, 17, 20), 5.0, (-1.0, 1.0))
    path = save_view(tmp_path / f"a{suffix}", framed(field, [True] + [False] * 5), comment="generated by toy")
    back = read_clip(path)
    assert len(back) == 6 and back.fps == pytest.approx(5, rel=1e-3)
    middle = back.frames[:, :, back.frames.shape[2] // 2, back.frames.shape[3] // 2].int()
    assert middle[0, 2] > middle[0, 0] and middle[5, 0] > middle[5, 2]
    with pytest.raises(FileExistsError):
        save_view(path, field, comment="generated by toy")


def test_a_strip_is_saved_as_png(tmp_path):
    picture = strip(rows())
    path = write_image(tmp_path / "strip.png", picture, comment="generated by toy")
    with Image.open(path) as image:
        assert image.size == (picture.shape[2], picture.shape[1])


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.webp or \.gif"):
        save_view(tmp_path / "a.avi", clip(), comment="c")


def test_saved_video_names_its_maker(tmp_path):
    path = save_view(tmp_path / "a.mp4", clip(), comment="generated by toy")
    with av.open(str(path)) as container:
        assert "toy" in container.metadata["comment"]


@pytest.mark.parametrize("suffix", ["mp4", "webp", "gif"])
@pytest.mark.parametrize("fps", [None, 1 / 86_400])
def test_videos_slower_than_anybody_watches_are_shown_at_ten_frames_a_second(tmp_path, suffix, fps):
    path = save_view(tmp_path / f"a.{suffix}", clip(fps=fps), comment="generated")
    assert read_clip(path).fps == pytest.approx(10)


def test_a_long_clip_is_written_block_by_block_as_it_is_at_once(tmp_path):
    frames = (6 * torch.arange(40, dtype=torch.uint8)).view(40, 1, 1, 1).expand(40, 3, 15, 20)
    long, known = Clip(frames, 8.0), [i < 17 for i in range(40)]
    save_view(tmp_path / "whole.mp4", framed(long, known), comment="x")
    save_framed(tmp_path / "parts.mp4", long, known, comment="x")
    whole, parts = (read_clip(tmp_path / name).frames for name in ("whole.mp4", "parts.mp4"))
    assert whole.shape == parts.shape and len(parts) == 40
    assert (whole.int() - parts.int()).abs().max() <= 12  # the encoder does not repeat itself bit for bit
