# SPDX-License-Identifier: Apache-2.0
"""How PVDM learns: both phases of the autoencoder and both ways to the denoiser, beside plain second computations."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from framecast.assets import Assets
from framecast.checkpoint import load_tensors
from framecast.diffusion.schedule import scaled_linear
from framecast.draws import draws
from framecast.experiment import EmaConfig, OptimiserConfig, VideoSpec
from framecast.nn.perceptual import load_lpips
from framecast.systems.pvdm.autoencoder import Autoencoder
from framecast.systems.pvdm.config import AutoencoderStageConfig, DiffusionStageConfig
from framecast.systems.pvdm.pvdm import PVDM
from framecast.systems.pvdm.stages import SOUND, AutoencoderStage, DiffusionStage
from framecast.systems.pvdm.weights_autoencoder import discriminator_weights
from framecast.train.loop import Diverged
from framecast.train.optim import Learner
from framecast.train.plan import prepare
from framecast.train.run import run
from tests.formula import fill, normal, uniform
from tests.nn.formula_lpips import write_files
from tests.parity.walk import FORWARD, GRADIENT, Case, error, folders, video
from tests.recorded import Recorded
from tests.tiny import change, pvdm, write_clips

NOWHERE = Assets(Path("none"))
ROWS = (0, 1, 2)


def system(*, channels=1, side=8, frames=4, **denoiser):
    config = pvdm().model
    spec = VideoSpec(channels=channels, height=side, width=side, clip_frames=frames)
    made = PVDM(replace(config, denoiser=replace(config.denoiser, **denoiser)), spec)
    fill(made)
    return made.eval()


def first_stage(model, assets=NOWHERE, **settings) -> AutoencoderStage:
    """Without LPIPS unless told otherwise."""
    settings = {"clip_frames": 4, "perceptual_weight": 0.0, "discriminator_width": 2, **settings}
    return model.stage("autoencoder", AutoencoderStageConfig(**settings), assets)


def clips(*, rows=3, frames=4, channels=1, side=8):
    return 0.9 * uniform(f"clips {channels}", (rows, frames, channels, side, side))


# ---- the autoencoder, phase A


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("vgg"), "vgg")


@pytest.mark.parametrize("channels", [3, 1])
def test_phase_a_is_four_times_pixels_and_four_times_lpips_of_a_frame_each(vgg, channels):
    model = system(channels=channels, side=16)
    stage = first_stage(model, perceptual_weight=4.0, vgg=str(vgg[0]), lin=str(vgg[1]))
    assert not stage.notes
    clip = clips(rows=5, channels=channels, side=16)
    ours = stage.loss({"clip": clip}, step=7, turn="autoencoder", rng=draws(3, range(5)))
    ours.total.backward()

    index = draws(3, range(5)).integers(0, 4, (5,)).tolist()
    assert len(set(index)) > 1  # not one for all
    network = load_lpips("vgg", *vgg)
    weight = model.autoencoder.to_pixels.weight
    found, weight.grad = weight.grad, None
    made = model.autoencoder.decode(model.autoencoder.encode(clip))
    a, b = (torch.stack([x[row, frame] for row, frame in enumerate(index)]) for x in (clip, made))
    pixel = (made - clip).abs().mean()
    perceptual = network(*(x.repeat(1, 3 // channels, 1, 1) for x in (a, b))).mean()
    (4 * pixel + 4 * perceptual).backward()
    assert error(ours.total, (4 * pixel + 4 * perceptual).detach()) < 1e-6
    assert ours.terms.keys() == {"pixel", "lpips"}
    assert error(ours.terms["pixel"], pixel.detach()) < 1e-6
    assert error(ours.terms["lpips"], perceptual.detach()) < 1e-5
    assert error(found, weight.grad) < 1e-4


def test_vgg_is_found_among_the_assets_and_only_read(vgg, tmp_path):
    (tmp_path / "vgg16-397923af.pth").symlink_to(vgg[0])
    stage = first_stage(system(side=16), Assets(tmp_path), perceptual_weight=4.0, lin=str(vgg[1]), adversarial_from=0)
    assert list(stage.frozen()) == ["lpips"]
    assert not any(p.requires_grad for p in stage.frozen()["lpips"].parameters())
    learning = {id(p) for group in stage.groups().values() for m in group.modules.values() for p in m.parameters()}
    assert not learning & {id(p) for p in stage.frozen()["lpips"].parameters()}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({}, r"the loss has no LPIPS: vgg16-397923af.pth is neither a file here nor in none; put VGG-16"),
        ({"channels": 2}, r"frames have 2 channels, so the loss has no LPIPS, which knows 1 or 3\."),
        ({"channels": 5}, r"frames have 5 channels, so the loss has no LPIPS"),
    ],
    ids=["no file", "two channels", "five channels"],
)
def test_without_lpips_training_goes_on_and_says_so(model, said):
    model = system(**model)
    stage = first_stage(model, perceptual_weight=4.0)
    (note,) = stage.notes
    assert re.match(said, note)
    clip = clips(channels=model.video.channels)
    loss = stage.loss({"clip": clip}, step=0, turn="autoencoder", rng=draws(0, ROWS))
    assert loss.terms.keys() == {"pixel"}
    assert loss.total.item() == pytest.approx(4 * loss.terms["pixel"].item(), rel=1e-6)


def test_frames_too_small_for_vgg_are_told(vgg):
    stage = first_stage(system(side=8), perceptual_weight=4.0, vgg=str(vgg[0]), lin=str(vgg[1]))
    assert stage.notes == ("frames are 8x8 pixels, so the loss has no LPIPS, which needs 16x16 at least.",)
    assert not stage.frozen()


def test_a_file_that_is_not_vgg_is_refused(tmp_path):
    alex, lin = write_files(tmp_path, "alex")
    with pytest.raises(ValueError, match=r"alex\.pth holds AlexNet, .+ asks for LPIPS with VGG-16"):
        first_stage(system(side=16), perceptual_weight=4.0, vgg=str(alex), lin=str(lin))
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="is a web page"):
        first_stage(system(side=16), perceptual_weight=4.0, vgg=str(tmp_path / "page.pth"))


def test_a_weight_of_zero_wants_no_file():
    assert first_stage(system(), perceptual_weight=0.0).notes == ()


def test_discriminators_are_not_called_in_phase_a():
    stage = first_stage(system(), adversarial_from=5)

    def called(*_):
        raise AssertionError("a discriminator was called")

    for judge in stage.discriminators.values():
        judge.register_forward_pre_hook(called)
    stage.loss({"clip": clips()}, step=4, turn=stage.turn(4), rng=draws(0, ROWS))
    with pytest.raises(AssertionError, match="was called"):
        stage.loss({"clip": clips()}, step=5, turn=stage.turn(5), rng=draws(0, ROWS))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pixel_weight": -1.0}, r"pixel_weight is -1; it must not be below 0"),
        ({"matching_weight": -0.5}, r"matching_weight is -0\.5"),
        ({"adversarial_from": -1}, r"adversarial_from is -1; it must be a step from 0 on, or null"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        first_stage(system(), **settings)


# ---- the autoencoder, phase B


def plain_outputs(state, x):
    """Outputs of a discriminator's five stages; batch norm takes the moments of x."""
    conv = {4: F.conv2d, 5: F.conv3d}[x.ndim]
    found = []
    for k in range(5):
        weight, bias = state[f"stages.{k}.0.weight"], state[f"stages.{k}.0.bias"]
        x = conv(x, weight, bias, stride=2 if k < 3 else 1, padding=2)
        if 0 < k < 4:
            axes = [0, *range(2, x.ndim)]
            x = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
            shape = (1, -1, *[1] * (x.ndim - 2))
            x = x * state[f"stages.{k}.1.weight"].view(shape) + state[f"stages.{k}.1.bias"].view(shape)
        if k < 4:
            x = torch.where(x > 0, x, 0.2 * x)
        found.append(x)
    return found


