# SPDX-License-Identifier: Apache-2.0
"""The whole system: whose codes priors see, how drawn ones become clips, window after window; priors on known data."""

import math
from dataclasses import replace

import pytest
import torch

from framecast.checkpoint import build_system
from framecast.draws import draws
from framecast.experiment import VideoSpec, to_plain
from framecast.generate import Model, complete
from framecast.system import UnsupportedTask
from framecast.systems.video_vqvae.config import BottomPriorStageConfig, VideoVQVAESampling
from framecast.systems.video_vqvae.published import PRESETS
from framecast.systems.video_vqvae.stages import BottomPriorStage, TopPriorStage
from framecast.task import Task
from framecast.video import Clip
from tests.tiny import video_vqvae

SPEC = VideoSpec(channels=1, height=8, width=8, clip_frames=12)
EVERY = BottomPriorStageConfig(clip_frames=12, slices=0)


def build(*, shaken=0.3, **tokenizer):
    """The tiny system, changed; every weight but a head's last is away from 0."""
    torch.manual_seed(5)
    model = video_vqvae().model
    model = replace(model, tokenizer=replace(model.tokenizer, **tokenizer))
    system = build_system("video_vqvae", to_plain(model), SPEC, {}).eval()
    with torch.no_grad():
        for weight in system.parameters():
            weight.add_(shaken * torch.randn(weight.shape))
    return system


def fresh():
    """With weights as training begins with them, wide enough to learn what the tests below ask."""
    torch.manual_seed(5)
    model, wide = video_vqvae().model, {"hidden": 16, "residual": 32, "dropout": 0.0, "attention_dropout": 0.0}
    wide |= {"condition_hidden": 16, "condition_residual": 16}
    model = replace(model, top_prior=replace(model.top_prior, **wide), bottom_prior=replace(model.bottom_prior, **wide))
    return build_system("video_vqvae", to_plain(model), SPEC, {}).eval()


def clips(rows=2, frames=12):
    return draws(3, range(rows)).uniform((rows, frames, 1, 8, 8)) * 2 - 1


def stages(system, settings=EVERY):
    return {name: system.stage(name, settings, None) for name in system.parts() if name != "tokenizer"}


@pytest.mark.parametrize("padding", ["same", "causal"])
def test_real_codes_in_place_of_drawn_ones_decode_to_the_reconstruction(padding):
    system, clip = build(temporal_padding=padding), clips()
    whole = system.tokenizer.encode(clip)
    codes = stages(system)["top_prior"].codes(clip)
    alone = system.tokenizer.encode(clip[:, :4])
    for level, given in (("top", 1), ("bottom", 2)):
        assert torch.equal(codes[level][:, :given], alone[level])
        assert torch.equal(codes[level][:, given:], whole[level][:, given:])
    same = torch.equal(system.tokenizer.decode(codes), system.tokenizer.decode(whole))
    assert same == (padding == "causal")  # else given codes are those of four frames, the others of twelve


@pytest.mark.parametrize("name", ["top_prior", "bottom_prior"])
def test_untrained_priors_spend_the_uniform_bits(name):
    system = build(shaken=0.0)
    stage = stages(system)[name]
    loss = stage.loss(stage.examples(clips(), None, None), step=0, turn=name, rng=draws(0, range(2)))
    assert float(loss.terms["bits_per_code"]) == pytest.approx(4.0, abs=1e-6)
    assert float(loss.total.detach()) == pytest.approx(4 * math.log(2), abs=1e-6)


def test_a_slice_is_learned_from_what_drawing_it_sees():
    """Logits that the bottom's stage learns are those of drawing: same past, same top, nothing of later slices."""
    system, codes = build(), {}
    codes = stages(system)["top_prior"].codes(clips())
    n = torch.tensor([3, 5])
    logits = system.bottom_prior(codes["top"], codes["bottom"], n)
    for row, number in enumerate(n.tolist()):
        later = codes["bottom"].clone()
        later[:, number + 1 :] = (later[:, number + 1 :] + 1) % 16
        alone = system.bottom_prior(codes["top"], later, torch.full((2,), number))
        torch.testing.assert_close(alone[row], logits[row], rtol=0, atol=1e-5)


def test_drawn_codes_follow_the_given_ones():
    system, clip = build(), clips()
    given = system.tokenizer.encode(clip[:, :4])
    drawn = system.draw(given, rng=draws(1, range(2)), options=VideoVQVAESampling())
    assert {level: tuple(codes.shape) for level, codes in drawn.items()} == {
        "top": (2, 3, 2, 2), "bottom": (2, 6, 4, 4),
    }  # fmt: skip
    assert all(torch.equal(drawn[level][:, : codes.shape[1]], codes) for level, codes in given.items())
    assert all(int(codes.min()) >= 0 and int(codes.max()) < 16 for codes in drawn.values())


