# SPDX-License-Identifier: Apache-2.0
"""How PVDM's denoiser learns: who is conditional, which windows, fresh or kept latents, beside plain computations."""

from types import SimpleNamespace

import pytest
import torch

from framecast.checkpoint import load_tensors
from framecast.diffusion.schedule import scaled_linear
from framecast.draws import draws
from framecast.systems.pvdm.autoencoder import Autoencoder
from framecast.systems.pvdm.config import DiffusionStageConfig
from framecast.systems.pvdm.stages import DiffusionStage
from framecast.train.plan import prepare
from framecast.train.run import run
from tests.formula import normal, uniform
from tests.parity.walk import FORWARD, error
from tests.recorded import Recorded
from tests.systems.test_pvdm_stages import NOWHERE, ROWS, clips, of_stage, system, tiny
from tests.tiny import change


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
    channels, checkpointing, training = 4, False, True


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


def test_validation_sees_both_kinds_of_clips(monkeypatch):
    stage = second_stage(conditional=0.3, draw="step")
    monkeypatch.setattr(stage.denoiser, "training", False)
    _, conditions = named(stage, 1500, step=0)
    assert sum(c is not None for c in conditions) / 1500 == pytest.approx(0.3, abs=0.05)


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
    model.denoiser.train()
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
