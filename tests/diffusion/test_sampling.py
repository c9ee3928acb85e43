"""Samplers on normal data, whose exact denoiser and sampling path are known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from framecast.diffusion import sampling
from framecast.diffusion.process import learned_range, posterior, q_sample, v_from
from framecast.diffusion.sampling import DiffusersSampler, Estimate, ddim, ddpm, dpmpp_2m, estimate, respaced
from framecast.diffusion.schedule import Schedule, cosine, descending, kept_levels, linear, snr_levels
from framecast.draws import Draws, draws

MEAN, SPREAD = 0.3, 0.5
LINEAR = linear(1000)
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers with numpy 2


class Exact:
    """E[x_0 | x_t] of N(MEAN, spread^2) data, and the levels it was asked at."""

    def __init__(self, schedule: Schedule, spread: float = SPREAD):
        self.schedule, self.spread, self.asked = schedule, spread, []

    def __call__(self, x: Tensor, t: int) -> Estimate:
        self.asked.append(t)
        ab = float(self.schedule.alpha_bar[t])
        gain = math.sqrt(ab) * self.spread**2 / (ab * self.spread**2 + 1 - ab)
        return estimate(self.schedule, x, t, MEAN + gain * (x - math.sqrt(ab) * MEAN), target="x_0")


def start(rows: int = 1, size: int = 20_000, seed: int = 1) -> tuple[Tensor, Draws]:
    rng = draws(seed, range(rows))
    return rng.normal((rows, size)).double(), rng


def moments(x: Tensor) -> tuple[float, float]:
    return float(x.mean()), float(x.std())


# ancestral sampling


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("schedule", [LINEAR, cosine(1000)], ids=["linear", "cosine"])
def test_ddpm_draws_normal_data(schedule, variance):
    x, rng = start()
    sample = ddpm(Exact(schedule), schedule, x, descending(range(1000)), rng=rng, variance=variance)
    assert moments(sample) == pytest.approx((MEAN, SPREAD), abs=0.015)


@pytest.mark.parametrize(("variance", "spread"), [("large", 1.0), ("small", 1e-9)])
def test_few_ddpm_steps_are_exact_for_the_data_each_variance_is_made_for(variance, spread):
    """Beta is the exact reverse variance for data of unit spread around 0, the posterior's for a single point."""
    times = descending(kept_levels(1000, 7))
    process, position = respaced(LINEAR, times)
    ab, prev = process.alpha_bar[4], process.alpha_bar_prev[4]
    x, rng = start()
    x = ab.sqrt() * MEAN + (ab * spread**2 + 1 - ab).sqrt() * x  # a draw of the marginal at position 4
    t = times[:-1][::-1][4]
    step = sampling.ddpm_step(process, 4, x, Exact(LINEAR, spread)(x, t), rng.normal(x.shape), variance=variance)
    expected = float(prev.sqrt() * MEAN), float((prev * spread**2 + 1 - prev).sqrt())
    assert position[t] == 4 and moments(step) == pytest.approx(expected, abs=0.02)


def test_ddpm_draws_once_per_step_and_not_at_all_from_the_last():
    class Counting:
        shared, rows = torch.Generator(), range(2)

        def __init__(self):
            self.shapes = []

        def normal(self, shape):
            self.shapes.append(tuple(shape))
            return torch.full(shape, float("inf")) if len(self.shapes) == 4 else torch.zeros(shape)

        uniform = integers = normal

    rng = Counting()
    sample = ddpm(Exact(LINEAR), LINEAR, torch.zeros(2, 3, 4), descending(kept_levels(1000, 4)), rng=rng)
    assert rng.shapes == [(2, 3, 4)] * 4 and sample.isfinite().all()


def test_ddpm_takes_the_variance_that_the_estimate_brings():
    process, position = respaced(LINEAR, [999, 500, 0, -1])
    x, noise = torch.zeros(1, 3), torch.ones(1, 3)
    learned = learned_range(process, position[500], torch.full((1, 3), 0.2))
    step = sampling.ddpm_step(process, 1, x, Estimate(x, x, learned), noise)
    expected = 0.6 * process.beta[1].log() + 0.4 * process.posterior_log_variance[1]
    assert torch.allclose(step, torch.exp(expected / 2).float())


# deterministic paths


def path(spread: float, x: Tensor, schedule: Schedule, t: int, s: int) -> Tensor:
    """Where the probability flow of normal data takes x from level t to s."""
    (a, va), (b, vb) = ((float(ab), float(ab) * spread**2 + 1 - float(ab)) for ab in schedule.alpha_bar[[t, s]])
    return math.sqrt(b) * MEAN + math.sqrt(vb / va) * (x - math.sqrt(a) * MEAN)