def test_cold_drawing_needs_no_chance():
    system, clip = build(), clips()
    given = system.tokenizer.encode(clip[:, :4])
    cold = VideoVQVAESampling(temperature=1e-4, bottom_temperature=1e-4)
    few = VideoVQVAESampling(top_k=1, bottom_top_k=1)
    first, other, likeliest = (
        system.draw(given, rng=draws(seed, range(2)), options=options)
        for seed, options in ((1, cold), (2, cold), (3, few))
    )
    assert all(torch.equal(first[level], other[level]) for level in first)
    assert all(torch.equal(first[level], likeliest[level]) for level in first)


def test_each_level_has_its_own_choice():
    system, clip = build(), clips()
    given = system.tokenizer.encode(clip[:, :4])
    free, cold = (
        system.draw(given, rng=draws(1, range(2)), options=VideoVQVAESampling(bottom_top_k=k)) for k in (0, 1)
    )
    assert torch.equal(free["top"], cold["top"])
    assert not torch.equal(free["bottom"], cold["bottom"])


def test_known_frames_are_given_back_or_as_decoded():
    system, clip = build(), clips()
    known = torch.arange(12) < 4
    exact, _ = system.sample(clip, known, rng=draws(1, range(2)), options=VideoVQVAESampling())
    model, _ = system.sample(clip, known, rng=draws(1, range(2)), options=VideoVQVAESampling(given="model"))
    assert torch.equal(exact[:, :4], clip[:, :4])
    assert not torch.equal(model[:, :4], clip[:, :4])
    assert torch.equal(exact[:, 4:], model[:, 4:])


def test_later_windows_continue_the_frames_that_were_drawn():
    system, clip = build(), clips(rows=1, frames=5)
    windows = system.plan(Task.predict(5, 20).known, system.options)
    assert [(window.frames[0], window.frames[-1]) for window in windows] == [(1, 12), (9, 20), (17, 28)]
    long = complete(system, clip, Task.predict(5, 20), rng=draws(4, [0]))
    rng = draws(4, [0])
    first, _ = system.sample(
        torch.cat([clip[:, 1:], clip.new_zeros(1, 8, 1, 8, 8)], 1),
        torch.arange(12) < 4,
        rng=rng,
        options=system.options,
    )
    again = torch.cat([first[:, -4:], first.new_zeros(1, 8, 1, 8, 8)], 1)
    second, _ = system.sample(again, torch.arange(12) < 4, rng=rng, options=system.options)
    assert torch.equal(long[:, :5], clip)
    torch.testing.assert_close(long[:, 5:13], first[:, 4:])
    torch.testing.assert_close(long[:, 13:21], second[:, 4:])


def test_progress_counts_rows_of_codes():
    system = build()
    told = []
    frames = ((clips(rows=1)[0] + 1) * 127.5).to(torch.uint8)
    Model(system).predict(Clip(frames), 16, context=4, samples=3, batch=2, progress=lambda *at: told.append(at))
    rows = 2 * 2 * (2 * 2 + 4 * 4)  # windows, batches, of each the rows of both levels
    assert told == [(done, rows) for done in (*range(1, rows), rows - 1, rows)]  # the last by the end


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task.predict(3, 9), "from 4 known frames or more; 3 are known"),
        (Task.generate(12), "from 4 known frames or more; 0 are known"),
        (Task.infill([0, 1, 2, 3, 8], 12), "frame 8 is known, frame 4 is not"),
    ],
)
def test_what_it_cannot_draw_is_refused(task, said):
    system = build()
    with pytest.raises(UnsupportedTask, match=said):
        system.plan(task.known, system.options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0; it must be above 0"),
        ({"bottom_top_k": 17}, "bottom_top_k is 17; it must lie between 1 and 16"),
        ({"top_p": 0.0}, "top_p is 0; it must lie above 0"),
    ],
)
def test_choices_out_of_range_are_refused(options, said):
    system = build()
    with pytest.raises(ValueError, match=said):
        system.plan(Task.predict(4, 8).known, VideoVQVAESampling(**options))


def test_one_level_has_no_top_prior():
    system = build(levels=1)
    assert system.parts().keys() == {"tokenizer", "bottom_prior"}
    with pytest.raises(ValueError, match="one level"):
        system.stage("top_prior", EVERY, None)
    video = complete(system, clips(frames=4), Task.predict(4, 12), rng=draws(0, range(2)))
    assert video.shape == (2, 16, 1, 8, 8)
    assert system.codec.views == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_systems_and_give_every_stage(name):
    experiment = PRESETS[name]()
    size = experiment.data.size
    video = VideoSpec(channels=experiment.data.channels, height=size, width=size, clip_frames=16)
    with torch.device("meta"):
        system = build_system("video_vqvae", to_plain(experiment.model), video, to_plain(experiment.sample))
    for part in system.parts():
        assert system.stage(part, getattr(experiment.stages, part), None).clip_frames == 16