def judged(stage, clip, made, index):
    """Of both discriminators: outputs on what is true and on what is made."""
    frame = [torch.stack([x[row, i] for row, i in enumerate(index)]) for x in (clip, made)]
    whole = [x.transpose(1, 2) for x in (clip, made)]
    views = {"discriminator_2d": frame, "discriminator_3d": whole}
    states = {name: dict(judge.named_parameters()) for name, judge in stage.discriminators.items()}
    return [[plain_outputs(states[name], x) for x in pair] for name, pair in views.items()]


def in_phase_b(**settings):
    model = system(channels=2)
    stage = first_stage(model, adversarial_from=0, **settings)
    for judge in stage.discriminators.values():
        fill(judge).train()
    return model, stage, clips(channels=2), draws(0, ROWS).integers(0, 4, (3,)).tolist()


def grads(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def test_phase_b_adds_deception_and_four_times_the_features():
    model, stage, clip, index = in_phase_b()
    stage.discriminators.requires_grad_(False)
    ours = stage.loss({"clip": clip}, step=0, turn="autoencoder", rng=draws(0, ROWS))
    ours.total.backward()
    found = grads(model.autoencoder)
    model.autoencoder.zero_grad()

    made = model.autoencoder.decode(model.autoencoder.encode(clip))
    outputs = judged(stage, clip, made, index)
    deception = -sum(fake[-1].mean() for _, fake in outputs)
    matching = sum((a.detach() - b).abs().mean() for real, fake in outputs for a, b in zip(real[:4], fake[:4]))
    total = 4 * (made - clip).abs().mean() + deception + 4 * matching
    total.backward()
    assert error(ours.total, total.detach()) < FORWARD
    assert error(ours.terms["deception"], deception.detach()) < FORWARD
    assert error(ours.terms["matching"], matching.detach()) < FORWARD
    assert error(found, grads(model.autoencoder)) < GRADIENT


def test_weights_of_phase_b_are_those_of_the_settings():
    _, stage, clip, _ = in_phase_b(adversarial_weight=0.25, matching_weight=2.0, pixel_weight=3.0)
    loss = stage.loss({"clip": clip}, step=0, turn="autoencoder", rng=draws(0, ROWS))
    expected = 3 * loss.terms["pixel"] + 0.25 * (loss.terms["deception"] + 2 * loss.terms["matching"])
    assert error(loss.total, expected) < FORWARD


def test_discriminators_learn_by_a_hinge_and_leave_the_autoencoder_alone():
    model, stage, clip, index = in_phase_b()
    model.autoencoder.requires_grad_(True)
    ours = stage.loss({"clip": clip}, step=1, turn="discriminators", rng=draws(0, ROWS))
    ours.total.backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    found = [grads(judge) for judge in stage.discriminators.values()]
    stage.discriminators.zero_grad()

    with torch.no_grad():
        made = model.autoencoder.decode(model.autoencoder.encode(clip))
    total = 0.0
    for real, fake in judged(stage, clip, made, index):
        total = total + 0.5 * ((1 - real[-1]).clamp(min=0).mean() + (1 + fake[-1]).clamp(min=0).mean())
    total.backward()
    assert error(ours.total, total.detach()) < FORWARD
    for mine, judge in zip(found, stage.discriminators.values(), strict=True):
        assert error(mine, grads(judge)) < GRADIENT


def test_turns_alternate_from_the_first_step_of_phase_b():
    stage = first_stage(system(), adversarial_from=3)
    assert "".join(stage.turn(step)[0] for step in range(9)) == "aaaadadad"
    assert {first_stage(system()).turn(step) for step in range(9)} == {"autoencoder"}


def test_gradients_of_each_discriminator_are_clipped_by_itself_and_the_autoencoders_not():
    model, stage, clip, _ = in_phase_b(
        optimiser=OptimiserConfig(clip_norm=0.0), discriminator_optimiser=OptimiserConfig(clip_norm=1.0)
    )
    learners = {name: Learner(stage, group) for name, group in stage.groups().items()}
    (1e4 * stage.loss({"clip": clip}, step=1, turn="discriminators", rng=draws(0, ROWS)).total).backward()
    learners["discriminators"].clip()
    norms = [grads(judge).norm().item() for judge in stage.discriminators.values()]
    assert norms == pytest.approx([1.0, 1.0], rel=1e-4)
    (1e4 * stage.loss({"clip": clip}, step=0, turn="autoencoder", rng=draws(0, ROWS)).total).backward()
    before = grads(model.autoencoder)
    assert before.norm() > 100
    learners["autoencoder"].clip()
    assert torch.equal(grads(model.autoencoder), before)


@pytest.mark.parametrize(("turn", "other"), [("autoencoder", "discriminators"), ("discriminators", "autoencoder")])
def test_the_group_that_waits_gets_no_gradient(turn, other):
    _, stage, clip, _ = in_phase_b()
    learners = {name: Learner(stage, group) for name, group in stage.groups().items()}
    learners[turn].take_turn(learners, 0, max_steps=10)
    stage.loss({"clip": clip}, step=0, turn=turn, rng=draws(0, ROWS)).total.backward()
    assert all(weight.grad is None for weight in learners[other].weights.values())
    assert all(weight.grad is not None for weight in learners[turn].weights.values())


def test_without_a_second_phase_there_are_no_discriminators():
    stage = first_stage(system())
    assert list(stage.groups()) == ["autoencoder"]
    assert stage.sound() == {}
    assert first_stage(system(), adversarial_from=9).sound() == {"discriminators": (0.05, 4.0)}


# ---- the official losses, through the stage


class Given(torch.nn.Module):
    """An autoencoder that gives back a reconstruction made elsewhere."""

    checkpointing = False

    def __init__(self, made):
        super().__init__()
        self.made = torch.nn.Parameter(made)
        self.channels, self.frames, self.size = made.shape[2], made.shape[1], tuple(made.shape[3:])

    def encode(self, clip):
        return None

    def decode(self, planes):
        return 1 * self.made


@pytest.mark.parametrize("folder", folders("pvdm-gan"))
def test_loss_of_the_stage_is_the_official_one(folder):
    case = Case(folder)
    c = case.config
    if c["disc_num_layers"] != 3:
        pytest.skip("the stage's discriminators halve three times, as all published ones do")
    settings = AutoencoderStageConfig(
        pixel_weight=c["pixelloss_weight"],
        perceptual_weight=0.0,  # the folder's is a constant zero
        adversarial_weight=c["disc_weight"],
        matching_weight=c["feature_weight"] / c["disc_weight"],
        adversarial_from=5,
        discriminator_width=c["disc_ndf"],
        discriminator_optimiser=OptimiserConfig(clip_norm=c["grad_clip_norm"]),
    )

    def loss(step):
        stage = AutoencoderStage(Given(video(case["recon"])), settings, NOWHERE)
        judges = dict(stage.discriminators.items())
        for name, state in discriminator_weights(case.weights, judges, where="weights").items():
            judges[name].load_state_dict(state)
        rng = Recorded(integers=[case["frame_index"]])
        found = stage.loss({"clip": video(case["clip"])}, step=step, turn=stage.turn(step), rng=rng)
        found.total.backward()
        return stage, found

    def close(name, ours, limit):
        assert error(ours.reshape(case.tensors[name].shape), case[name]) < limit, name

    close("gen.loss_total_before_start", loss(4)[1].total, FORWARD)
    stage, found = loss(5)
    close("gen.loss_total", found.total, FORWARD)
    close("gen.adv", settings.adversarial_weight * found.terms["deception"], FORWARD)
    close("gen.feature_matching", c["feature_weight"] * found.terms["matching"], FORWARD)
    close("gen.pixel", settings.pixel_weight * found.terms["pixel"], FORWARD)
    close("gen.grad_recon", video(stage.autoencoder.made.grad), GRADIENT)
    stage, found = loss(6)
    assert stage.autoencoder.made.grad is None
    close("disc.loss_total", found.total, FORWARD)
    for dims in (2, 3):
        judge = stage.discriminators[f"discriminator_{dims}d"]
        close(f"disc.grad_norm_{dims}d", grads(judge).norm(), GRADIENT)
    Learner(stage, stage.groups()["discriminators"]).clip()
    for dims in (2, 3):
        judge = stage.discriminators[f"discriminator_{dims}d"]
        close(f"disc.grad_{dims}d_first_clipped", judge.stages[0][0].weight.grad, GRADIENT)


# ---- the denoiser


class Naming:
    """An autoencoder whose latent of a clip is the clip's first value, everywhere: which window it was, and whose."""

    frames, places, calls = 4, 20, 0

    def encode(self, clip):
        assert clip.shape[1] == 4
        self.calls += 1
        return SimpleNamespace(flat=lambda: clip[:, 0, :1, 0, 0, None].expand(-1, 4, 20))


class Deaf:
    """As much of a denoiser as examples need."""

    config = SimpleNamespace(conditional=True)
    channels, checkpointing = 4, False


def second_stage(model=None, **settings) -> DiffusionStage:
    config = DiffusionStageConfig(**{"clip_frames": 4, **settings})
    if model is not None:
        return model.stage("diffusion", config, NOWHERE)
    return DiffusionStage(Naming(), Deaf(), scaled_linear(1000), config)


def counting(rows, *, frames=8):
    """Clips whose frame i of row r has the value 100 (r + 1) + i + 1."""
    values = 100.0 * (torch.arange(rows)[:, None] + 1) + torch.arange(frames) + 1
    return values[:, :, None, None, None].expand(-1, -1, 1, 8, 8), torch.ones(rows, frames, dtype=torch.bool)


def named(stage, rows, *, step, first=0, valid=None):
    """Target window and condition of each row, as numbers of frames."""
    clip, whole = counting(rows)
    valid = whole if valid is None else valid
    made = stage.examples(clip, valid, draws(11, range(first, first + rows), step=step))
    base = 100.0 * (torch.arange(rows) + 1) + 1
    targets, conditions = (made[name][:, 0, 0] for name in ("target", "condition"))
    assert all(torch.equal(value, value[:, :1, :1].expand_as(value)) for value in made.values())
    return (targets - base).int().tolist(), [None if c == 0 else int(c - b) for c, b in zip(conditions, base)]


def test_one_draw_decides_for_a_whole_step():
    stage, told = second_stage(conditional=0.3, draw="step"), []
    for step in range(1500):
        _, conditions = named(stage, 3, step=step, first=10 * step)
        assert len(set(conditions)) == 1
        told.append(conditions[0] is not None)
    assert sum(told) / len(told) == pytest.approx(0.3, abs=0.05)  # four deviations


def test_micro_batches_and_processes_share_the_draw_of_a_step():
    stage = second_stage(conditional=0.5, draw="step")
    for step in range(20):
        here, there = (named(stage, 2, step=step, first=first)[1] for first in (0, 77))
        assert here == there


def test_one_draw_decides_for_each_clip():
    stage = second_stage(conditional=0.3, draw="clip")
    _, conditions = named(stage, 1500, step=0)
    assert sum(c is not None for c in conditions) / 1500 == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("draw", ["step", "clip"])
def test_conditional_rows_go_from_the_first_half_to_the_second(draw):
    stage = second_stage(conditional=1.0, draw=draw)
    assert named(stage, 5, step=0) == ([4] * 5, [0] * 5)


def test_other_rows_are_any_window_without_a_condition():
    stage = second_stage(conditional=0.0)
    targets, conditions = named(stage, 2000, step=0)
    assert set(conditions) == {None}
    counts = [targets.count(offset) for offset in range(5)]
    assert sum(counts) == 2000  # offsets 0 to 4, both included
    assert min(counts) > 400 - 4 * 18 and max(counts) < 400 + 4 * 18
    assert stage.autoencoder.calls == 1  # no condition was encoded for nobody


def test_clip_too_short_for_two_has_none_before_it():
    valid = torch.ones(4, 8, dtype=torch.bool)
    valid[1, 7:], valid[3, 4:] = False, False
    for draw in ("step", "clip", "none"):
        stage = second_stage(conditional=1.0, draw=draw)
        assert named(stage, 4, step=0, valid=valid) == ([4, 0, 4, 0], [0, None, 0, None]), draw
    targets, _ = named(second_stage(conditional=0.0), 4, step=3, valid=valid)
    assert targets[1] == targets[3] == 0


def recorded(shape, t=(17, 400, 999)):
    noise = normal("eps", shape)
    return noise, torch.tensor(t), Recorded([noise], integers=[torch.tensor(t)])


def plain_noisy(latent, t, noise):
    abar = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2, dim=0)[t]
    abar = abar[:, None, None]
    return (abar.sqrt() * latent.double() + (1 - abar).sqrt() * noise.double()).float()


