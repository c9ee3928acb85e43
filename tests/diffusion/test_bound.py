"""The variational bound against distributions whose entropy is known."""

import math

import pytest
import torch

from framecast.diffusion.bound import BINS, bound, fitted_step
from framecast.diffusion.process import (
    discretised_normal_nll,
    eps_from_x_0,
    learned_range,
    posterior,
    prior_bits,
    q_sample,
)
from framecast.diffusion.sampling import Estimate
from framecast.diffusion.schedule import Schedule, cosine, descending, kept_levels, linear, snr_levels
from framecast.draws import draws

LINEAR = linear(1000)
STD = 0.3
DATA = STD * torch.randn(4, 2000, generator=torch.Generator().manual_seed(0))


def gaussian(schedule: Schedule = LINEAR, std: float = STD):
    """The exact denoiser of normal data around 0."""

    def denoise(x, t):
        ab = float(schedule.alpha_bar[t])
        x_0 = x * math.sqrt(ab) * std**2 / (ab * std**2 + 1 - ab)
        return Estimate(x_0, eps_from_x_0(schedule, x, t, x_0))

    return denoise


def with_log_variance(process, levels, of):
    """The same whose Estimates bring a log variance, a function of process and position."""
    place = {t: i for i, t in enumerate(levels)}

    def denoise(x, t):
        plain = gaussian()(x, t)
        return Estimate(plain.x_0, plain.eps, torch.as_tensor(of(process, place[t], x)).expand_as(x))

    return denoise


def code_length(x, std: float = STD) -> float:
    """Bits per element of the bins around `x` under its own normal distribution."""
    normal = torch.distributions.Normal(0.0, std)
    mass = normal.cdf(x.double() + 1 / BINS) - normal.cdf(x.double() - 1 / BINS)
    return float(-mass.log2().mean())


def found(levels, *, x=DATA, schedule=LINEAR, denoise=None, seed=1) -> float:
    rng = draws(seed, range(len(x)))
    return float(bound(denoise or gaussian(schedule), schedule, x, descending(levels), rng=rng).mean())


def coin(schedule: Schedule = LINEAR, size: float = 0.5):
    """The exact denoiser of values that are `size` or -`size`."""

    def denoise(x, t):
        ab = float(schedule.alpha_bar[t])
        x_0 = size * torch.tanh(x * size * math.sqrt(ab) / (1 - ab))
        return Estimate(x_0, eps_from_x_0(schedule, x, t, x_0))

    return denoise


