"""RaMViD: masks, objective, sampling, plans, the stage."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.assets import Assets
from framecast.diffusion.schedule import linear
from framecast.draws import draws
from framecast.experiment import VideoSpec
from framecast.system import UnsupportedTask
from framecast.systems.ramvid.config import DiffusionStageConfig, RaMViDConfig, RaMViDSampling
from framecast.systems.ramvid.ramvid import RaMViD, draw_known, draw_levels, mean_over, noised
from tests.formula import fill, normal, uniform
from tests.recorded import Recorded

CONFIG = RaMViDConfig(
    width=8, multipliers=(1, 2), res_blocks=1, attention=(2,), heads=2, groups=4, noise_levels=40, schedule="cosine"
)
SPEC = VideoSpec(channels=1, height=8, width=8, clip_frames=4)
STAGE = DiffusionStageConfig(clip_frames=4, max_known=2, unconditional_rate=0.25)
ASSETS = Assets(Path("none"))
CLIP = uniform("clip", (2, 4, 1, 8, 8))


def system(**changes) -> RaMViD:
    made = RaMViD(replace(CONFIG, **changes), SPEC)
    fill(made.network)
    return made


@pytest.fixture(scope="module")
def model() -> RaMViD:
    return system()


@pytest.mark.parametrize(("overlap", "context"), [(2, 2), (20, 3)])
def test_usual_context_is_what_later_windows_see_and_leaves_a_frame_to_draw(overlap, context):
    made = RaMViD(CONFIG, SPEC, RaMViDSampling(overlap=overlap))
    assert (made.context, made.horizon(made.context)) == (context, 4 - context)


def watched(model: RaMViD, **options):
    """The network's inputs during one sampling of CLIP with frames 1 and 3 known, and the result."""
    seen = []
    hook = model.network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    known = torch.tensor([False, True, False, True])
    result, _ = model.sample(CLIP, known, rng=draws(1, rows=[0, 1]), options=RaMViDSampling(steps=3, **options))
    hook.remove()
    return seen, result


SAMPLERS = [
    {"sampler": "ddpm"},
    {"sampler": "ddpm", "resample": 3},
    {"sampler": "ddim"},
    {"sampler": "ddim", "eta": 0.7},
    {"sampler": "dpmpp_2m"},
    {"sampler": "ddpm", "conditioning": "replacement"},
    {"sampler": "ddim", "clip": False},
]


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_known_frames_come_back_bit_identical(model, options):
    for seed in range(3):
        known = draws(seed, rows=[0]).uniform((1, 4))[0] < 0.5
        found, _ = model.sample(CLIP, known, rng=draws(seed, rows=[0, 1]), options=RaMViDSampling(steps=3, **options))
        assert torch.equal(found[:, known], CLIP[:, known])
        assert found.isfinite().all() and found.abs().max() <= 1
        assert known.all() or not torch.equal(found[:, ~known], CLIP[:, ~known])


def test_known_frames_go_in_clean_before_every_evaluation(model):
    seen, _ = watched(model, resample=2)
    assert len(seen) == 6
    assert all(torch.equal(x[:, [1, 3]], CLIP[:, [1, 3]]) for x in seen)


def test_replacement_puts_in_noised_known_frames_afresh(model):
    seen, _ = watched(model, conditioning="replacement", sampler="ddim")
    gaps = [(x[:, [1, 3]] - CLIP[:, [1, 3]]).abs().mean().item() for x in seen]
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_given_model_returns_what_the_network_made_of_known_frames(model):
    _, exact = watched(model)
    _, raw = watched(model, given="model")
    assert not torch.equal(raw[:, [1, 3]], CLIP[:, [1, 3]])
    assert torch.equal(raw[:, [0, 2]].clamp(-1, 1), exact[:, [0, 2]])


def test_nothing_is_drawn_where_all_is_known(model):
    found, carry = model.sample(CLIP, torch.ones(4, dtype=torch.bool), rng=Recorded(), options=RaMViDSampling())
    assert torch.equal(found, CLIP) and carry is None


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(model, options):
    options, known = RaMViDSampling(steps=3, **options), torch.tensor([True, False, False, False])
    both, _ = model.sample(CLIP, known, rng=draws(3, rows=[5, 6]), options=options)
    alone, _ = model.sample(CLIP[1:], known, rng=draws(3, rows=[6]), options=options)
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_sampling_leaves_the_training_mode_and_uses_no_dropout():
    model = system(dropout=0.5).train()
    first, second = watched(model)[1], watched(model)[1]
    assert torch.equal(first, second) and model.network.training


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_target_samples_and_trains(target, learned):
    model = system(target=target, learned_variance=learned)
    assert watched(model)[1].isfinite().all()
    loss = model.stage("diffusion", STAGE, ASSETS).loss(
        {"clip": CLIP, "valid": torch.ones(2, 4, dtype=torch.bool)}, step=0, turn="diffusion", rng=draws(0, [0, 1])
    )
    loss.total.backward()
    assert set(loss.terms) == ({"mse", "vb"} if learned else {"mse"})
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.network.parameters())