def test_loss_is_the_squared_error_of_the_noise():
    model = system()
    target, condition = (uniform(name, (3, 4, 20)) for name in ("target", "condition"))
    noise, t, rng = recorded(target.shape)
    examples = {"target": target, "condition": condition}
    loss = second_stage(model).loss(examples, step=0, turn="diffusion", rng=rng)
    with torch.no_grad():
        expected = (model.denoiser(plain_noisy(target, t, noise), t, condition) - noise).square().mean()
    assert error(loss.total, expected) < FORWARD


def test_both_terms_of_the_paper_share_the_noisy_latent():
    model = system()
    target, condition = (uniform(name, (3, 4, 20)) for name in ("target", "condition"))
    noise, t, rng = recorded(target.shape)
    stage = second_stage(model, draw="none", conditional=0.2)
    loss = stage.loss({"target": target, "condition": condition}, step=0, turn="diffusion", rng=rng)
    with torch.no_grad():
        z = plain_noisy(target, t, noise)
        told, untold = (
            (model.denoiser(z, t, c) - noise).square().mean() for c in (condition, torch.zeros_like(condition))
        )
    assert error(loss.total, 0.2 * told + 0.8 * untold) < FORWARD
    assert error(loss.terms["conditional"], told) < FORWARD
    assert error(loss.terms["unconditional"], untold) < FORWARD


