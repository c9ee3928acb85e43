"""Likelihoods of codes: a distribution, told by window, level, step and place; what a step may depend on."""

import itertools

import pytest
import torch

from framecast.experiment import VideoSpec
from framecast.generate import Model
from framecast.system import UnsupportedTask
from framecast.systems.video_vqvae.config import (
    BottomPriorConfig,
    TokenizerConfig,
    TopPriorConfig,
    VideoVQVAEConfig,
)
from framecast.systems.video_vqvae.video_vqvae import VideoVQVAE
from framecast.task import Window
from framecast.video import Clip

PRIOR = {"hidden": 4, "residual": 8, "layers": 2, "attention_every": 2, "heads": 2, "embedding": 4}
STACK = {"condition_hidden": 4, "condition_residual": 4, "condition_layers": 1}


def model(padding="causal", *, codes=8, frames=16, levels=2):
    """Top codes of a place, bottom codes of four; weights are random and codebooks lie where the clips' vectors do."""
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(
        hidden=8, residual=4, layers=1, codes=codes, code_width=4, temporal_padding=padding, levels=levels
    )
    config = VideoVQVAEConfig(
        tokenizer=tokenizer,
        top_prior=TopPriorConfig(**PRIOR, **STACK),
        bottom_prior=BottomPriorConfig(**PRIOR, **STACK, kernel=3),
    )
    system = VideoVQVAE(config, VideoSpec(channels=1, height=8, width=8, clip_frames=frames)).eval()
    with torch.no_grad():
        for weight in system.parameters():
            weight += 0.2 * torch.randn(weight.shape)
        for level, found in system.tokenizer.quantised(clips(8, frames)).items():
            rows = found.vectors.movedim(1, -1).flatten(0, -2)
            system.tokenizer.quantiser(level).codebook.copy_(rows[torch.randperm(len(rows))[:codes]])
    return system