@pytest.mark.parametrize("schedule", [LINEAR, cosine(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize("levels", [20, 50, 300])
def test_bound_of_normal_data_is_its_code_length_at_any_number_of_levels(schedule, levels):
    """Every reverse step of normal data is normal, so an exact denoiser loses nothing."""
    for place in (kept_levels(1000, levels), snr_levels(schedule, levels)):
        assert found(place, schedule=schedule) == pytest.approx(code_length(DATA), rel=0.02)


def test_bound_of_a_coin_falls_to_one_bit_with_more_levels():
    """Its reverse steps are not normal, but nearly so where they are short."""
    sides = (torch.rand(4, 2000, generator=torch.Generator().manual_seed(1)) < 0.5).float() - 0.5
    bits = [found(snr_levels(LINEAR, n), x=sides, denoise=coin()) for n in (3, 6, 12, 25, 50, 100, 200)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 2
    # 0.066 bits are what the likelihood's least spread leaves outside of the bin
    assert bits[-1] == pytest.approx(1.066, abs=0.05)


def test_wrong_denoiser_bounds_worse():
    levels = snr_levels(LINEAR, 100)
    exact, wide, narrow = (found(levels, denoise=gaussian(std=std)) for std in (STD, 2 * STD, STD / 2))
    assert exact < min(wide, narrow) - 0.1


def test_less_likely_values_cost_more_bits():
    x = torch.tensor([[0.0, 0.3, 0.6, 0.9]]).repeat(64, 100)
    bits = bound(gaussian(), LINEAR, x, descending(range(0, 1000, 4)), rng=draws(0, range(64)))
    by_value = bits.reshape(64, 100, 4).mean((0, 1))
    expected = [code_length(x[:1, i]) for i in range(4)]
    assert by_value.tolist() == pytest.approx(expected, rel=0.05)
    assert by_value.tolist() == sorted(by_value.tolist())


def test_one_level_alone_leaves_the_prior_and_the_likelihood():
    x, t = DATA.double(), 20
    process = LINEAR.respace([t])
    x_t = q_sample(process, x, 0, draws(3, range(4)).normal(x.shape).double())
    mean, log_variance = fitted_step(process, x_t, 0, gaussian()(x_t, t).x_0, unknown=torch.ones_like(x))
    std = (log_variance / 2).exp()
    normal = torch.distributions.Normal(mean, std)
    likelihood = -(normal.cdf(x + 1 / BINS) - normal.cdf(x - 1 / BINS)).log2()
    bits = bound(gaussian(), LINEAR, x, [t, -1], rng=draws(3, range(4)))
    inside = x.abs() < 0.99  # the outermost bins reach to infinity
    difference = (bits - likelihood - prior_bits(process, x))[inside].abs()
    assert float(difference.mean()) < 0.005  # tanh stands in place of the error function


# ---- the variance of a reverse step


@pytest.mark.parametrize("levels", [20, 100])
@pytest.mark.parametrize("kind", ["small", "large"])
def test_fitted_variance_bounds_better_than_a_fixed_one(levels, kind):
    kept = snr_levels(LINEAR, levels)
    fixed = with_log_variance(LINEAR.respace(kept), kept, lambda process, at, x: process.fixed_log_variance(kind)[at])
    assert found(kept) < found(kept, denoise=fixed) - 0.04


@pytest.mark.parametrize("at", [0, 1, 2])
def test_fitted_variance_is_the_exact_one_of_normal_data(at):
    """p(x_s | x_t) of normal data is normal, with a variance that is known."""
    levels, x = [40, 120, 300], DATA.double().reshape(1, -1)
    process = LINEAR.respace(levels)
    x_t = q_sample(process, x, at, draws(2, [0]).normal(x.shape).double())
    ab, prev = (float(table[at]) for table in (process.alpha_bar, process.alpha_bar_prev))
    above, below = ab * STD**2 + 1 - ab, prev * STD**2 + 1 - prev
    exact = below - (below * math.sqrt(ab / prev)) ** 2 / above
    _, fitted = fitted_step(process, x_t, at, gaussian()(x_t, levels[at]).x_0, unknown=torch.ones_like(x))
    assert float(fitted.exp()) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_an_estimate_that_errs_more_than_the_noise_explains_gives_way_to_the_state(noise):
    """Two estimates with independent errors: the best weights, and the error that is left."""
    rng = torch.Generator().manual_seed(3)
    x, t = DATA.double().reshape(1, -1), 400
    process = LINEAR.respace([t])
    size = float((1 - process.alpha_bar[0]) / process.alpha_bar[0])
    error = noise**2 * size
    estimate = x + math.sqrt(error) * torch.randn(x.shape, generator=rng, dtype=torch.float64)
    x_t = q_sample(process, x, 0, torch.randn(x.shape, generator=rng, dtype=torch.float64))
    mean, log_variance = fitted_step(process, x_t, 0, estimate, unknown=torch.ones_like(x), scale=0.1)
    left = error * size / (error + size)
    assert float(log_variance.exp()) == pytest.approx(left, rel=0.1)
    assert float(((mean - x) ** 2).mean()) == pytest.approx(left, rel=0.1)


@pytest.mark.parametrize("levels", [20, 60])
def test_a_denoiser_with_a_finest_detail_costs_what_this_detail_costs_at_any_number_of_levels(levels):
    """Below it the noisy state is the better estimate, so that levels of less noise add next to nothing."""
    detail = 0.02 * torch.randn(DATA.shape, generator=torch.Generator().manual_seed(5))

    def blurred(x, t):
        return Estimate(DATA + detail, eps_from_x_0(schedule, x, t, DATA + detail))

    schedule = cosine(1000)
    bits = found(snr_levels(schedule, levels), denoise=blurred, schedule=schedule)
    assert bits == pytest.approx(code_length(detail, 0.02), abs=0.25)


def test_an_estimate_is_believed_while_chance_explains_its_error():
    """Of few elements the mean of eps^2 is above 1 half of the time for an exact denoiser."""
    x = STD * torch.randn(400, 16, generator=torch.Generator().manual_seed(4))
    bits = found(snr_levels(LINEAR, 20), x=x)
    assert bits == pytest.approx(code_length(x), rel=0.04)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_learned_variance_is_used(end):
    """The learned range runs from the posterior's to beta."""
    kept = snr_levels(LINEAR, 40)
    process = LINEAR.respace(kept)
    table = process.posterior_log_variance if end < 0 else process.beta.log()
    learned = with_log_variance(process, kept, lambda p, at, x: learned_range(p, at, torch.full_like(x, end)))
    fixed = with_log_variance(process, kept, lambda p, at, x: table[at])
    assert found(kept, denoise=learned) == pytest.approx(found(kept, denoise=fixed), rel=1e-5)


# ---- known elements, rows


def test_known_elements_reach_the_denoiser_clean_and_cost_nothing():
    seen, known = [], torch.arange(2000) < 7

    def denoise(x, t):
        seen.append(x[:, :7].clone())
        return gaussian()(x, t)

    bits = bound(denoise, LINEAR, DATA, descending(snr_levels(LINEAR, 5)), rng=draws(0, range(4)), known=known)
    assert len(seen) == 5 and all(torch.equal(part, DATA[:, :7]) for part in seen)
    assert bool((bits[:, :7] == 0).all()) and bool((bits[:, 7:].mean(1) > 3).all())


def test_known_elements_do_not_count_in_the_variance():
    odd, known = DATA.clone(), torch.arange(2000) < 1500
    odd[:, :1500] = 1.0
    times = descending(snr_levels(LINEAR, 10))
    plain, other = (bound(gaussian(), LINEAR, x, times, rng=draws(0, range(4)), known=known) for x in (DATA, odd))
    assert torch.equal(plain, other)


def test_a_row_does_not_depend_on_its_neighbours_and_another_seed_is_another_estimate():
    times = descending(snr_levels(LINEAR, 20))
    both = bound(gaussian(), LINEAR, DATA[:2], times, rng=draws(5, [0, 1]))
    alone = bound(gaussian(), LINEAR, DATA[1:2], times, rng=draws(5, [1]))
    other = bound(gaussian(), LINEAR, DATA[1:2], times, rng=draws(6, [1]))
    assert torch.equal(both[1:], alone)
    assert not torch.equal(alone, other)
    assert float(alone.mean()) == pytest.approx(float(other.mean()), abs=0.2)


# ---- data that are a shifted and scaled state


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("levels", [10, 30])
def test_scaled_state_costs_the_code_length_of_its_data(scale, levels):
    """The bins are those of the data, however wide the state is spread: here 0.15 to 3."""
    shift, x = torch.linspace(-0.1, 0.1, 2000), DATA.clamp(-0.85, 0.85)
    kept = [60 + 900 * i // (levels - 1) for i in range(levels)]  # above the noise that is finer than bins
    exact, rng = gaussian(LINEAR, STD / scale), draws(1, range(4))
    bits = bound(exact, LINEAR, x / scale, descending(kept), rng=rng, shift=shift, scale=scale)
    assert float(bits.mean()) == pytest.approx(code_length(x), rel=0.02)


def test_bits_do_not_depend_on_the_units_in_which_the_model_is_written():
    """Eq. 5 spelled out with normal distributions over the data themselves."""
    scale, shift, kept = 0.5, 0.2 * torch.randn(4, 2000), [30, 200, 600, 999]
    process, state = LINEAR.respace(kept), (DATA / scale).double()
    model = with_log_variance(process, kept, lambda p, at, x: 0.1 + p.posterior_log_variance[at].expand_as(x))
    found = bound(model, LINEAR, state, descending(kept), rng=draws(4, range(4)), shift=shift, scale=scale)

    def in_data(mean, log_variance):
        return torch.distributions.Normal(shift + scale * mean, scale * (log_variance / 2).exp())

    rng, ab, expected = draws(4, range(4)), process.alpha_bar, torch.zeros_like(state)
    for at in (3, 2, 1, 0):
        noisy = ab[at].sqrt() * state + (1 - ab[at]).sqrt() * rng.normal(state.shape)
        told = model(noisy, kept[at])
        step = in_data(posterior(process, told.x_0, noisy, at).mean, told.log_variance)
        if at == 3:
            prior = in_data(torch.zeros_like(state), torch.zeros_like(state))
            top = in_data(ab[3].sqrt() * state, (1 - ab[3]).log().expand_as(state))
            expected += torch.distributions.kl_divergence(top, prior)
        if at > 0:
            true = posterior(process, state, noisy, at)
            expected += torch.distributions.kl_divergence(in_data(true.mean, true.log_variance), step)
        else:
            data = shift + scale * state
            expected += discretised_normal_nll(data, step.mean, step.stddev.log())
    torch.testing.assert_close(found, expected / math.log(2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_certain_data_cost_next_to_nothing_in_any_units(scale):
    """0.066 bits are what the likelihood's least spread leaves outside of the bin."""
    x = torch.full((2, 500), 0.3 / scale)

    def certain(noisy, t):
        return Estimate(x, eps_from_x_0(LINEAR, noisy, t, x))

    bits = bound(certain, LINEAR, x, [500, 0, -1], rng=draws(0, range(2)), shift=0.1, scale=scale)
    prior = prior_bits(LINEAR.respace([0, 500]), x.double())
    assert float((bits - prior).mean()) == pytest.approx(0.066, abs=0.002)


def test_outermost_bins_are_those_of_the_data():
    """At the end of the range half of the mass lies in one bin."""
    x, times = torch.zeros(4, 500), [999, 500, 200, 100, -1]
    inside, end = (
        float(bound(gaussian(), LINEAR, x, times, rng=draws(0, range(4)), shift=at, scale=0.5).mean())
        for at in (0.5, 1.0)
    )
    assert inside - end > 3