def test_latents_are_those_of_the_autoencoder_and_carry_no_gradient():
    model = system()
    model.autoencoder.requires_grad_(True)
    clip, valid = clips(frames=8), torch.ones(3, 8, dtype=torch.bool)
    made = second_stage(model, conditional=1.0, draw="clip").examples(clip, valid, draws(0, ROWS))
    with torch.no_grad():
        assert torch.equal(made["condition"], model.autoencoder.encode(clip[:, :4]).flat())
        assert torch.equal(made["target"], model.autoencoder.encode(clip[:, 4:]).flat())
    assert not any(value.requires_grad for value in made.values())


@pytest.mark.parametrize("draw", ["step", "clip", "none"])
def test_kept_latents_give_the_loss_of_fresh_ones_of_the_same_windows(draw):
    model, clip = system(), clips(rows=6, frames=8)
    valid = torch.ones(6, 8, dtype=torch.bool)
    valid[2, 5:] = False
    keeping, fresh = (second_stage(model, draw=draw, conditional=0.5, cache=cache) for cache in (True, False))
    before, after = (model.autoencoder.encode(half).flat().detach() for half in (clip[:, :4], clip[:, 4:]))
    kept = keeping.examples(clip, valid, draws(0, range(6)))
    for step in range(8):
        rng = draws(5, range(6), step=step)
        ours = keeping.loss(kept, step=step, turn="diffusion", rng=rng)
        again = draws(5, range(6), step=step)  # the same choices: who is conditional, then which half
        if draw == "none":
            told = torch.ones(6, dtype=torch.bool)
        elif draw == "step":
            told = (torch.rand((), generator=again.shared) < 0.5).expand(6)
        else:
            told = again.uniform((6,)) < 0.5
        told = told & valid.all(1)
        second = (told | (again.uniform((6,)) < 0.5)) & valid.all(1)
        pairs = {
            "target": torch.stack([after[i] if second[i] else before[i] for i in range(6)]),
            "condition": torch.stack([before[i] if told[i] else torch.zeros_like(before[i]) for i in range(6)]),
        }
        theirs = fresh.loss(pairs, step=step, turn="diffusion", rng=again)
        assert torch.equal(ours.total, theirs.total)