def clips(rows, frames):
    return torch.rand(rows, frames, 1, 8, 8, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def bits(system, clip, given=4):
    known = torch.arange(clip.shape[1]) < given
    return system.scorer.bits(clip, known)


def test_probabilities_of_all_codes_sum_to_one():
    system = model(codes=2, frames=8)
    every = torch.tensor(list(itertools.product((0, 1), repeat=9)))  # a top code, two slices of four bottom codes
    top, bottom = torch.ones(512, 2, 1, 1).long(), torch.zeros(512, 4, 2, 2).long()
    top[:, 1, 0, 0], bottom[:, 2:] = every[:, 0], every[:, 1:].view(-1, 2, 2, 2)
    bottom[:, :2] = torch.tensor([[0, 1], [1, 0]])
    window = Window(tuple(range(8)), (True,) * 4 + (False,) * 4)
    with torch.no_grad():
        found = system.scorer._in_window({"top": top, "bottom": bottom}, window)
    total = sum(values.flatten(1).sum(1) for values in found.values())
    assert float((2**-total).sum()) == pytest.approx(1, abs=1e-5) and float(total.std()) > 0.1


@pytest.mark.parametrize("padding", ["same", "causal"])
def test_windows_compose_as_in_predict(padding):
    system, clip = model(padding), clips(2, 28)
    whole, first, second = bits(system, clip), bits(system, clip[:, :16]), bits(system, clip[:, 12:])
    for level, steps in (("top", 3), ("bottom", 6)):
        side = 1 if level == "top" else 2
        assert whole[level].shape == (2, 2 * steps, side, side) and whole[level].dtype == torch.float64
        assert torch.allclose(whole[level], torch.cat([first[level], second[level]], 1), rtol=1e-5)
    assert whole["bottom"].std() > 0.1


def test_given_codes_are_those_of_the_given_frames_alone():
    system, clip = model("same"), clips(1, 16)
    alone, whole = (system.tokenizer.encode(x) for x in (clip[:, :4], clip))
    assert not torch.equal(alone["bottom"], whole["bottom"][:, :2])
    code = {level: torch.cat([alone[level], whole[level][:, n:]], 1) for level, n in (("top", 1), ("bottom", 2))}
    found = bits(system, clip)
    with torch.no_grad():
        logits = system.top_prior(code["top"], code["bottom"]).double()
        slice_odds = system.bottom_prior(code["top"], code["bottom"], torch.tensor([5]))[0, :, 0].double().softmax(0)
    for step in range(3):
        odds = logits[0, :, step, 0, 0].softmax(0)[code["top"][0, 1 + step, 0, 0]]
        assert float(found["top"][0, step, 0, 0]) == pytest.approx(-float(odds.log2()), rel=1e-5)
    odds = slice_odds[code["bottom"][0, 5, 1, 0], 1, 0]
    assert float(found["bottom"][0, 3, 1, 0]) == pytest.approx(-float(odds.log2()), rel=1e-5)


def test_with_causal_padding_no_top_step_depends_on_later_frames():
    for padding, before in (("causal", True), ("same", False)):
        system, clip = model(padding), clips(4, 16)
        other = clip.clone()
        other[:, 8:] = 1.0
        first, second = (bits(system, x)["top"] for x in (clip, other))
        assert torch.equal(first[:, :1], second[:, :1]) == before and not torch.equal(first[:, 1:], second[:, 1:])


def test_last_window_that_is_not_full_begins_earlier_and_scores_new_codes_alone():
    system, clip = model(), clips(2, 20)
    windows = system.scorer.windows([True] * 4 + [False] * 16)
    assert [(w.frames[0], w.frames[-1], sum(w.known)) for w in windows] == [(0, 15, 4), (4, 19, 12)]
    found, first, last = bits(system, clip), bits(system, clip[:, :16]), bits(system, clip[:, 4:])
    for level, steps in (("top", 3), ("bottom", 6)):
        wanted = torch.cat([first[level], last[level][:, -steps // 3 :]], 1)
        assert torch.allclose(found[level], wanted, rtol=1e-5)


@pytest.mark.parametrize(("padding", "unit"), [("same", 12), ("causal", 4)])
def test_every_new_frame_is_in_one_window(padding, unit):
    one = model(padding).scorer
    assert (one.context, one.frames, one.unit, dict(one.uniform)) == (4, 16, unit, {"top": 3.0, "bottom": 3.0})
    assert ("not in which frame" in one.notes[0]) == (padding == "same")
    for given, length in itertools.product((4, 7, 16), (16, 28, 40, 53)):
        known = [True] * given + [False] * (length - given)
        if (length - given) % unit or given == length:
            continue
        seen = [i for w in one.windows(known) for i, there in zip(w.frames, w.known, strict=True) if not there]
        assert seen == list(range(given, length))
        assert all(w.frames[0] >= 0 and sum(w.known) >= 4 for w in one.windows(known))


@pytest.mark.parametrize("known", [[True] * 3 + [False] * 13, [True] * 4 + [False] * 8, [False] * 16])
def test_other_known_frames_are_refused(known):
    with pytest.raises(
        UnsupportedTask, match="scores codes of clips of 16 frames or more, 12 at once, given the first"
    ):
        model("same").scorer.windows(known)


def test_a_model_of_one_level_scores_bottom_codes():
    system = model(levels=1)
    found = bits(system, clips(1, 18), given=4)
    assert list(found) == ["bottom"] and found["bottom"].shape == (1, 7, 2, 2)
    assert system.scorer.unit == 2 and system.scorer.calls(system.scorer.windows([True] * 4 + [False] * 14)) == 7


def test_score_of_a_clip_leaves_whole_windows_and_counts_calls():
    system, ticks = model(), []
    pixels = (clips(1, 33)[0] * 127 + 128).to(torch.uint8)
    found = Model(system, name="mine").score(Clip(pixels), progress=lambda done, total: ticks.append((done, total)))
    assert found.record["known_frames"] == list(range(5)) and len(found) == 28 and found.bits.std() > 0.01
    assert found.record["windows"] == [[1, 16], [13, 28], [17, 32]]
    assert ticks[-1] == (3 + 14, 3 + 14) and len(ticks) == 17 + 1
