"""Clips encoded piece by piece and decoded again: figures, parts of the code, what is written, what is refused."""

import json
import math

import numpy as np
import pytest
import torch

from framecast.data.clip_file import read_clip
from framecast.generate import Model
from tests.test_generate import Filler, a_clip


class Coarse:
    """Keeps the sign of every pixel: one bit each, whole numbers of which nothing is lost."""

    frames, parts, views = 5, (), ("left",)

    def encode(self, video):
        return {"sign": video > 0}

    def decode(self, code):
        return code["sign"].float() - 0.5

    def stored(self, code):
        return code

    def bits(self, code):
        return code["sign"][0].numel()

    def figures(self, codes):
        return {"bright": sum(int(code["sign"].sum()) for code in codes)}

    def only(self, code, view):
        half = code["sign"].shape[-1] // 2
        return {"sign": code["sign"] & (torch.arange(2 * half) < half)}


@pytest.fixture
def coarse():
    system = Filler()
    system.codec = Coarse()
    return Model(system)


def test_reconstruct_returns_what_the_codec_keeps(coarse):
    clip = a_clip(12)
    result = coarse.reconstruct(clip)
    assert set(result.video.unique().tolist()) == {64, 191}  # -0.5 and 0.5 in bytes
    assert torch.equal(result.video > 127, clip.frames > 127)
    error = (result.video.double() - clip.frames.double()).square().mean()
    assert result.figures["psnr"] == pytest.approx(10 * math.log10(255**2 / error.item()))
    assert result.figures["psnr_stored"] == result.figures["psnr"]
    assert result.stored() is result.video


def test_size_of_a_code_counts_pieces_that_overlap_in_full(coarse):
    clip = a_clip(12)
    assert len(clip) == 12 and clip.frames[0].numel() == 16
    figures = coarse.reconstruct(clip).figures
    assert figures["pieces"] == 3  # of frames 0 to 4, 5 to 9, 7 to 11
    assert figures["pixel_values"] == 12 * 16 and figures["code_values"] == figures["code_bits"] == 3 * 5 * 16
    assert figures["ratio"] == pytest.approx(12 / 15) and figures["ratio_bits"] == pytest.approx(8 * 12 / 15)
    assert figures["bits_per_frame"] == pytest.approx(15 * 16 / 12)
    assert figures["percent_saved"] == pytest.approx(100 * (1 - 15 / (8 * 12)))


def test_what_a_codec_tells_of_its_codes_is_told_over_all_pieces(coarse):
    result = coarse.reconstruct(a_clip(10))
    assert result.figures["of_codes"] == {"bright": int((result.video > 127).sum())}


def test_parts_of_a_code_are_decoded_alone(coarse):
    clip = a_clip(12)
    result = coarse.reconstruct(clip, views=("left",))
    alone, half = result.only["left"], clip.frames.shape[-1] // 2
    assert torch.equal(alone[..., :half], result.video[..., :half]) and set(alone[..., half:].unique().tolist()) == {64}
    assert result.figures["psnr_only"]["left"] < result.figures["psnr"]
    with pytest.raises(ValueError, match="'right' is no part of filler's codes; those are left"):
        coarse.reconstruct(clip, views=("right",))


def test_pieces_are_coded_one_after_another(coarse):
    seen, told = [], []
    encode = coarse.codec.encode
    coarse.codec.encode = lambda video: seen.append(tuple(video.shape[:2])) or encode(video)
    coarse.reconstruct(a_clip(12), progress=lambda done, total: told.append((done, total)))
    assert seen == [(1, 5)] * 3 and told == [(1, 3), (2, 3), (3, 3)]


def test_clip_shorter_than_a_piece_is_refused(coarse):
    with pytest.raises(ValueError, match="the clip has 4 frames, the model encodes 5 at once: give a longer clip"):
        coarse.reconstruct(a_clip(4))


def test_saved_reconstruction_shows_clip_and_parts(coarse, tmp_path):
    result = coarse.reconstruct(a_clip(12), views=("left",))
    files = result.save(tmp_path / "out")
    names = {"reconstructed.mp4", "strip.png", "result.json", "reconstructed.npz", "only_left.npz"}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()} == names
    assert np.array_equal(np.load(tmp_path / "out" / "reconstructed.npz")["frames"], result.video.numpy())
    assert np.array_equal(np.load(tmp_path / "out" / "only_left.npz")["frames"], result.only["left"].numpy())
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told["psnr"] == result.figures["psnr"] and told["task"] == "reconstruct"
    assert len(read_clip(tmp_path / "out" / "reconstructed.mp4")) == 12
    with pytest.raises(ValueError, match="out-2 is free"):
        result.save(tmp_path / "out")


def test_what_is_not_trained_is_refused_where_it_is_needed(coarse):
    lacking = Model(coarse.system, untrained={"denoiser": "no denoiser: train it."})
    assert lacking.reconstruct(a_clip(12)).record["untrained"] == ["denoiser"]
    for ask in (lambda: lacking.predict(a_clip(12), 2), lambda: lacking.generate(1)):
        with pytest.raises(ValueError, match="no denoiser: train it"):
            ask()
    coarse.codec.parts = ("denoiser",)
    with pytest.raises(ValueError, match="no denoiser: train it"):
        lacking.reconstruct(a_clip(12))