# ---- priors on codes of which everything is known


def learned(system, name, codes, *, steps, rate=4e-3):
    """Bits per code at the end, of the stage's own loss on these codes of clips."""
    stage = stages(system)[name]
    system.train()
    optimiser = torch.optim.Adam(system.parts()[name].parameters(), rate)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        examples = codes(step)
        loss = stage.loss(examples, step=step, turn=name, rng=draws(0, range(len(examples["top"])), step=step))
        optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(system.parts()[name].parameters(), 1.0)
        optimiser.step()
    system.eval()
    with torch.no_grad():
        told = [stage.loss(codes(-i), step=0, turn=name, rng=draws(1, range(16))) for i in range(1, 9)]
    return sum(float(loss.terms["bits_per_code"]) for loss in told) / 8


def coin(seed, shape, *, odds=0.9):
    """Codes 0 and 1, the first with these odds."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1000 + seed)) >= odds).long()


@pytest.mark.slow
def test_independent_codes_cost_their_entropy():
    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    bits = learned(
        fresh(),
        "top_prior",
        lambda i: {"top": coin(i, (16, 3, 2, 2)), "bottom": coin(-i, (16, 6, 4, 4))},
        steps=120,
    )
    assert bits == pytest.approx(entropy, abs=0.08)


@pytest.mark.slow
def test_copies_of_the_step_before_cost_nothing():
    def still(i):
        return {"top": coin(i, (16, 1, 2, 2), odds=0.5).expand(-1, 3, -1, -1), "bottom": coin(i, (16, 6, 4, 4))}

    assert learned(fresh(), "top_prior", still, steps=160) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top_prior", "bottom_prior"])
def test_codes_that_tell_of_their_future_alone_stay_dear(name):
    """A code tells the one after it in time; who could look ahead would know all but the last."""

    def ahead(i):
        fresh = coin(i, (16, 3, 2, 2), odds=0.5)
        later = coin(-i, (16, 6, 4, 4), odds=0.5)
        fresh[:, 1] = fresh[:, 2]  # unknown until it is drawn: of the two drawn steps one is free
        later[:, 2::2] = later[:, 3::2]
        return {"top": fresh, "bottom": later}

    assert learned(fresh(), name, ahead, steps=160) > 0.45


@pytest.mark.slow
def test_eight_clips_are_learned_by_heart_and_drawn_again():
    system = fresh()
    clip, place = torch.arange(8).view(-1, 1, 1, 1), (torch.arange(2).view(-1, 1) + 3 * torch.arange(2)).repeat(2, 2)
    known = {
        "top": (clip + 2 * torch.arange(3).view(-1, 1, 1) + place[:2, :2]) % 16,
        "bottom": (3 * clip + torch.arange(6).view(-1, 1, 1) + place) % 16,
    }
    for name in ("top_prior", "bottom_prior"):
        assert learned(system, name, lambda i: known, steps=250) < 0.1
    given = {"top": known["top"][:, :1], "bottom": known["bottom"][:, :2]}
    drawn = system.draw(
        given, rng=draws(0, range(8)), options=VideoVQVAESampling(temperature=0.1, bottom_temperature=0.1)
    )
    assert all(torch.equal(drawn[level], known[level]) for level in known)


def test_stages_are_of_their_own_kind():
    made = stages(build())
    assert isinstance(made["top_prior"], TopPriorStage) and isinstance(made["bottom_prior"], BottomPriorStage)
    with pytest.raises(ValueError, match="slices is 9"):
        build().stage("bottom_prior", replace(EVERY, slices=9), None)


def test_codes_are_drawn_alike_where_training_is_in_half_precision():
    system, options = build(), VideoVQVAESampling()
    code = system.tokenizer.encode(clips(7)[:, :4])
    plain = system.draw(code, rng=draws(0, range(7)), options=options)
    with torch.autocast("cpu", torch.bfloat16):
        half = system.draw(code, rng=draws(0, range(7)), options=options)
    assert all(torch.equal(plain[level], half[level]) for level in plain)


def test_codes_to_be_learnt_are_those_of_drawing_where_training_is_in_half_precision():
    system, clip = build(), clips(8)
    stage = stages(system)["top_prior"]
    plain = stage.codes(clip)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, half = system.tokenizer.encode_after(clip, 4), stage.codes(clip)
    assert all(torch.equal(plain[level], half[level]) for level in plain)
    assert any(not torch.equal(plain[level], rounded[level]) for level in plain)
