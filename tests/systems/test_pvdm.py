# SPDX-License-Identifier: Apache-2.0
"""PVDM as a system: plans and refusals, clip after clip, samplers beside plain loops, presets of steps, carries."""

import gc
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from framecast.assets import Assets
from framecast.cli.main import main
from framecast.draws import draws
from framecast.experiment import StageConfig, VideoSpec, to_yaml
from framecast.generate import complete, plan, stream
from framecast.systems.pvdm.autoencoder import Planes
from framecast.systems.pvdm.config import AutoencoderStageConfig, PVDMSampling
from framecast.systems.pvdm.pvdm import PVDM
from framecast.task import Task, UnsupportedTask
from tests.formula import fill, normal, uniform
from tests.parity.walk import error
from tests.recorded import Recorded
from tests.tiny import change, pvdm, write_clips

SPEC = VideoSpec(channels=1, height=8, width=8, clip_frames=4)
CLIP = 0.8 * uniform("clip", (2, 4, 1, 8, 8))
QUICK = PVDMSampling(steps="3/2")


def system(spec=SPEC, **denoiser) -> PVDM:
    config = pvdm().model
    made = PVDM(replace(config, denoiser=replace(config.denoiser, **denoiser)), spec, QUICK)
    fill(made)
    return made.eval()


@pytest.fixture(scope="module")
def model() -> PVDM:
    return system()


def run(model, task, clip=None, *, seed=0, rows=(0, 1), **options):
    """The completed video of a task."""
    empty = torch.zeros(len(rows), 0, *(model.video.channels, model.video.height, model.video.width))
    options = replace(QUICK, **options)
    return complete(model, empty if clip is None else clip, task, rng=draws(seed, rows), options=options)


class Heard:
    """What the denoiser was asked: noise levels and conditions, call by call."""

    def __init__(self, model, monkeypatch, *, forward=None):
        self.times: list[int] = []
        self.rows: list[int] = []
        self.conditions: list[Tensor | None] = []
        forward = forward or model.denoiser.forward

        def hear(z, t, condition=None):
            self.times.append(int(t[0]))
            self.rows.append(len(z))
            self.conditions.append(condition)
            return forward(z, t, condition)

        monkeypatch.setattr(model.denoiser, "forward", hear)


# ---- plans


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 8, 11])
def test_plan_generates_clip_after_clip_without_overlap(model, frames):
    windows = model.plan([False] * frames, QUICK)
    starts = range(0, frames, 4)
    assert [window.frames for window in windows] == [tuple(range(start, start + 4)) for start in starts]
    assert not any(any(window.known) for window in windows)


@pytest.mark.parametrize("known", [4, 5, 9])
def test_plan_predicts_from_the_last_clip(model, known):
    first, *later = model.plan([True] * known + [False] * 6, QUICK)
    assert first.frames == tuple(range(known - 4, known + 4))
    assert first.known == (True,) * 4 + (False,) * 4
    assert [window.frames for window in later] == [tuple(range(known + 4, known + 8))]
    assert later[0].known == (False,) * 4


def test_nothing_is_planned_where_all_is_known(model):
    assert model.plan([True] * 4, QUICK) == []


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            Task.infill([0, 5], 8),
            r"known frames must come first: frame 5 is known, frame 1 is not\. Systems that infill",
        ),
        (Task.infill([7], 8), r"frame 7 is known, frame 0 is not"),
        (Task.interpolate(5, 2), r"known frames must come first: .+ Systems that interpolate: .*ramvid"),
        (Task.predict(1, 4), r"needs 4 known frames or more, or none at all; 1 is known"),
        (Task.predict(3, 4), r"needs 4 known frames or more, or none at all; 3 are known"),
    ],
)
def test_what_it_cannot_do_is_refused_in_a_sentence(model, task, said):
    with pytest.raises(UnsupportedTask, match=said):
        plan(model, task)