def test_halves_of_a_kept_clip_are_drawn_alike_where_nothing_is_before_them():
    stage = second_stage(conditional=0.0, cache=True)
    clip, valid = counting(600)
    kept = stage.examples(clip, valid, draws(0, range(600)))
    target, condition = stage._pairs(kept, draws(1, range(600)))
    second = (target[:, 0, 0] == clip[:, 4, 0, 0, 0]).float().mean().item()
    assert second == pytest.approx(0.5, abs=0.1)
    assert not condition.any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"conditional": 1.5}, r"conditional is 1\.5; a share, it must lie between 0 and 1"),
        ({"clip_frames": 8}, r"clip_frames is 8, but the autoencoder encodes clips of 4 frames: make them agree"),
    ],
)
def test_settings_of_the_second_stage_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        second_stage(system(), **settings)


def test_a_denoiser_without_condition_learns_single_clips_only():
    alone = system(conditional=False)
    with pytest.raises(ValueError, match=r"the denoiser reads no condition: set it to 0"):
        second_stage(alone, conditional=0.3)
    stage = second_stage(alone, conditional=0.0)
    examples = stage.examples(clips(frames=8), torch.ones(3, 8, dtype=torch.bool), draws(0, ROWS))
    assert stage.loss(examples, step=0, turn="diffusion", rng=draws(0, ROWS)).total.isfinite()