def test_the_bound_teaches_the_variance_only():
    model = system(learned_variance=True)
    rng, everywhere = draws(0, [0, 1]), torch.ones(2, 4, dtype=torch.bool)
    stage = model.stage("diffusion", STAGE, ASSETS)
    total = stage.loss({"clip": CLIP, "valid": everywhere}, step=0, turn="diffusion", rng=rng)
    total.total.backward()
    with_bound = model.network.out[2].weight.grad.clone()
    # the same draws by hand, without the bound
    rng = draws(0, [0, 1])
    known = draw_known(rng, everywhere, max_known=2, unconditional_rate=0.25)
    t, _ = draw_levels(rng, 2, 40, "uniform")
    x_t, eps = noised(model.schedule, CLIP, known, t, rng.normal(CLIP.shape))
    model.network.zero_grad()
    output = model.network(x_t, model.model_time(t))[:, :, :1]
    mean_over((output - eps) ** 2, ~known).mean().backward()
    assert torch.allclose(model.network.out[2].weight.grad[0], with_bound[0], rtol=1e-4, atol=1e-7)
    assert with_bound[1].abs().max() > 0 == model.network.out[2].weight.grad[1].abs().max()


def recorded_loss(model, *, eps, clip=CLIP, known=(1, 3), loss_over="unknown", valid=None):
    """The stage's loss with these frames known, noise eps and noise level 20 for every clip."""
    unknown = torch.tensor([[float(i not in known) for i in range(4)]] * 2)
    rng = Recorded(
        [eps],
        uniform=[torch.full((2,), 2.0), unknown],
        integers=[torch.full((2,), len(known)), torch.full((2,), 20)],
    )
    stage = model.stage("diffusion", replace(STAGE, loss_over=loss_over), ASSETS)
    valid = torch.ones(2, 4, dtype=torch.bool) if valid is None else valid
    examples = stage.examples(clip, valid, rng)
    with torch.no_grad():
        return stage.loss(examples, step=0, turn="diffusion", rng=rng).total


@pytest.mark.parametrize("loss_over", ["unknown", "all"])
def test_loss_does_not_depend_on_noise_at_known_frames(model, loss_over):
    eps = normal("eps", CLIP.shape)
    other = eps.clone()
    other[:, [1, 3]] += 1
    assert recorded_loss(model, eps=eps, loss_over=loss_over) == recorded_loss(model, eps=other, loss_over=loss_over)
    other[:, 0] += 1
    assert recorded_loss(model, eps=eps, loss_over=loss_over) != recorded_loss(model, eps=other, loss_over=loss_over)


def test_padding_is_not_in_the_loss(model):
    valid = torch.tensor([[True, True, True, False]] * 2)
    outputs = []
    hook = model.network.register_forward_hook(lambda m, i, o: outputs.append(o))
    eps = normal("eps", CLIP.shape)
    found = recorded_loss(model, eps=eps, known=(1,), valid=valid)
    hook.remove()
    wanted = (outputs[0] - eps)[:, [0, 2]].square().mean()
    assert torch.allclose(found, wanted)


def test_noised_leaves_known_frames_exactly_clean():
    known = torch.tensor([[True, False, False, True], [False, False, True, False]])
    x_t, eps = noised(linear(100), CLIP, known, torch.tensor([99, 3]), normal("eps", CLIP.shape))
    assert torch.equal(x_t[known], CLIP[known]) and bool((eps[known] == 0).all())
    assert bool((x_t[~known] != CLIP[~known]).all())


def test_mean_over_weighs_clips_alike_whatever_they_know():
    values = torch.ones(2, 4, 1, 2, 2) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1, 1)
    counted = torch.tensor([[True, True, True, True], [False, False, False, True]])
    assert mean_over(values, counted).tolist() == [2.5, 4.0]


def test_masks_have_the_stated_frequencies():
    rows, frames, most = 6000, 8, 3
    known = draw_known(
        draws(0, range(rows)), torch.ones(rows, frames, dtype=torch.bool), max_known=most, unconditional_rate=0.25
    )
    counts = torch.bincount(known.sum(1), minlength=frames + 1) / rows
    assert torch.allclose(counts[:4], torch.tensor([0.25, 0.25, 0.25, 0.25]), atol=0.025)
    assert not counts[4:].any()
    # every position alike: a mean of 2 known frames in three quarters of the clips
    assert torch.allclose(known.float().mean(0), torch.full((frames,), 0.75 * 2 / frames), atol=0.02)


def test_masks_stay_in_range_and_off_padding():
    valid = torch.arange(8)[None] < torch.tensor([[6]] * 500)
    known = draw_known(draws(1, range(500)), valid, max_known=2, unconditional_rate=0.0, known_range=(2, 7))
    assert known.any(0).tolist() == [False, False, True, True, True, True, False, False]
    assert set(known.sum(1).tolist()) == {1, 2}


def test_harmonic_levels_are_weighted_back():
    t, weight = draw_levels(draws(0, range(20_000)), 20_000, 50, "harmonic")
    assert t.min() == 0 and t.max() == 49
    assert abs(weight.mean() - 1) < 0.03
    assert abs((weight * t).mean() - 24.5) < 0.7  # the mean of a uniform draw
    assert (t == 0).float().mean() > 0.2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(2, 9), st.integers(1, 8))