def test_a_model_that_reads_no_condition_draws_single_clips_only(monkeypatch):
    alone = system(conditional=False)
    for task in (Task.predict(4, 4), Task.generate(5)):
        with pytest.raises(
            UnsupportedTask, match=r"looks at no clip before \(conditional false\), so it draws 4 frames"
        ):
            plan(alone, task)
    heard = Heard(alone, monkeypatch)
    assert run(alone, Task.generate(3)).shape == (2, 3, 1, 8, 8)
    assert heard.conditions == [None] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": "10/5/2"}, r"steps is '10/5/2'; give a number, or two as 100/20"),
        ({"steps": "ten"}, r"steps is 'ten'; give a number"),
        ({"steps": 0}, r"steps is 0; give a number"),
        ({"steps": "/20"}, r"steps is '/20'; give a number"),
        ({"steps": "20/1001"}, r"steps is 20/1001, but the model has 1000 noise levels"),
        ({"eta": 1.5}, r"eta is 1\.5; it must lie between 0"),
        ({"bound": 0.0}, r"bound is 0; it must be above 0, or null for none"),
    ],
)
def test_options_out_of_range_are_refused(model, changes, said):
    with pytest.raises(ValueError, match=said):
        model.plan([False] * 4, replace(QUICK, **changes))
    with pytest.raises(ValueError, match=said):
        model.sample(CLIP, torch.zeros(4, dtype=torch.bool), rng=draws(0, (0, 1)), options=replace(QUICK, **changes))


def test_guidance_needs_a_condition_to_lead_towards():
    with pytest.raises(ValueError, match="guidance leads towards the clip before, which this model does not look at"):
        system(conditional=False).plan([False] * 4, replace(QUICK, guidance=1.0))


def test_part_of_a_clip_as_condition_is_refused(model):
    known = torch.tensor([True, True, False, False])
    with pytest.raises(ValueError, match="given a clip of 4 frames or none, not 2"):
        model.sample(CLIP, known, rng=draws(0, (0, 1)), options=QUICK)


def test_stages_are_built_by_name_and_settings(model):
    assert model.stage("autoencoder", AutoencoderStageConfig(clip_frames=4, vgg=""), Assets(Path("none"))).groups()
    with pytest.raises(ValueError, match="pvdm has no stage 'prior'; its stages are autoencoder and diffusion"):
        model.stage("prior", StageConfig(), Assets(Path("none")))
    with pytest.raises(ValueError, match="the stage diffusion cannot take settings of AutoencoderStageConfig"):
        model.stage("diffusion", AutoencoderStageConfig(), Assets(Path("none")))


# ---- clip after clip


@pytest.mark.parametrize("frames", [1, 3, 5, 11])
def test_any_length_is_the_beginning_of_a_longer_one(model, frames):
    made = run(model, Task.generate(frames))
    assert made.shape == (2, frames, 1, 8, 8)
    assert torch.equal(made, run(model, Task.generate(12))[:, :frames])


def test_drawn_latent_is_what_the_next_clip_is_told(model, monkeypatch):
    heard = Heard(model, monkeypatch)
    none = torch.zeros(4, dtype=torch.bool)
    made, carry = model.sample(torch.zeros_like(CLIP), none, rng=draws(0, (0, 1)), options=QUICK)
    assert carry.shape == (2, 4, model.autoencoder.places)
    with torch.no_grad():
        assert torch.equal(made, model.autoencoder.decode(model.autoencoder.split(carry)))
    model.sample(torch.zeros_like(CLIP), none, rng=draws(1, (0, 1)), options=QUICK, carry=carry)
    assert heard.conditions[:3] == [None] * 3
    assert all(torch.equal(told, carry) for told in heard.conditions[3:]) and len(heard.conditions) == 5


def test_frames_as_condition_are_encoded_anew(model):
    none = torch.zeros(4, dtype=torch.bool)
    again = replace(QUICK, condition="frames")
    made, carry = model.sample(torch.zeros_like(CLIP), none, rng=draws(0, (0, 1)), options=again)
    same, latent = model.sample(torch.zeros_like(CLIP), none, rng=draws(0, (0, 1)), options=QUICK)
    assert torch.equal(made, same)
    with torch.no_grad():
        assert torch.equal(carry, model.autoencoder.encode(made).flat())
    assert not torch.allclose(carry, latent)


def test_prediction_begins_with_the_encoded_clip(model, monkeypatch):
    heard = Heard(model, monkeypatch)
    made = run(model, Task.predict(4, 6), CLIP)
    with torch.no_grad():
        told = model.autoencoder.encode(CLIP).flat()
    assert len(heard.conditions) == 4
    assert torch.equal(heard.conditions[0], told) and torch.equal(heard.conditions[1], told)
    with torch.no_grad():
        latent = heard.conditions[2]
        assert torch.equal(made[:, 4:8], model.autoencoder.decode(model.autoencoder.split(latent)))
    assert torch.equal(made[:, :4], CLIP)