@pytest.mark.parametrize("conditional", [True, False])
def test_preview_shows_what_the_planes_keep_and_a_clip_after_it(conditional):
    model = system(conditional=conditional)
    stage = second_stage(model, conditional=0.3 if conditional else 0.0)
    clip = clips(frames=8)
    with torch.no_grad():
        made = stage.preview(clip, draws(0, ROWS))
        assert torch.equal(made[:, :4], model.autoencoder.decode(model.autoencoder.encode(clip[:, :4])))
    assert made.shape == clip.shape and made.isfinite().all()


# ---- in runs


def tiny(tmp_path, **settings):
    folder = tmp_path / "clips"
    return change(pvdm(), data={"dir": str(folder if folder.exists() else write_clips(folder))}, **settings)


def of_stage(experiment, name, **settings):
    stages = experiment.stages
    return replace(experiment, stages=replace(stages, **{name: replace(getattr(stages, name), **settings)}))


def moved(folder):
    """What differs from each checkpoint of a run to the next: first letters of the groups that moved."""
    told, last = [], None
    for path in sorted(folder.glob("checkpoints/step_*")):
        state = load_tensors(path / "train_state.safetensors")
        if last is not None:
            changed = {n for n, t in state.items() if "/weights/" in n and not torch.equal(t, last[n])}
            learned = {n.split("/")[0] for n in changed if "running" not in n and "tracked" not in n}
            told.append("".join(sorted(name[0] for name in learned)))
        last = state
    return told


