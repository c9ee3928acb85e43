"""The score of RVD: exact where the likelihood is known, the chain rule over frames, what it refuses."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

import framecast
from framecast.data.simulate.sets import flows
from framecast.diffusion.bound import BINS
from framecast.diffusion.schedule import cosine
from framecast.draws import draws
from framecast.experiment import VideoSpec
from framecast.generate import Model
from framecast.system import UnsupportedTask
from framecast.systems.rvd.config import RVDConfig, RVDSampling
from framecast.systems.rvd.rvd import RVD
from framecast.systems.rvd.scorer import telling_levels
from framecast.video import Clip
from tests.formula import fill, uniform

CONFIG = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), groups=4, noise_levels=400)
SPEC = VideoSpec(channels=1, height=8, width=8, clip_frames=4)


def model(*, bound="range", **config) -> RVD:
    made = RVD(replace(CONFIG, **config), SPEC, RVDSampling(steps=10, bound=bound))
    for part in made.parts().values():
        fill(part)
    if made.transform is not None:
        made.transform.head.weight.data *= 0.1  # mu well within -1 to 1
    return made.eval()


def bits(system, clip, known=1, *, seed=0, rows=None, levels=5):
    mask = torch.arange(clip.shape[1]) < known
    return system.scorer.bits(clip, mask, rng=draws(seed, rows or range(len(clip))), levels=levels)


# ---- residuals whose likelihood is known


class Exact(nn.Module):
    """The denoiser of residuals that are white noise of a known spread."""

    def __init__(self, schedule, std):
        super().__init__()
        self.schedule, self.std = schedule, std

    def prepare(self, context):
        return []

    def forward(self, y, n, prepared):
        ab = self.schedule.alpha_bar[n].to(y)[:, None, None, None]
        return y * ab.sqrt() * self.std**2 / (ab * self.std**2 + 1 - ab)


def drawn_by(system, std, *, frames=5, rows=32):
    """Clips that continue as the system expects, but for white noise; and this noise."""
    rng = torch.Generator().manual_seed(0)
    clip = 0.15 * torch.randn(rows, 1, 1, 8, 8, generator=rng)
    residuals = std * torch.randn(rows, frames - 1, 1, 8, 8, generator=rng)
    with torch.no_grad():
        for residual in residuals.split(1, dim=1):
            clip = torch.cat([clip, system.read(clip).mu[:, None] + residual], 1)
    return clip, residuals


def code_length(x, std) -> list[float]:
    """Bits per dimension of the bins around normal values, frame by frame."""
    normal = torch.distributions.Normal(0.0, std)
    mass = normal.cdf(x.double() + 1 / BINS) - normal.cdf(x.double() - 1 / BINS)
    return (-mass.log2()).mean((0, 2, 3, 4)).tolist()


@pytest.mark.parametrize("prediction", ["network", "previous", "none"])
@pytest.mark.parametrize(("sigma", "std"), [(1.0, 0.07), (0.25, 0.04), (2.0, 0.04)])
def test_every_frame_costs_the_code_length_of_its_residual(prediction, sigma, std):
    """Given mu, frames are normal: an exact denoiser loses nothing, whatever mu, sigma and the frames before are."""
    sigma = 1.0 if prediction == "none" else sigma
    system = model(prediction=prediction, sigma=sigma, target="x_0")
    system.denoiser = Exact(system.schedule, std / sigma)
    clip, residuals = drawn_by(system, std)
    assert float(clip.abs().max()) < 0.99  # the outermost bins reach to infinity
    found = bits(system, clip, 2, levels=25).mean(0)
    assert found.tolist() == pytest.approx(code_length(residuals[:, 1:], std), rel=0.025)


def test_frames_that_do_not_follow_cost_more():
    system = model(prediction="previous", target="x_0")
    system.denoiser = Exact(system.schedule, 0.05)
    clip, _ = drawn_by(system, 0.05)
    odd = clip.clone()
    odd[:, 2] = odd[:, 2].flip(-1)
    plain, found = (bits(system, x, levels=10).mean(0) for x in (clip, odd))
    assert bool((found[1:3] > plain[1:3] + 3).all())  # to it, and from it
    assert found[[0, 3]].tolist() == pytest.approx(plain[[0, 3]].tolist(), abs=0.1)


def test_ends_of_the_range_hold_all_that_lies_beyond():
    """Where the frame before was white, white comes with half of the mass."""
    system = model(prediction="previous", target="x_0")
    system.denoiser = Exact(system.schedule, 0.05)
    grey, white, black = (
        float(bits(system, torch.full((8, 2, 1, 8, 8), at), levels=10).mean()) for at in (0.0, 1.0, -1.0)
    )
    assert max(white, black) < grey - 1


# ---- the chain rule


def test_later_frames_are_never_looked_at_and_all_earlier_ones_are():
    system, clip = model(), uniform("clip", (1, 5, 1, 8, 8))
    plain = bits(system, clip, 2, levels=2)
    for changed in range(5):
        other = clip.clone()
        other[:, changed] = uniform("other", (1, 1, 8, 8))
        found, own = bits(system, other, 2, levels=2), max(changed - 2, 0)
        assert torch.equal(found[:, :own], plain[:, :own])
        assert bool((found[:, own:] != plain[:, own:]).all())


def test_a_frame_costs_the_same_however_many_are_scored_after_it():
    system, clip = model(), uniform("clip", (1, 6, 1, 8, 8))
    whole = bits(system, clip, 2, levels=3)
    for frames in (3, 5):
        assert torch.equal(bits(system, clip[:, :frames], 2, levels=3), whole[:, : frames - 2])


def test_a_frame_is_told_from_all_frames_before_it_whether_they_were_scored_or_given():
    system, clip = model(prediction="previous"), uniform("clip", (1, 6, 1, 8, 8))
    seen = []
    system.denoise, true = lambda context, options: seen.append(context) or true(context, options), system.denoise
    bits(system, clip, 1, levels=1)
    bits(system, clip, 4, levels=1)
    for scored, given in zip(seen[3:5], seen[5:], strict=True):
        torch.testing.assert_close(scored, given)


def test_every_frame_is_read_once_and_what_it_told_is_let_go(monkeypatch):
    """So that a clip of any length needs the memory of one frame."""
    system, clip = model(), uniform("clip", (1, 16, 1, 8, 8))
    read, lengths, states, alive = system.read, [], [], []

    def watched(frames, seen=None):
        lengths.append(frames.shape[1])
        alive.append(sum(state() is not None for state in states))
        found = read(frames, seen)
        states.extend(weakref.ref(t) for t in (found.mu, *found.context, *found.transform))
        return found

    monkeypatch.setattr(system, "read", watched)
    bits(system, clip, 4, levels=1)
    assert lengths == [4] + [1] * 11
    assert max(alive) <= 5  # one frame's: mu and two levels of two networks


def test_a_row_does_not_depend_on_its_neighbours():
    system, clip = model(), uniform("clip", (2, 5, 1, 8, 8))
    both, alone = bits(system, clip, rows=[3, 4]), bits(system, clip[1:], rows=[4])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


# ---- settings


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
@pytest.mark.parametrize("prediction", ["network", "previous", "none"])
def test_every_kind_of_model_can_score(target, prediction):
    found = bits(model(target=target, prediction=prediction), uniform("clip", (2, 4, 1, 8, 8)))
    assert found.shape == (2, 3) and found.dtype == torch.float64
    assert bool((found > 0).all()) and bool(found.isfinite().all())


def test_estimates_are_clamped_as_in_sampling():
    clip = uniform("clip", (1, 4, 1, 8, 8))
    free, clamped = (bits(model(bound=bound), clip) for bound in (None, "range"))
    assert not torch.equal(free, clamped)
    assert torch.equal(bits(model(bound=2.0), clip), clamped)  # what a residual can be for a sigma of 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_levels_visited_are_those_between_the_width_of_a_bin_and_no_signal(sigma):
    schedule = cosine(1600)
    levels, ab = telling_levels(schedule, sigma), schedule.alpha_bar
    noise = sigma * ((1 - ab) / ab).sqrt()
    assert float(noise[levels[0]]) >= 1 / BINS and (levels[0] == 0 or float(noise[levels[0] - 1]) < 1 / BINS)
    assert float(ab[levels[-1]]) < 1e-4 <= float(ab[levels[-1] - 1])
    scorer = model(sigma=sigma, noise_levels=1600).scorer
    assert (scorer.levels, scorer.most_levels) == (40, len(levels))


def test_few_noise_levels_are_all_visited():
    assert telling_levels(cosine(6), 1.0) == range(6)
    assert telling_levels(cosine(1), 0.01) == range(1)


# ---- what cannot be scored


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ([False, False, False], "at least 1: 0 of 3 are known, so the first has none before it"),
        ([True, False, True], "must be the first ones, at least 1: 2 of 3 are known, and they are not the first"),
        ([False, True], "1 of 2 are known, and they are not the first"),
    ],
)
def test_known_frames_that_are_not_the_first_are_refused(known, says):
    system = model()
    with pytest.raises(UnsupportedTask, match=says):
        system.scorer.windows(known)
    with pytest.raises(UnsupportedTask, match=says):
        system.scorer.bits(torch.zeros(1, len(known), 1, 8, 8), torch.tensor(known), rng=draws(0, [0]))


def test_a_model_without_a_denoiser_gives_no_likelihood():
    system = model(residual="none")
    assert system.scorer is None
    with pytest.raises(UnsupportedTask, match=r"cannot score: it gives no likelihood\. Systems that score: ramvid"):
        Model(system).score(Clip(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)))


def test_score_takes_as_few_given_frames_as_the_model_needs_and_refuses_fewer():
    loaded = Model(model(), name="mine")
    clip = Clip(torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8))
    found = loaded.score(clip, levels=3)
    assert found.frames == (1, 2, 3, 4) and found.record["known_frames"] == [0]
    assert found.record["windows"] == [[i, i] for i in (1, 2, 3, 4)]
    assert found.record["task"] == "score" and bool(found.bits.isfinite().all())
    assert loaded.score(clip, context=3, levels=3).frames == (3, 4)
    with pytest.raises(ValueError, match="context is 0, but mine needs 1 or more given frames to score others"):
        loaded.score(clip, context=0)
    with pytest.raises(ValueError, match="context is 1, the clip has 1 frame: leave at least one to score"):
        loaded.score(clip[:1])


# ---- anomalies


def test_damaged_frames_stand_out_of_a_flow():
    """Going to such a frame is unexpected, and so is coming from it."""
    (flow,) = flows("vortex32", "test", 1, frames=9)
    loaded = framecast.load("vortex-rvd", device="cpu")
    plain = loaded.score(flow, context=6, levels=10)
    noise, mirrored = flow.frames.clone(), flow.frames.clone()
    noise[7] = 2 * torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    mirrored[7] = flow.frames[7].flip(-2)
    for frames in (noise, mirrored):
        found = loaded.score(replace(flow, frames=frames), context=6, levels=10)
        assert torch.equal(found.bits[:1], plain.bits[:1])
        assert float(found.bits[1:].min()) > float(plain.bits.max()) + 1