def test_only_the_last_clip_before_matters(model):
    longer = torch.cat([uniform("before", (2, 3, 1, 8, 8)), CLIP], dim=1)
    made = run(model, Task.predict(7, 5), longer)
    assert torch.equal(made[:, :7], longer)
    other = torch.cat([-longer[:, :3], CLIP], dim=1)
    assert torch.equal(run(model, Task.predict(7, 5), other)[:, 7:], made[:, 7:])
    assert torch.equal(run(model, Task.predict(4, 5), CLIP)[:, 4:], made[:, 7:])
    for frame in range(3, 7):
        other = longer.clone()
        other[:, frame] *= -1
        assert not torch.allclose(run(model, Task.predict(7, 5), other)[:, 7:], made[:, 7:]), frame


def test_known_frames_as_the_model_made_them(model):
    longer = torch.cat([uniform("before", (2, 3, 1, 8, 8)), CLIP], dim=1)
    made, kept = (run(model, Task.predict(7, 5), longer, given=given) for given in ("model", "exact"))
    with torch.no_grad():
        seen = model.autoencoder.decode(model.autoencoder.encode(CLIP))
    assert torch.equal(made[:, 3:7], seen)
    assert torch.equal(made[:, :3], longer[:, :3])  # the model never looks at those
    assert torch.equal(made[:, 7:], kept[:, 7:])
    assert torch.equal(kept[:, :7], longer)
    window = torch.cat([CLIP, torch.zeros_like(CLIP)], dim=1)
    for given, expected in (("model", seen), ("exact", CLIP)):
        known, options = torch.arange(8) < 4, replace(QUICK, given=given)
        assert torch.equal(model.sample(window, known, rng=draws(0, (0, 1)), options=options)[0][:, :4], expected)


def test_noise_of_a_row_does_not_depend_on_its_neighbours(model):
    together = run(model, Task.generate(9), rows=(0, 1, 5))
    alone = run(model, Task.generate(9), rows=(5,))
    # the first step multiplies rounding by 84
    torch.testing.assert_close(together[2:], alone, atol=2e-3, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_size_and_channels_are_those_of_the_clips():
    wide = system(VideoSpec(channels=3, height=8, width=16, clip_frames=6))
    given = uniform("wide", (1, 6, 3, 8, 16))
    assert run(wide, Task.predict(6, 7), given, rows=(0,)).shape == (1, 13, 3, 8, 16)


def test_long_videos_take_no_more_memory_than_short_ones(model):
    def live():
        gc.collect()
        return sum(o.numel() for o in gc.get_objects() if type(o) is Tensor)

    blocks = stream(model, torch.zeros(2, 0, 1, 8, 8), Task.generate(24), rng=draws(0, (0, 1)), options=QUICK)
    held = []
    for block in blocks:
        assert block.shape[1] == 4
        held.append(live())
    assert len(held) == 6
    assert max(held[2:]) == held[2]


# ---- steps


def test_steps_of_the_first_clip_and_of_later_ones_follow_the_preset(model, monkeypatch):
    heard = Heard(model, monkeypatch, forward=lambda z, t, condition: torch.zeros_like(z))
    run(model, Task.generate(12), steps="100/20")
    assert len(heard.times) == 100 + 2 * 20
    assert heard.times[:100] == list(range(999, 0, -10))
    assert heard.times[100:120] == heard.times[120:] == list(range(999, 0, -50))
    options = replace(QUICK, steps="100/20")
    assert sum(model.calls(w, options) for w in model.plan([False] * 12, options)) == len(heard.times)


def test_a_clip_given_counts_as_one_before(model, monkeypatch):
    heard = Heard(model, monkeypatch)
    run(model, Task.predict(4, 8), CLIP, steps="9/4")
    assert len(heard.times) == 8
    options = replace(QUICK, steps="9/4")
    windows = model.plan(Task.predict(6, 8).known, options)
    assert [model.calls(window, options) for window in windows] == [4, 4]


def test_one_number_of_steps_is_for_all_clips(model, monkeypatch):
    heard = Heard(model, monkeypatch)
    run(model, Task.generate(8), steps=5)
    assert heard.times == 2 * [999, 799, 599, 399, 199]


# ---- samplers beside plain loops, in float64

ABAR = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2, dim=0)


