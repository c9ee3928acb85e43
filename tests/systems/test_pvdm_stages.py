# SPDX-License-Identifier: Apache-2.0
"""How PVDM's autoencoder learns: both phases beside plain second computations, and what stops a run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from framecast.assets import Assets
from framecast.checkpoint import load_tensors
from framecast.draws import draws
from framecast.experiment import EmaConfig, OptimiserConfig, VideoSpec
from framecast.nn.perceptual import load_lpips
from framecast.systems.pvdm.config import AutoencoderStageConfig
from framecast.systems.pvdm.pvdm import PVDM
from framecast.systems.pvdm.stages import SOUND, AutoencoderStage
from framecast.systems.pvdm.weights_autoencoder import discriminator_weights
from framecast.train.loop import Diverged
from framecast.train.optim import Learner
from framecast.train.plan import prepare
from framecast.train.run import run
from tests.formula import fill, uniform
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


def test_settings_of_the_discriminators_optimiser_are_looked_at_before_a_run(tmp_path):
    experiment = of_stage(tiny(tmp_path), "autoencoder", discriminator_optimiser=OptimiserConfig(lr=0.0))
    with pytest.raises(
        ValueError, match=r"stages\.autoencoder\.discriminator_optimiser\.lr is 0\.0; the learning rate"
    ):
        prepare(experiment)