def test_only_the_group_whose_turn_it_is_moves(tmp_path):
    experiment = of_stage(tiny(tmp_path), "autoencoder", accumulate=2, adversarial_from=3, max_steps=8)
    experiment = of_stage(experiment, "autoencoder", checkpoint_every=1, keep=9, log_every=1, ema=EmaConfig(decay=0.0))
    run(experiment, out=tmp_path / "run", device="cpu")
    assert moved(tmp_path / "run") == ["a", "a", "a", "d", "a", "d", "a"]  # of steps 1 to 7
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"autoencoder/deception", "discriminators/loss", "discriminators/discriminator_3d"} <= set(header)


def test_plan_of_a_run_says_what_the_loss_lacks(tmp_path):
    experiment = of_stage(tiny(tmp_path), "autoencoder", vgg="nowhere.pth")
    assert any("the loss has no LPIPS: nowhere.pth is neither" in note for note in prepare(experiment).plan.notes)


def test_discriminators_that_have_won_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("framecast.train.sound.PATIENCE", 3)
    monkeypatch.setattr("framecast.systems.pvdm.stages.SOUND", (3.0, 4.0))  # a sound loss is around 2
    assert SOUND == (0.05, 4.0)
    experiment = of_stage(tiny(tmp_path), "autoencoder", adversarial_from=2, max_steps=30, checkpoint_every=1)
    said = r"the loss of the discriminators has been outside 3 to 4 for 3 .+ since step 3 .+ is .+step_00000002;"
    with pytest.raises(Diverged, match=said):
        run(experiment, out=tmp_path / "run", device="cpu")
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert left == ["step_00000002", "step_00000006", "step_00000007"]