def steps_of(count):
    """Noise levels of a plain DDIM loop, with -1 at the end."""
    return [int(i * 1000 / count - 1) if i else -1 for i in range(count, -1, -1)]


def plain_ddim(eps_of, z, noise, *, count, eta, bound):
    for k, (t, s) in enumerate(itertools.pairwise(steps_of(count))):
        e = eps_of(z, t)
        x = (z - (1 - ABAR[t]).sqrt() * e) / ABAR[t].sqrt()
        x = x if bound is None else x.clamp(-bound, bound)
        if s == -1:
            break
        sigma = eta * ((1 - ABAR[t] / ABAR[s]) * (1 - ABAR[s]) / (1 - ABAR[t])).sqrt()
        z = ABAR[s].sqrt() * x + (1 - ABAR[s] - sigma**2).sqrt() * e + sigma * noise[k]
    return x


@pytest.fixture(scope="module")
def double():
    return system().double()


def latents(*names):
    shape = (2, 4, 4 + 8 + 8)
    return [normal(name, shape).double() for name in names]


@pytest.mark.parametrize("conditional", [True, False], ids=["after a clip", "from nothing"])
@pytest.mark.parametrize(("eta", "bound"), [(1.0, 1.0), (0.3, 0.5), (0.0, None)])
def test_ddim_equals_the_plain_loop(double, conditional, eta, bound):
    z, *noise = latents("z", *(f"noise {k}" for k in range(6)))
    condition = latents("condition")[0].tanh() if conditional else None

    @torch.no_grad()
    def eps_of(z, t):
        return double.denoiser(z, torch.full((2,), t), torch.zeros_like(z) if condition is None else condition)

    options = PVDMSampling(steps=7, eta=eta, bound=bound)
    rng = Recorded([z, *(noise if eta else [])])
    with torch.no_grad():
        ours = double.draw(2, condition, rng=rng, options=options)
    assert not rng.left["normal"]
    theirs = plain_ddim(eps_of, z, noise, count=7, eta=eta, bound=bound)
    assert error(ours, theirs) < 1e-10


@pytest.mark.parametrize("weight", [2.0, -0.5])
def test_guidance_adds_what_the_condition_changed(double, weight, monkeypatch):
    z, noise, condition = latents("z", "noise", "condition")

    @torch.no_grad()
    def eps_of(z, t):
        told, untold = (double.denoiser(z, torch.full((2,), t), c) for c in (condition, torch.zeros_like(z)))
        return (1 + weight) * told - weight * untold

    theirs = plain_ddim(eps_of, z, [noise], count=2, eta=1.0, bound=1.0)
    heard = Heard(double, monkeypatch)
    with torch.no_grad():
        options = PVDMSampling(steps=2, guidance=weight)
        ours = double.draw(2, condition, rng=Recorded([z, noise]), options=options)
        assert heard.rows == [4, 4]
        double.draw(2, None, rng=Recorded([z, noise]), options=options)
        double.draw(2, condition, rng=Recorded([z, noise]), options=PVDMSampling(steps=2))
    assert error(ours, theirs) < 1e-10
    assert heard.rows[2:] == [2, 2, 2, 2]  # nothing to guide towards, or no guidance: half of the work


