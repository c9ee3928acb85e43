# SPDX-License-Identifier: Apache-2.0
"""RVD: objective and generation beside a plain second form, plans, windows, carried states, samplers, the stage."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from framecast.assets import Assets
from framecast.diffusion.process import q_sample
from framecast.draws import draws
from framecast.experiment import VideoSpec
from framecast.generate import complete, plan, stream
from framecast.systems.rvd.config import ForecastStageConfig, RVDConfig, RVDSampling
from framecast.systems.rvd.rvd import RVD, residual_range
from framecast.task import Task, UnsupportedTask
from tests.formula import fill, normal, uniform
from tests.parity.walk import FORWARD, GRADIENT, error
from tests.recorded import Recorded
from tests.systems import plain_rvd
from tests.systems.plain_rvd import pair

CONFIG = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), groups=4, noise_levels=40)
SPEC = VideoSpec(channels=1, height=8, width=8, clip_frames=4)
ASSETS = Assets(Path("none"))
CLIP = 0.8 * uniform("clip", (2, 5, 1, 8, 8))
RANGE = RVDSampling().bound
MODES = [  # settings of the model, and the plain form's words for them
    ({}, {}),
    ({"sigma": 2.0}, {"sigma": 2.0}),
    ({"prediction": "none"}, {"mode": "none"}),
    ({"prediction": "previous", "sigma": 0.5}, {"mode": "previous", "sigma": 0.5}),
]


def system(**changes) -> RVD:
    made = RVD(replace(CONFIG, **changes), SPEC, RVDSampling(steps=4))
    fill(made)
    return made.eval()


@pytest.fixture(scope="module")
def model() -> RVD:
    return system()


def forecast(model, clip, frames, *, seed=0, rows=(0, 1), **options):
    """A clip and frames drawn after it."""
    task = Task.predict(clip.shape[1], frames)
    return complete(model, clip, task, rng=draws(seed, rows), options=replace(model.options, **options))


# ---- beside the plain form


@pytest.mark.parametrize("size", ["l1", "l2"])
@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
@pytest.mark.parametrize(("changes", "words"), MODES, ids=str)
def test_loss_and_gradients_equal_those_of_the_plain_form(changes, words, target, size):
    settings = replace(CONFIG, target=target, noise_levels=1600, **changes)
    model, plain = pair(settings, channels=2, height=8, width=16)
    clip, noise = 0.9 * uniform("video", (2, 4, 2, 8, 16)), normal("noise", (2, 2, 2, 8, 16))
    n = torch.tensor([17, 1100])
    stage = model.stage("forecast", ForecastStageConfig(clip_frames=4, context=2, loss=size), ASSETS)
    examples = {"clip": clip, "valid": torch.ones(2, 4, dtype=torch.bool)}
    ours = stage.loss(examples, step=0, turn="forecast", rng=Recorded([noise], integers=[n])).total
    ours.backward()

    plain.w = {name: value.clone().requires_grad_() for name, value in plain.w.items()}
    how = {"target": target, "power": 1 if size == "l1" else 2}
    theirs = plain_rvd.loss(plain, [*clip.unbind(1)], n, [*noise.unbind(1)], **words, **how)
    theirs.backward()
    assert error(ours, theirs.detach()) < FORWARD
    for part, name in (("context", "history_fn"), ("transform", "transform_fn"), ("denoiser", "denoise_fn")):
        if part in model.parts():
            found = torch.cat([p.grad.flatten() for p in model.parts()[part].parameters()]).norm()
            wanted = torch.cat([w.grad.flatten() for key, w in plain.w.items() if key.startswith(name)]).norm()
            assert error(found, wanted) < 5 * GRADIENT, part  # a sign at a LeakyReLU may hang on rounding


@pytest.mark.parametrize(("changes", "words"), MODES, ids=str)
@pytest.mark.parametrize(
    ("target", "bound"), [("eps", "range"), ("eps", 0.7), ("eps", None), ("x_0", "range"), ("v", "range"), ("v", None)]
)
def test_frames_equal_those_of_the_plain_form(changes, words, target, bound):
    settings = replace(CONFIG, target=target, noise_levels=5, **changes)
    model, plain = pair(settings, channels=1, height=8, width=16)
    given = 0.9 * uniform("given", (2, 3, 1, 8, 16))
    noise = [[normal(f"{frame} {k}", (2, 1, 8, 16)) for k in range(6)] for frame in range(3)]
    options = RVDSampling(steps=5, bound=bound, given="model", window=2)
    rng = Recorded([z for frame in noise for z in frame])
    ours = complete(model, given, Task.predict(3, 3), rng=rng, options=options)
    with torch.no_grad():
        limit = residual_range(settings) if bound == "range" else bound
        theirs = plain_rvd.generate(plain, [*given.unbind(1)], noise, target=target, bound=limit, **words)
    assert error(ours[:, 3:], torch.stack(theirs, dim=1)) < 2e-3  # the first step multiplies rounding by 80


def test_patches_are_cut_and_joined_around_every_network():
    model, plain = pair(replace(CONFIG, patch=2, noise_levels=5), channels=1, height=8, width=16)
    given = 0.9 * uniform("given", (1, 2, 1, 8, 16))
    noise = [normal(f"{k}", (1, 1, 8, 16)) for k in range(6)]
    options = RVDSampling(steps=5, given="model")
    ours = complete(model, given, Task.predict(2, 1), rng=Recorded(noise), options=options)
    inside = [F.pixel_unshuffle(frame, 2) for frame in given.unbind(1)]
    with torch.no_grad():
        (theirs,) = plain_rvd.generate(plain, inside, [[F.pixel_unshuffle(z, 2) for z in noise]])
    assert error(ours[:, 2], F.pixel_shuffle(theirs, 2)) < 2e-3


# ---- any horizon, window by window


def test_plan_hands_out_windows_of_the_asked_for_length():
    made = system().plan([True] * 3 + [False] * 8, RVDSampling(steps=4, window=3))
    assert [window.frames for window in made] == [(0, 1, 2, 3, 4, 5), (6, 7, 8), (9, 10)]
    assert [window.known for window in made] == [(True,) * 3 + (False,) * 3, (False,) * 3, (False,) * 2]


def test_windows_are_as_long_as_clips_unless_told_otherwise():
    made = system().plan([True] + [False] * 9, RVDSampling(steps=4))
    assert [len(window.frames) - sum(window.known) for window in made] == [4, 4, 1]


def test_nothing_is_planned_where_all_is_known():
    assert system().plan([True] * 3, RVDSampling(steps=4)) == []


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            Task.infill([0, 4], 6),
            r"known frames must come first: frame 4 is known, frame 1 is not\. Systems that infill",
        ),
        (Task.infill([2], 3), r"frame 2 is known, frame 0 is not"),
        (Task.interpolate(3, 2), r"known frames must come first: .+ Systems that interpolate: .*ramvid"),
        (Task.generate(5), r"needs at least 1 known frame\. Systems that generate: .*ramvid"),
    ],
)
def test_other_tasks_are_refused_with_the_system_that_can(model, task, said):
    with pytest.raises(UnsupportedTask, match=said):
        plan(model, task)


@pytest.mark.parametrize("changes", [{}, {"prediction": "none"}, {"prediction": "previous"}], ids=str)
def test_horizon_is_the_same_bits_whatever_the_windows(changes):
    model = system(**changes)
    whole = forecast(model, CLIP[:, :2], 8, window=8)
    for window in (1, 3, 5):
        assert torch.equal(forecast(model, CLIP[:, :2], 8, window=window), whole)


def test_longer_horizon_begins_with_the_shorter_one(model):
    assert torch.equal(forecast(model, CLIP[:, :2], 7)[:, :5], forecast(model, CLIP[:, :2], 3))


@pytest.mark.parametrize("count", [1, 4, 40])
def test_any_number_of_given_frames_is_read(model, count):
    given = 0.8 * uniform("many", (2, count, 1, 8, 8))
    made = forecast(model, given, 2)
    assert torch.equal(made[:, :count], given) and made.isfinite().all()
    changed = given.clone()
    changed[:, 0] *= -1
    assert count == 40 or not torch.allclose(forecast(model, changed, 2)[:, count:], made[:, count:], atol=1e-6)


def test_frames_read_at_once_equal_frames_read_one_by_one(model):
    frames, seen = 0.8 * uniform("many", (2, 37, 1, 8, 8)), None
    with torch.no_grad():
        for frame in frames.unbind(1):
            seen = model.read(frame[:, None], seen)
        whole = model.read(frames)
    for one, two in zip((*seen.context, *seen.transform, seen.mu), (*whole.context, *whole.transform, whole.mu)):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_recurrent_networks_run_once_per_frame_and_never_in_vain(model):
    counts = dict.fromkeys(("context", "transform", "denoiser"), 0)

    def count(name):
        def hook(module, inputs):
            counts[name] += inputs[0].shape[1] if name != "denoiser" else 1

        return model.parts()[name].register_forward_pre_hook(hook)

    hooks = [count(name) for name in counts]
    forecast(model, CLIP[:, :1], 6, steps=3, window=2)
    for hook in hooks:
        hook.remove()
    assert counts == {"context": 6, "transform": 6, "denoiser": 18}  # frames 0 to 5: nothing follows frame 6


def test_what_depends_on_no_noise_level_is_made_once_per_frame(model, monkeypatch):
    made, prepare = [], model.denoiser.prepare
    monkeypatch.setattr(model.denoiser, "prepare", lambda context: made.append(1) or prepare(context))
    forecast(model, CLIP[:, :2], 3, steps=7)
    assert len(made) == 3


def test_frames_depend_on_all_given_ones_and_on_none_to_come(model):
    base = forecast(model, CLIP[:, :3], 2)
    for i in range(3):
        given = CLIP[:, :3].clone()
        given[:, i] *= 0.5
        assert not torch.allclose(forecast(model, given, 2)[:, 3], base[:, 3], atol=1e-6)
    model_frames = torch.cat([CLIP[:, :3], torch.full((2, 2, 1, 8, 8), 9.0)], dim=1)
    known = torch.tensor([True] * 3 + [False] * 2)
    made, _ = model.sample(model_frames, known, rng=draws(0, [0, 1]), options=model.options)
    assert torch.equal(made, base)


def test_two_forecasts_of_one_model_do_not_disturb_each_other(model):
    task, options = Task.predict(2, 6), replace(model.options, window=1)
    alone = [forecast(model, CLIP[:, i : i + 2], 6, seed=i, window=1) for i in (0, 2)]
    streams = [stream(model, CLIP[:, i : i + 2], task, rng=draws(i, [0, 1]), options=options) for i in (0, 2)]
    together = zip(*zip(*streams, strict=True))
    for wanted, blocks in zip(alone, together, strict=True):
        assert torch.equal(torch.cat(blocks, dim=1), wanted)


def test_futures_in_a_batch_are_those_drawn_one_by_one():
    model = system(target="v")  # noise that is told multiplies rounding by 30 in the first step
    given = CLIP[:1, :2].expand(4, -1, -1, -1, -1)
    together = forecast(model, given, 4, rows=range(4))
    for row in range(4):
        alone = forecast(model, given[:1], 4, rows=[row])
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0, 2:], together[1, 2:], atol=1e-3)


def test_a_window_without_known_frames_needs_a_carry(model):
    with pytest.raises(ValueError, match="begins with at least 1 known frame"):
        model.sample(CLIP, torch.zeros(5, dtype=torch.bool), rng=draws(0, [0, 1]), options=model.options)


def test_given_model_leaves_frames_beyond_the_range_but_reads_them_clamped(model):
    raw = forecast(model, CLIP[:, :2], 6, given="model")
    exact = forecast(model, CLIP[:, :2], 6)
    assert raw.abs().max() > 1 >= exact.abs().max()
    assert torch.equal(raw.clamp(-1, 1), exact)


# ---- what is drawn


@pytest.mark.parametrize("changes", [{}, {"prediction": "previous"}], ids=str)
def test_sampler_mean_shows_what_is_expected(changes):
    model = system(**changes)
    made = forecast(model, CLIP, 3, sampler="mean")
    for i in range(5, 8):
        torch.testing.assert_close(made[:, i], model.mean_frame(made[:, :i]), atol=1e-5, rtol=1e-4)
    assert torch.equal(made[:, 5:], forecast(model, CLIP, 3, seed=9, sampler="mean")[:, 5:])


def test_simple_rvd_expects_the_frame_before():
    assert torch.equal(system(prediction="previous").mean_frame(CLIP), CLIP[:, -1])


def test_vd_has_no_transform_network_and_expects_nothing():
    model = system(prediction="none")
    assert set(model.parts()) == {"context", "denoiser"}
    with pytest.raises(ValueError, match="expects none"):
        model.mean_frame(CLIP)
    with pytest.raises(ValueError, match="this one expects nothing: take ddim"):
        forecast(model, CLIP, 1, sampler="mean")


def test_expected_frames_alone_are_a_model_of_one_part():
    model = system(residual="none")
    assert set(model.parts()) == {"transform"} and model.scorer is None
    assert torch.equal(forecast(model, CLIP, 3), forecast(model, CLIP, 3, seed=5, sampler="mean"))


def test_frame_is_what_is_expected_plus_the_scaled_residual():
    """The same noise gives the same residual whatever sigma is, for the denoiser never sees what is expected."""
    frames, means = {}, {}
    for sigma in (1.0, 2.0):
        model = system(sigma=sigma)
        frames[sigma] = forecast(model, CLIP, 1, given="model", bound=0.5)[:, -1]
        means[sigma] = model.mean_frame(CLIP)
    assert torch.equal(means[1.0], means[2.0])
    torch.testing.assert_close(frames[2.0] - means[2.0], 2 * (frames[1.0] - means[1.0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bound", [0.25, 0.5, None])
def test_bound_is_the_largest_residual(model, bound):
    made = forecast(model, CLIP, 1, given="model", bound=bound, sampler="ddim")[:, -1]
    largest = (made - model.mean_frame(CLIP)).abs().max()
    assert largest > 0.5 if bound is None else largest <= bound + 1e-6


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({}, 2.0), ({"sigma": 2.0}, 1.0), ({"prediction": "none"}, 1.0), ({"prediction": "previous"}, 2.0)],
)
def test_bound_is_all_a_residual_can_be_unless_told_otherwise(changes, wanted):
    model = system(**changes)
    assert residual_range(model.config) == wanted
    assert torch.equal(forecast(model, CLIP, 1), forecast(model, CLIP, 1, bound=wanted))
    assert not torch.equal(forecast(model, CLIP, 1), forecast(model, CLIP, 1, bound=wanted / 8))


@pytest.mark.parametrize(
    ("options", "normals"),
    [
        ({"sampler": "ddpm"}, 1 + 4),
        ({"sampler": "ddim"}, 1),
        ({"sampler": "ddim", "eta": 0.5}, 1 + 3),
        ({"sampler": "dpmpp_2m"}, 1),
        ({"sampler": "mean"}, 0),
    ],
    ids=str,
)
def test_every_sampler_draws_its_noise_and_a_frame(model, options, normals):
    rng = Recorded([normal(f"{k}", (2, 1, 8, 8)) for k in range(normals)])
    made = complete(model, CLIP, Task.predict(5, 1), rng=rng, options=RVDSampling(steps=4, **options))
    assert not rng.left["normal"] and made.isfinite().all()


def test_denoiser_hears_the_original_noise_levels(model):
    heard = []
    hook = model.denoiser.register_forward_pre_hook(lambda m, inputs: heard.append(inputs[1].tolist()))
    forecast(model, CLIP, 1, steps=4)
    hook.remove()
    assert heard == [[39, 39], [26, 26], [13, 13], [0, 0]]


def test_few_steps_of_dpmpp_are_spaced_along_the_signal_to_noise_ratio(model):
    even, spaced = (model.times(RVDSampling(sampler=sampler, steps=5)) for sampler in ("ddim", "dpmpp_2m"))
    ratios = [model.schedule.half_log_snr[times[:-1]].diff() for times in (even, spaced)]
    assert ratios[1].std() < 0.7 * ratios[0].std()
    assert model.times(RVDSampling(sampler="dpmpp_2m", steps="5"))[:-1] == even[:-1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 41}, "steps 41 asks for 41 steps among 40"),
        ({"steps": 41, "sampler": "dpmpp_2m"}, "steps is 41; it must lie between 1 and the 40"),
        ({"eta": 2.0}, "eta is 2; it must lie between 0"),
        ({"bound": -1.0}, "bound is -1; it must be above 0"),
        ({"window": -1}, "window is -1; it must be 0"),
    ],
)
def test_impossible_sampling_is_refused_before_anything_is_drawn(model, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.plan([True, False], replace(model.options, **options))


# ---- the stage


def stage_of(model, **changes):
    return model.stage("forecast", replace(ForecastStageConfig(clip_frames=5), **changes), ASSETS)


def loss_of(model, clip=CLIP, *, valid=None, noise="eps", before=(), **changes):
    stage = stage_of(model, **changes)
    valid = torch.ones(clip.shape[:2], dtype=torch.bool) if valid is None else valid
    shape = (len(clip), clip.shape[1] - stage.settings.context, *clip.shape[2:])
    rng = Recorded([*before, normal(noise, shape)], integers=[torch.tensor([3, 30])])
    return stage.loss(stage.examples(clip, valid, rng), step=0, turn="forecast", rng=rng)


def test_padding_is_not_in_the_loss(model):
    valid = torch.tensor([[True] * 4 + [False]] * 2)
    other = CLIP.clone()
    other[:, 4] = 0.5
    assert torch.equal(loss_of(model, valid=valid).total, loss_of(model, other, valid=valid).total)
    assert not torch.equal(loss_of(model).total, loss_of(model, other).total)


def test_every_clip_counts_alike_however_short(model):
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    each = []
    for row in range(2):
        copies = CLIP[row : row + 1].expand(2, -1, -1, -1, -1)
        stage = stage_of(model)
        noise = normal("eps", (2, 3, 1, 8, 8))[row : row + 1].expand(2, -1, -1, -1, -1)
        rng = Recorded([noise], integers=[torch.tensor([[3, 30][row]] * 2)])
        examples = {"clip": copies, "valid": valid[row : row + 1].expand(2, -1)}
        each.append(stage.loss(examples, step=0, turn="forecast", rng=rng).total)
    torch.testing.assert_close(loss_of(model, valid=valid).total, sum(each) / 2)


def test_noise_level_is_one_per_clip_and_noise_is_fresh_for_every_frame(model):
    seen = []
    hook = model.denoiser.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[:2]))
    still = CLIP[:, :1].expand(-1, 5, -1, -1, -1).contiguous()
    loss_of(system(prediction="none"), still)
    loss_of(model)
    hook.remove()
    assert seen[0][1].tolist() == [3, 3, 3, 30, 30, 30]
    noisy = seen[0][0].unflatten(0, (2, 3))
    assert not torch.allclose(noisy[:, 0], noisy[:, 1], atol=0.1)


def test_noise_has_no_gradient_of_what_is_expected_and_clean_residuals_do():
    for target in ("eps", "x_0", "v"):
        model = system(target=target)
        for weight in model.denoiser.parameters():
            torch.nn.init.zeros_(weight)  # so that nothing reaches mu through the denoiser
        loss_of(model, loss="l2").total.backward()
        reached = any(bool(p.grad.any()) for p in model.transform.parameters() if p.grad is not None)
        assert reached == (target != "eps"), target


def test_expected_frames_alone_learn_their_own_error():
    model = system(residual="none")
    stage = stage_of(model, loss="l2")
    examples = {"clip": CLIP, "valid": torch.ones(2, 5, dtype=torch.bool)}
    found = stage.loss(examples, step=0, turn="forecast", rng=Recorded())
    errors = [(CLIP[:, i] - model.mean_frame(CLIP[:, :i])).square().mean() for i in range(2, 5)]
    torch.testing.assert_close(found.total.detach(), sum(errors) / 3)
    assert set(found.terms) == {"mean_error"}


@pytest.mark.parametrize("context", [1, 2, 4])
def test_targets_begin_after_the_context(model, context):
    count = []
    hook = model.denoiser.register_forward_pre_hook(lambda m, inputs: count.append(len(inputs[0])))
    loss_of(model, context=context)
    hook.remove()
    assert count == [2 * (5 - context)]
    assert stage_of(model, context=context).min_frames == context + 1


def test_checkpointing_gives_equal_gradients():
    found = []
    for checkpointing in (False, True):
        model = system().train()
        loss_of(model, checkpointing=checkpointing).total.backward()
        assert all(part.checkpointing == checkpointing for part in model.parts().values())
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found))


@pytest.mark.parametrize("prediction", ["network", "previous", "none"])
def test_loss_says_how_far_off_the_expectation_is(prediction):
    terms = loss_of(system(prediction=prediction)).terms
    assert set(terms) == (set() if prediction == "none" else {"mean_error"})
    if prediction == "previous":
        torch.testing.assert_close(terms["mean_error"], (CLIP[:, 2:] - CLIP[:, 1:-1]).abs().mean())


def test_preview_continues_the_context(model):
    found = stage_of(model).preview(CLIP, draws(0, [0, 1]))
    assert found.shape == CLIP.shape and torch.equal(found[:, :2], CLIP[:, :2])
    assert not torch.equal(found[:, 2:], CLIP[:, 2:])


@pytest.mark.parametrize("prediction", ["network", "previous", "none"])
def test_past_noise_disturbs_what_is_read_and_not_the_frames_to_be_told(prediction):
    model, seen = system(prediction=prediction), []
    model.context_network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    model.denoiser.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    past = normal("past", (2, 4, 1, 8, 8))
    loss_of(model, before=[past], past_noise=0.5)
    read = CLIP[:, :-1] + 0.5 * past
    torch.testing.assert_close(seen[0], read)
    mu = {"network": lambda: model.transform(read)[0][:, 1:].clamp(-1, 1), "previous": lambda: read[:, 1:]}
    with torch.no_grad():
        residual = (CLIP[:, 2:] - mu.get(prediction, lambda: torch.zeros(()))()).flatten(0, 1)
    levels = torch.tensor([3, 30]).repeat_interleave(3)
    noisy = q_sample(model.schedule, residual, levels, normal("eps", (2, 3, 1, 8, 8)).flatten(0, 1))
    torch.testing.assert_close(seen[1], noisy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("amount", [-0.1, float("nan"), float("inf")])
def test_past_noise_that_cannot_be_is_refused(model, amount):
    with pytest.raises(ValueError, match=rf"past_noise is {amount:g}; it must be 0 \(none, as published\) or more"):
        stage_of(model, past_noise=amount)


@pytest.mark.parametrize("context", [0, 5])
def test_context_that_leaves_nothing_to_learn_is_refused(model, context):
    with pytest.raises(ValueError, match=f"context is {context}; it must be at least 1 and below clip_frames, .+ 5"):
        stage_of(model, context=context)


def test_stages_of_other_systems_are_refused(model):
    with pytest.raises(ValueError, match="its only stage is forecast"):
        model.stage("diffusion", ForecastStageConfig(), ASSETS)
    with pytest.raises(ValueError, match="takes ForecastStageConfig, got str"):
        model.stage("forecast", "x", ASSETS)  # type: ignore[arg-type]