@pytest.mark.parametrize("cache", [False, True])
def test_the_second_stage_leaves_the_autoencoder_as_it_was(tmp_path, cache, monkeypatch):
    experiment = of_stage(tiny(tmp_path, max_steps=3), "diffusion", cache=cache)
    seen = []
    encode = Autoencoder.encode

    def hear(self, clip):
        seen.append((self.training, torch.is_grad_enabled()))
        return encode(self, clip)

    first = run(experiment, out=tmp_path / "first", device="cpu")
    monkeypatch.setattr(Autoencoder, "encode", hear)
    second = run(experiment, stage="diffusion", from_model=first.dir, out=tmp_path / "second", device="cpu")
    before, after = (load_tensors(done.checkpoint / "autoencoder.safetensors") for done in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(seen) == {(False, False)}
    assert not any("autoencoder" in name for name in load_tensors(second.checkpoint / "train_state.safetensors"))
    with pytest.raises(ValueError, match=r"trained on top of a trained autoencoder: train it with --stage autoencoder"):
        prepare(experiment, stage="diffusion")


def test_every_window_is_encoded_once_where_latents_are_kept(tmp_path, monkeypatch):
    experiment = tiny(tmp_path, max_steps=2, preview_every=None)
    first = run(experiment, out=tmp_path / "first", device="cpu")
    rows = []
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, clip: rows.append(len(clip)) or encode(self, clip))
    longer = of_stage(experiment, "diffusion", max_steps=12)
    job = prepare(longer, stage="diffusion", from_model=first.dir)
    run(longer, stage="diffusion", from_model=first.dir, device="cpu", out=tmp_path / "second")
    alone = [n for n in rows if n == 1]
    assert len(alone) == 2 * job.train.windows  # two halves each, of 48 clips asked for
    assert any("latents are kept in memory, 0.64 kB for each clip" in note for note in job.plan.notes)


@pytest.mark.parametrize("data", [{"flip": True}, {"crop": "random"}])
def test_latents_of_clips_that_change_are_not_kept(tmp_path, data):
    experiment = tiny(tmp_path, max_steps=1)
    first = run(experiment, out=tmp_path / "first", device="cpu")
    changed = change(experiment, data=data)
    with pytest.raises(ValueError, match=r"stages\.diffusion keeps what it makes of every clip, so clips must be cut"):
        prepare(changed, stage="diffusion", from_model=first.dir)
    prepare(of_stage(changed, "diffusion", cache=False), stage="diffusion", from_model=first.dir)


def test_settings_of_the_discriminators_optimiser_are_looked_at_before_a_run(tmp_path):
    experiment = of_stage(tiny(tmp_path), "autoencoder", discriminator_optimiser=OptimiserConfig(lr=0.0))
    with pytest.raises(
        ValueError, match=r"stages\.autoencoder\.discriminator_optimiser\.lr is 0\.0; the learning rate"
    ):
        prepare(experiment)