def even_schedule(levels: int, high: float = 2.0, low: float = -3.0) -> Schedule:
    """A schedule whose lambda falls in exactly equal steps."""
    alpha_bar = torch.sigmoid(2 * torch.linspace(high, low, levels, dtype=torch.float64))
    return Schedule(1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]]))


def path_error(kind: str, steps: int) -> float:
    """Of a sampler that takes so many equal steps of lambda between two levels, the last not to the clean state."""
    fine = even_schedule(1281)
    process, position = respaced(fine, descending(range(0, 1281, 1280 // steps)))
    denoise = Exact(fine)
    begin = x = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    last = None
    for t in list(position)[:0:-1]:
        found = denoise(x, t)
        if kind == "ddim":
            x = sampling.ddim_step(process, position[t], found)
        else:
            x = sampling.dpmpp_2m_step(process, position[t], x, found, last)
        last = found.x_0
    return float((x - path(SPREAD, begin, fine, 1280, 0)).abs().max())


@pytest.mark.parametrize(("kind", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_deterministic_sampler_converges_with_its_order(kind, order):
    errors = [path_error(kind, steps) for steps in (80, 160, 320, 640)]
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.05), measured
    assert errors[-1] < {1: 2e-3, 2: 3e-6}[order]


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_deterministic_samplers_follow_the_probability_flow_to_the_data(sampler):
    x, rng = start(size=50)
    sample = sampler(Exact(LINEAR), LINEAR, x, descending(range(1000)), rng=rng)
    expected = MEAN + SPREAD * (x - math.sqrt(LINEAR.alpha_bar[-1]) * MEAN)
    assert torch.allclose(sample, expected, atol=0.02)


def test_ddim_with_all_noise_has_the_moments_of_the_data():
    x, rng = start()
    sample = ddim(Exact(LINEAR), LINEAR, x, descending(range(1000)), rng=rng, eta=1.0)
    assert moments(sample) == pytest.approx((MEAN, SPREAD), abs=0.015)


def test_ddim_with_all_noise_is_ddpm_of_small_variance_where_eps_agrees():
    times = descending(kept_levels(1000, 8))
    x, rng = start(size=10)
    ancestral = ddpm(Exact(LINEAR), LINEAR, x, times, rng=rng, variance="small")
    x, rng = start(size=10)
    implicit = ddim(Exact(LINEAR), LINEAR, x, times, rng=rng, eta=1.0)
    assert torch.allclose(implicit, ancestral, rtol=1e-9)


def test_ddim_without_noise_draws_nothing():
    x, rng = start(size=5)
    ddim(Exact(LINEAR), LINEAR, x, [900, 500, -1], rng=rng)
    assert torch.equal(rng.normal((1, 3)), start(size=5)[1].normal((1, 3)))


def test_snr_levels_let_dpmpp_2m_beat_equal_steps():
    x, _ = start()
    off = {
        name: abs(moments(dpmpp_2m(Exact(LINEAR), LINEAR, x, descending(levels)))[1] - SPREAD)
        for name, levels in {"equal": kept_levels(1000, 20), "snr": snr_levels(LINEAR, 20)}.items()
    }
    assert off["snr"] < 0.02 < 0.1 < off["equal"]


@pytest.mark.parametrize("sampler", [ddpm, ddim, dpmpp_2m])
def test_samplers_return_the_last_x_0_and_visit_the_times_in_order(sampler):
    x, rng = start(size=6)
    denoise = Exact(LINEAR)
    last = []

    def watched(x, t):
        last.append(denoise(x, t).x_0)
        return Estimate(last[-1], denoise(x, t).eps)

    sample = sampler(watched, LINEAR, x, [999, 300, 7, -1], rng=rng)
    assert torch.allclose(sample, last[-1], rtol=1e-12) and denoise.asked[::2] == [999, 300, 7]


@pytest.mark.parametrize("sampler", [ddpm, ddim, dpmpp_2m])
def test_before_runs_ahead_of_every_evaluation(sampler):
    x, rng = start(size=6)
    seen = []

    def pin(x, t):
        return torch.cat([torch.full_like(x[:, :2], float(t)), x[:, 2:]], dim=1)

    def denoise(x, t):
        seen.append((t, bool((x[:, :2] == t).all())))
        return Exact(LINEAR)(x, t)

    sampler(denoise, LINEAR, x, [999, 300, 7, -1], rng=rng, before=pin)
    assert seen == [(999, True), (300, True), (7, True)]


@pytest.mark.parametrize("sampler", [ddpm, ddim, dpmpp_2m])
def test_single_step_samples(sampler):
    x, rng = start(size=6)
    assert sampler(Exact(LINEAR), LINEAR, x, [999, -1], rng=rng).isfinite().all()


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_noise_of_a_row_does_not_depend_on_the_batch(sampler):
    options = {"eta": 1.0} if sampler is ddim else {}
    times = descending(kept_levels(1000, 6))
    rng = draws(3, rows=[4, 5, 6])
    together = sampler(Exact(LINEAR), LINEAR, rng.normal((3, 2, 2)), times, rng=rng, **options)
    rng = draws(3, rows=[5])
    alone = sampler(Exact(LINEAR), LINEAR, rng.normal((1, 2, 2)), times, rng=rng, **options)
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("times", [[999, 500], [-1], [500, 999, -1], [999, 999, -1], [1000, -1]])
def test_times_that_do_not_fall_to_the_clean_state_are_refused(times):
    with pytest.raises(ValueError, match=r"to -1|rise strictly"):
        respaced(LINEAR, times)


def test_eta_above_one_is_refused():
    x, rng = start(size=2)
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        ddim(Exact(LINEAR), LINEAR, x, [999, -1], rng=rng, eta=1.5)


def test_caller_keeps_the_starting_noise():
    x, rng = start(size=4)
    kept = x.clone()
    ddpm(Exact(LINEAR), LINEAR, x, [999, 10, -1], rng=rng, before=lambda x, t: x)
    assert torch.equal(x, kept)


# estimates and loops of one's own


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
def test_estimate_reads_every_target_alike(target):
    x_0, eps = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = q_sample(LINEAR, x_0, 600, eps)
    output = {"eps": eps, "x_0": x_0, "v": v_from(LINEAR, x_0, 600, eps)}[target]
    found = estimate(LINEAR, x, 600, output, target=target)
    assert torch.allclose(found.x_0, x_0) and torch.allclose(found.eps, eps)


def test_clamped_estimate_has_the_noise_that_goes_with_it():
    x, eps = torch.full((1, 4), 2.0), torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    found = estimate(LINEAR, x, 700, eps, bound=1.0)
    assert found.x_0.abs().max() == 1
    assert torch.allclose(q_sample(LINEAR, found.x_0, 700, found.eps), x, rtol=1e-5)


def test_clamped_estimate_may_keep_the_noise_that_was_predicted():
    x, eps = torch.full((1, 4), 2.0), torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    found = estimate(LINEAR, x, 700, eps, bound=1.0, keeps="eps")
    assert torch.equal(found.eps, eps) and torch.equal(found.x_0, estimate(LINEAR, x, 700, eps, bound=1.0).x_0)


def test_renoising_brings_a_state_back_to_the_marginal_above():
    process, _ = respaced(LINEAR, descending(kept_levels(1000, 5)))
    x, rng = start()
    below = process.alpha_bar[1].sqrt() * MEAN + (1 - process.alpha_bar[1]).sqrt() * x
    again = sampling.renoise_step(process, 2, below, rng.normal(x.shape))
    ab = float(process.alpha_bar[2])
    assert moments(again) == pytest.approx((math.sqrt(ab) * MEAN, math.sqrt(1 - ab)), abs=0.015)


# against diffusers


def scheduler(name: str, schedule: Schedule, **options):
    """A scheduler of diffusers over our betas (its tables are float32)."""
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, name)(
        num_train_timesteps=schedule.noise_levels, trained_betas=schedule.beta.tolist(), **options
    )


def test_ddim_equals_that_of_diffusers():
    # even times, where their t - T // N is the next time of the list
    times = descending(range(99, 1000, 100))
    x, rng = start(size=50)
    theirs = DiffusersSampler(scheduler("DDIMScheduler", LINEAR, clip_sample=False, timestep_spacing="trailing"))
    expected = theirs(Exact(LINEAR), LINEAR, x, times, rng=rng)
    assert torch.allclose(ddim(Exact(LINEAR), LINEAR, x, times, rng=rng), expected, atol=1e-3)


@pytest.mark.parametrize("steps", [10, "3,6", 40])
def test_dpmpp_2m_equals_that_of_diffusers(steps):
    times = descending(kept_levels(1000, steps))
    x, rng = start(size=50)
    expected = DiffusersSampler(scheduler("DPMSolverMultistepScheduler", LINEAR))(
        Exact(LINEAR), LINEAR, x, times, rng=rng
    )
    assert torch.allclose(dpmpp_2m(Exact(LINEAR), LINEAR, x, times), expected, atol=2e-3)


def test_learned_variance_equals_that_of_diffusers():
    times = descending(kept_levels(1000, 6))
    theirs = scheduler("DDPMScheduler", LINEAR, variance_type="learned_range", clip_sample=False)
    theirs.set_timesteps(timesteps=times[:-1])
    process, position = respaced(LINEAR, times)
    x, eps, v, _ = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()
    t = times[2]
    expected = theirs.step(torch.cat([eps, v], dim=1), t, x, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = estimate(LINEAR, x, t, eps, log_variance=learned_range(process, position[t], v))
    assert torch.allclose(sampling.ddpm_step(process, position[t], x, found, noise), expected, atol=1e-4)


@pytest.mark.parametrize(("kind", "variance"), [("fixed_small", "small"), ("fixed_large", "large")])
def test_ddpm_step_equals_that_of_diffusers(kind, variance):
    times = descending(kept_levels(1000, 6))
    theirs = scheduler("DDPMScheduler", LINEAR, variance_type=kind, clip_sample=False)
    theirs.set_timesteps(timesteps=times[:-1])
    process, position = respaced(LINEAR, times)
    x, _ = start(size=50)
    for t in times[:-1]:
        found = Exact(LINEAR)(x, t)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t), dtype=x.dtype)
        expected = theirs.step(found.eps, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        x = sampling.ddpm_step(process, position[t], x, found, noise, variance=variance)
        assert torch.allclose(x, expected, atol=2e-3)


SCHEDULERS = [
    ("DDPMScheduler", {"clip_sample": False}, 0.06),
    ("DDIMScheduler", {"clip_sample": False}, 0.04),
    ("DPMSolverMultistepScheduler", {}, 0.02),
    ("UniPCMultistepScheduler", {}, 0.02),
    ("EulerDiscreteScheduler", {}, 0.04),
    ("EulerAncestralDiscreteScheduler", {}, 0.07),
    ("HeunDiscreteScheduler", {}, 0.02),
]


@pytest.mark.parametrize(("name", "options", "tolerance"), SCHEDULERS, ids=[row[0] for row in SCHEDULERS])
def test_adapted_schedulers_draw_normal_data(name, options, tolerance):
    x, rng = start()
    sampler = DiffusersSampler(scheduler(name, LINEAR, timestep_spacing="trailing", **options))
    sample = sampler(Exact(LINEAR), LINEAR, x, 50, rng=rng)
    assert moments(sample) == pytest.approx((MEAN, SPREAD), abs=tolerance)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_adapted_schedulers_agree_over_prediction_types(name):
    x, rng = start(size=30)
    told = [
        DiffusersSampler(scheduler(name, LINEAR, timestep_spacing="trailing", prediction_type=kind))(
            Exact(LINEAR), LINEAR, x, 10, rng=rng
        )
        for kind in ("epsilon", "sample", "v_prediction")
    ]
    assert torch.allclose(told[0], told[1], atol=1e-3) and torch.allclose(told[0], told[2], atol=1e-3)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_adapted_noise_of_a_row_is_its_own_in_any_batch(name):
    sampler = DiffusersSampler(scheduler(name, LINEAR, timestep_spacing="trailing"))
    together = sampler(Exact(LINEAR), LINEAR, torch.zeros(3, 2, 2), 5, rng=draws(3, rows=[4, 5, 6]))
    alone = sampler(Exact(LINEAR), LINEAR, torch.zeros(1, 2, 2), 5, rng=draws(3, rows=[5]))
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_adapted_euler_shows_before_the_state_of_q_sample():
    x, rng = start()
    spreads = {}

    def watch(x, t):
        spreads[t] = float(x.std())
        return x

    DiffusersSampler(scheduler("EulerDiscreteScheduler", LINEAR, timestep_spacing="trailing"))(
        Exact(LINEAR), LINEAR, x, 50, rng=rng, before=watch
    )
    for t in (999, 499, 99):
        ab = float(LINEAR.alpha_bar[t])
        assert spreads[t] == pytest.approx(math.sqrt(ab * SPREAD**2 + 1 - ab), rel=0.04)


@pytest.mark.parametrize(
    ("name", "options", "times", "message"),
    [
        ("DDIMScheduler", {"beta_schedule": "scaled_linear"}, 5, "another noise schedule"),
        ("DDIMScheduler", {"num_train_timesteps": 500}, 5, "1000 noise levels"),
        ("DDIMScheduler", {"trained_betas": LINEAR.beta.tolist()}, [999, 7, -1], "chooses its own"),
        ("EulerDiscreteScheduler", {"trained_betas": LINEAR.beta.tolist()}, 7, "between noise levels"),
        ("DDIMScheduler", {"trained_betas": LINEAR.beta.tolist(), "prediction_type": "flow"}, 5, "prediction_type"),
    ],
)
def test_schedulers_that_do_not_fit_are_refused(name, options, times, message):
    diffusers = pytest.importorskip("diffusers")
    x, rng = start(size=3)
    with pytest.raises(ValueError, match=message):
        DiffusersSampler(getattr(diffusers, name)(**options))(Exact(LINEAR), LINEAR, x, times, rng=rng)


def test_posterior_mean_is_the_ddpm_step_without_noise():
    x_0, x = torch.randn(2, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = sampling.ddpm_step(LINEAR, 40, x, Estimate(x_0, x), torch.zeros_like(x))
    assert torch.allclose(step, posterior(LINEAR, x_0, x, 40).mean)