def test_ddpm_over_all_levels_is_ancestral_sampling():
    short = system(noise_levels=30).double()
    beta = torch.linspace(0.0015**0.5, 0.0195**0.5, 30, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - beta, dim=0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    z, condition, *noise = latents("z", "condition", *(f"noise {k}" for k in range(30)))
    with torch.no_grad():
        options = PVDMSampling(sampler="ddpm", steps=30)
        ours = short.draw(2, condition, rng=Recorded([z, *noise]), options=options)
        for k, t in enumerate(range(29, -1, -1)):
            e = short.denoiser(z, torch.full((2,), t), condition)
            x = ((z - (1 - abar[t]).sqrt() * e) / abar[t].sqrt()).clamp(-1, 1)
            first = before[t].sqrt() * beta[t] / (1 - abar[t])
            mean = first * x + (1 - beta[t]).sqrt() * (1 - before[t]) / (1 - abar[t]) * z
            spread = (beta[t] * (1 - before[t]) / (1 - abar[t])).sqrt()
            z = mean + (spread * noise[k] if t else 0.0)
    assert error(ours, z) < 1e-10


def test_few_step_solver_draws_no_noise_on_its_way(double, monkeypatch):
    heard = Heard(double, monkeypatch)
    (z,) = latents("z")
    with torch.no_grad():
        made = double.draw(2, None, rng=Recorded([z]), options=PVDMSampling(sampler="dpmpp_2m", steps=6))
    assert len(heard.times) == 6 and heard.times[0] == 999 and heard.times[-1] == 0
    assert made.abs().max() <= 1


# ---- from clips to videos, by commands


def test_both_stages_are_trained_and_drawn_with_by_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clips = write_clips(tmp_path / "clips")
    (tmp_path / "e.yaml").write_text(to_yaml(change(pvdm(), data={"dir": str(clips)}, max_steps=8)))

    def cast(*words):
        code = main([*map(str, words), "--device", "cpu"])
        told = capsys.readouterr()
        assert code == 0, told.err
        return told.out + told.err

    lacks = cast("train", "e.yaml", "--out", "first", "--stages.autoencoder.perceptual_weight", 4)
    assert "the loss has no LPIPS: vgg16-397923af.pth is neither a file here" in lacks
    assert "next: framecast train first/config.yaml --stage diffusion --from first" in lacks
    cast("train", "e.yaml", "--stage", "diffusion", "--from", "first", "--out", "second")
    cast("generate", "second", "--frames", 10, "-n", 2, "--out", "made")
    cast("predict", "second", clips / "clip0.npy", "--context", 4, "--horizon", 6, "--out", "future")
    made, future = (
        [np.load(path)["frames"] for path in Path(name).rglob("samples.npz")] for name in ("made", "future")
    )
    assert [array.shape for array in made] == [(2, 10, 1, 8, 8)]
    assert [array.shape[1:] for array in future] == [(10, 1, 8, 8)]
    truth = np.load(clips / "clip0.npy")[:4].transpose(0, 3, 1, 2)
    assert all(np.array_equal(sample[:4], truth) for sample in future[0])
    assert made[0].std() > 0


# ---- which plane is which


def exchanged(model, latent):
    planes = model.autoencoder.split(latent)
    return Planes(planes.xy, planes.xt, planes.yt).flat()


def test_the_denoiser_cannot_tell_yt_from_xt_of_square_frames():
    model = system().double()
    z, level = normal("z", (2, 4, model.autoencoder.places)).double(), torch.tensor([3, 700])
    with torch.no_grad():
        plain, turned = model.denoiser(z, level), exchanged(model, model.denoiser(exchanged(model, z), level))
    assert error(turned, plain) < 1e-10


def test_a_clip_from_nothing_is_put_the_right_way_round(monkeypatch):
    model = system()
    right = normal("right", (3, 4, model.autoencoder.places)).tanh()
    came = torch.cat([right[:1], exchanged(model, right[1:2]), right[2:]])
    # an autoencoder that knows its own latents
    monkeypatch.setattr(model, "_changed", lambda latent, clip: (latent - right).square().mean((1, 2)))
    found, clip = model.in_order(came)
    assert torch.equal(found, right)
    torch.testing.assert_close(clip, model.autoencoder.decode(model.autoencoder.split(right)))
    monkeypatch.setattr(model, "draw", lambda rows, condition, **_: came)
    nothing = torch.zeros(3, 4, 1, 8, 8), torch.zeros(4, dtype=torch.bool)
    for order, wanted in (("told", right), ("drawn", came)):
        _, carry = model.sample(*nothing, rng=draws(0, range(3)), options=replace(QUICK, order=order))
        assert torch.equal(carry, wanted)


def test_planes_change_less_by_decoding_and_encoding_the_nearer_they_are_to_a_clip(model):
    with torch.no_grad():
        latent = model.autoencoder.encode(CLIP).flat()
        made = model.autoencoder.decode(model.autoencoder.split(latent))
        again = model.autoencoder.encode(made).flat()
    torch.testing.assert_close(model._changed(latent, made), (again - latent).square().mean((1, 2)))


def test_clips_after_a_clip_and_frames_that_are_not_square_are_left(monkeypatch):
    model = system()
    monkeypatch.setattr(model, "in_order", lambda latent: pytest.fail("a condition tells which plane is which"))
    model.sample(torch.zeros(1, 8, 1, 8, 8), torch.arange(8) < 4, rng=draws(0, [0]), options=QUICK)
    wide = system(replace(SPEC, width=16))
    latent = normal("wide", (1, 4, wide.autoencoder.places))
    assert wide.in_order(latent)[0] is latent