def test_plans_draw_every_missing_frame_once(known, window, overlap):
    made = RaMViD.__new__(RaMViD)  # a plan needs no weights
    torch.nn.Module.__init__(made)
    made.config, made.video = CONFIG, SPEC
    options = RaMViDSampling(steps=3, window=window, overlap=overlap)
    if overlap >= window and len(known) > window:
        with pytest.raises(ValueError, match="overlap"):
            made.plan(known, options)
        return
    drawn = [i for w in made.plan(known, options) for i, k in zip(w.frames, w.known) if not k and 0 <= i < len(known)]
    assert sorted(drawn) == [i for i, k in enumerate(known) if not k]
    assert all(len(w.frames) == window for w in made.plan(known, options))


def test_a_network_that_resamples_time_takes_one_window_length():
    model = RaMViD(replace(CONFIG, time_frames=4), SPEC)
    assert len(model.plan([True] + [False] * 3, RaMViDSampling(steps=3))) == 1
    with pytest.raises(UnsupportedTask, match="takes exactly 4"):
        model.plan([True] + [False] * 5, RaMViDSampling(steps=3, window=6))
    with pytest.raises(ValueError, match="time_frames is 2, but clips have 4 frames"):
        RaMViD(replace(CONFIG, time_frames=2), SPEC)


def test_stage_overfits_in_seconds():
    torch.manual_seed(0)
    model = RaMViD(CONFIG, SPEC)
    stage = model.stage("diffusion", STAGE, ASSETS)
    clip = torch.sign(uniform("clip", (4, 1, 1, 8, 8))).expand(-1, 4, -1, -1, -1).contiguous() * 0.8
    optimiser = torch.optim.AdamW(stage.groups()["diffusion"].modules["diffusion"].parameters(), lr=6e-3)
    valid, losses = torch.ones(4, 4, dtype=torch.bool), []
    for step in range(70):
        rng = draws(0, range(4 * step, 4 * step + 4))
        loss = stage.loss(stage.examples(clip, valid, rng), step=step, turn="diffusion", rng=rng)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.total.item())
    assert sum(losses[-20:]) / 20 < 0.4 < 0.9 < losses[0]


def test_preview_predicts_from_the_first_frames(model):
    stage = model.stage("diffusion", STAGE, ASSETS)
    found = stage.preview(CLIP, draws(0, [0, 1]))
    assert found.shape == CLIP.shape
    assert torch.equal(found[:, :2], CLIP[:, :2]) and not torch.equal(found[:, 2:], CLIP[:, 2:])


def test_stage_sets_checkpointing_and_shortest_clip():
    model = system()
    stage = model.stage("diffusion", replace(STAGE, checkpointing=True, known_range=(1, 3)), ASSETS)
    assert model.network.checkpointing
    assert (stage.clip_frames, stage.min_frames) == (4, 3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_known": 4}, "max_known is 4; it must be at least 1 and below clip_frames, which is 4"),
        ({"max_known": 0}, "max_known is 0"),
        ({"unconditional_rate": 1.5}, "unconditional_rate is 1.5"),
        ({"known_range": (0, 4)}, "known_range is 0 to 4; it must lie within the clip, 0 to 3"),
        ({"known_range": (3, 3)}, "fewer positions than max_known"),
    ],
)
def test_impossible_stages_are_refused_in_a_sentence(model, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.stage("diffusion", replace(STAGE, **changes), ASSETS)


def test_stages_of_other_models_are_refused():
    with pytest.raises(ValueError, match="its only stage is diffusion"):
        system().stage("prior", STAGE, ASSETS)
    with pytest.raises(ValueError, match="carry no labels"):
        system(classes=3).stage("diffusion", STAGE, ASSETS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resample": 0}, "resample is 0"),
        ({"resample": 2, "sampler": "ddim"}, "works with the sampler ddpm only"),
        ({"label": 1}, "the model has no classes"),
        ({"steps": 41}, "steps 41 asks for 41 steps among 40"),
        ({"sampler": "ddim", "steps": 2, "eta": 2.0}, "eta is 2"),
    ],
)
def test_impossible_sampling_is_refused_in_a_sentence(model, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.sample(CLIP, torch.zeros(4, dtype=torch.bool), rng=draws(0, [0, 1]), options=RaMViDSampling(**options))


def test_class_changes_the_sample():
    model, known = system(classes=3), torch.zeros(4, dtype=torch.bool)
    found = [
        model.sample(CLIP, known, rng=draws(0, [0, 1]), options=RaMViDSampling(steps=2, label=label))[0]
        for label in (0, 2)
    ]
    assert not torch.allclose(*found)
    with pytest.raises(ValueError, match="choose one"):
        model.sample(CLIP, known, rng=draws(0, [0, 1]), options=RaMViDSampling(steps=2))


def test_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="frames of 9x8 pixels do not fit"):
        RaMViD(CONFIG, replace(SPEC, height=9))
