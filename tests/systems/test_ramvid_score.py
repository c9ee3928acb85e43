"""The score of RaMViD: chain rule over windows, exact where the likelihood is known; odd frames stand out."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import framecast
from framecast.data.simulate.sets import flows
from framecast.draws import draws
from framecast.experiment import VideoSpec
from framecast.systems.ramvid.config import RaMViDConfig, RaMViDSampling
from framecast.systems.ramvid.ramvid import RaMViD
from tests.formula import fill, uniform

CONFIG = RaMViDConfig(width=8, multipliers=(1, 2), res_blocks=1, attention=(), heads=2, groups=4, target="x_0")
SPEC = VideoSpec(channels=1, height=8, width=8, clip_frames=6)
STD, STAY = 0.3, 0.9  # of a pixel; of a frame that the next one keeps
ALL = 12  # frames of the clips


def model(*, clip_frames=6, overlap=2, **config) -> RaMViD:
    spec, options = replace(SPEC, clip_frames=clip_frames), RaMViDSampling(overlap=overlap)
    made = RaMViD(replace(CONFIG, **config), spec, options)
    fill(made.network)
    return made


def bits(system, clip, known=(), *, seed=0, rows=None, levels=5):
    mask = torch.tensor([i in known for i in range(clip.shape[1])])
    return system.scorer.bits(clip, mask, rng=draws(seed, rows or range(len(clip))), levels=levels)


# ---- a process whose likelihood is known


class Walk(nn.Module):
    """The exact denoiser of pixels that forget their past slowly, x_t = 0.9 x_t-1 + noise, of variance 0.09."""

    def __init__(self, schedule, clip):
        super().__init__()
        self.schedule, self.clip = schedule, clip

    def forward(self, x, time, labels):
        frames = x.shape[1]
        # the only thing that tells which frames are known is that they are clean
        known = [any(torch.equal(x[:, i], true) for true in self.clip.unbind(1)) for i in range(frames)]
        ab = float(self.schedule.alpha_bar[round(time[0].item())])
        signal = torch.tensor([1.0 if k else math.sqrt(ab) for k in known], dtype=torch.float64)
        noise = torch.tensor([0.0 if k else 1 - ab for k in known], dtype=torch.float64)
        at = torch.arange(frames)
        covariance = STD**2 * STAY ** (at[:, None] - at).abs().double()
        seen = signal[:, None] * covariance * signal + torch.diag(noise)
        gain = covariance * signal @ torch.linalg.inv(seen)
        return torch.einsum("ij,bjchw->bichw", gain, x.double()).to(x)


@pytest.fixture(scope="module")
def walk():
    rng = torch.Generator().manual_seed(0)
    steps = torch.randn(4, ALL, 1, 8, 8, generator=rng) * STD * math.sqrt(1 - STAY**2)
    frames = [steps[:, 0] / math.sqrt(1 - STAY**2)]
    for step in steps.unbind(1)[1:]:
        frames.append(STAY * frames[-1] + step)
    return torch.stack(frames, 1)


def code_length(walk, first) -> torch.Tensor:
    """Bits per dimension of every frame from `first` on, given the one before."""
    before = torch.cat([torch.zeros_like(walk[:, :1]), walk[:, :-1]], 1)
    spread = torch.full((walk.shape[1],), STD * math.sqrt(1 - STAY**2))
    spread[0] = STD
    density = torch.distributions.Normal(STAY * before, spread[:, None, None, None]).log_prob(walk)
    return (-density / math.log(2) - math.log2(2 / 255)).mean((0, 2, 3, 4))[first:]


@pytest.mark.parametrize(("clip_frames", "overlap"), [(ALL, 2), (5, 1)])
@pytest.mark.parametrize("context", [0, 3])
def test_windows_add_up_to_the_code_length_of_the_whole_clip(walk, clip_frames, overlap, context):
    system = model(clip_frames=clip_frames, overlap=overlap)
    system.network = Walk(system.schedule, walk)
    found, exact = bits(system, walk, range(context), levels=100).mean(0), code_length(walk, context)
    assert len(found) == ALL - context
    assert float(found.mean()) == pytest.approx(float(exact.mean()), abs=0.08)


def test_a_frame_scored_alone_gets_its_own_code_length(walk):
    system, walk = model(clip_frames=2, overlap=1), walk[:, :6]
    system.network = Walk(system.schedule, walk)
    found, exact = bits(system, walk, [0], levels=100).mean(0), code_length(walk, 1)
    assert found.tolist() == pytest.approx(exact.tolist(), abs=0.15)


# ---- windows


@pytest.mark.parametrize("frames", [3, 6, 7, 9, 17, 30])
@pytest.mark.parametrize("context", [0, 1, 2, 8])
def test_every_unknown_frame_is_scored_once_within_the_clip(frames, context):
    if context >= frames:
        pytest.skip("nothing left to score")
    finished = set(range(context))
    for window in model().scorer.windows([i < context for i in range(frames)]):
        assert window.frames[0] >= 0 and window.frames[-1] < frames and len(window.frames) == min(6, frames)
        known = {i for i, k in zip(window.frames, window.known, strict=True) if k}
        assert known == finished & set(window.frames) and (known or not finished)
        finished |= set(window.frames)
    assert finished == set(range(frames))


def test_frames_in_the_middle_can_be_known():
    windows = model().scorer.windows([i in (4, 11) for i in range(14)])
    scored = [i for w in windows for i, k in zip(w.frames, w.known, strict=True) if not k]
    assert sorted(scored) == [i for i in range(14) if i not in (4, 11)]


def test_a_clip_too_short_for_a_network_that_resamples_time_is_refused():
    system = model(clip_frames=4, time_frames=4)
    assert bits(system, uniform("c", (1, 6, 1, 8, 8)), [0]).shape == (1, 5)
    with pytest.raises(ValueError, match="the clip has 3 frames, but this model resamples time and scores 4 at once"):
        bits(system, uniform("c", (1, 3, 1, 8, 8)))


# ---- what the network is told


def test_later_frames_are_never_looked_at():
    """A window sees its own frames and those before, as the chain rule wants."""
    system, clip = model(), uniform("clip", (1, 14, 1, 8, 8))
    changed = clip.clone()
    changed[:, 10:] = uniform("other", (1, 4, 1, 8, 8))
    plain, other = bits(system, clip, [0, 1]), bits(system, changed, [0, 1])
    assert torch.equal(plain[:, :8], other[:, :8])  # frames 2 to 9: windows 0-5 and 4-9
    assert not torch.equal(plain[:, 8:], other[:, 8:])


def test_known_frames_go_in_clean_and_the_network_keeps_its_mode():
    system, clip, seen = model(dropout=0.5).train(), uniform("clip", (2, 6, 1, 8, 8)), []
    system.network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    first, again = bits(system, clip, [1, 4]), bits(system, clip, [1, 4])
    assert torch.equal(first, again) and system.network.training
    assert len(seen) == 10 and all(torch.equal(x[:, [1, 4]], clip[:, [1, 4]]) for x in seen)
    assert first.shape == (2, 4) and first.dtype == torch.float64 and bool(first.isfinite().all())


def test_a_row_does_not_depend_on_its_neighbours():
    system, clip = model(), uniform("clip", (2, 8, 1, 8, 8))
    both, alone = bits(system, clip, rows=[3, 4]), bits(system, clip[1:], rows=[4])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", ["eps", "v"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_kind_of_network_can_score(target, learned):
    found = bits(model(target=target, learned_variance=learned), uniform("clip", (1, 6, 1, 8, 8)), [0])
    assert bool((found > 0).all()) and bool(found.isfinite().all())


# ---- anomalies


@pytest.fixture(scope="module")
def vortex():
    """The bundled model, and a window of a flow that it has not seen."""
    (flow,) = flows("vortex32", "test", 1, frames=16)
    return framecast.load("vortex-ramvid", device="cpu"), flow


def test_damaged_frames_stand_out_of_a_flow(vortex):
    loaded, flow = vortex
    plain = loaded.score(flow, context=4, levels=10)
    damaged = {name: flow.frames.clone() for name in ("noise", "mirrored", "swapped")}
    damaged["noise"][9] = 2 * torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    damaged["mirrored"][9] = flow.frames[9].flip(-2)
    damaged["swapped"][9] = flow.frames[13]
    for frames in damaged.values():
        found = loaded.score(replace(flow, frames=frames), context=4, levels=10)
        assert found.least_likely == 9
        assert found.bits[5] > plain.bits.max() + 0.5
        assert found.mean > plain.mean
