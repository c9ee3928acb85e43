"""The Gaussian process at one level, against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framecast.diffusion import process
from framecast.diffusion.process import (
    discretised_normal_nll,
    learned_range,
    normal_kl,
    posterior,
    prior_bits,
    q_sample,
    variational_term,
)
from framecast.diffusion.schedule import cosine, linear

LINEAR, COSINE = linear(1000), cosine(1000)
LEVELS = torch.tensor([0, 1, 400, 999])


def states(*names: int) -> list[torch.Tensor]:
    """Random float64 states of four rows."""
    rng = torch.Generator().manual_seed(5)
    return [torch.randn(4, 2, 3, generator=rng, dtype=torch.float64) for _ in names]


def test_marginal_has_its_mean_and_variance_at_every_row():
    x_0, eps = states(0, 1)
    for row, t in enumerate(LEVELS.tolist()):
        ab = float(LINEAR.alpha_bar[t])
        expected = math.sqrt(ab) * x_0[row] + math.sqrt(1 - ab) * eps[row]
        assert torch.allclose(q_sample(LINEAR, x_0, LEVELS, eps)[row], expected, rtol=1e-12)


def test_level_per_row_and_level_of_all_agree():
    x_0, eps = states(0, 1)
    rows = q_sample(LINEAR, x_0, torch.full((4,), 77), eps)
    assert torch.equal(rows, q_sample(LINEAR, x_0, 77, eps))


def test_level_outside_the_schedule_is_refused():
    x_0, eps = states(0, 1)
    with pytest.raises(ValueError, match="no noise level -1"):
        q_sample(LINEAR, x_0, -1, eps)


@pytest.mark.parametrize("t", [1, 2, 50, 999])
def test_posterior_over_the_marginal_gives_the_marginal_below(t):
    """If x_t is N(sqrt(ab) x_0, 1 - ab), then posterior mean plus spread is N(sqrt(ab_prev) x_0, 1 - ab_prev)."""
    (x_0,) = states(0)
    ab, prev = LINEAR.alpha_bar[t], LINEAR.alpha_bar_prev[t]
    found = posterior(LINEAR, x_0, ab.sqrt() * x_0, t)
    assert torch.allclose(found.mean, prev.sqrt() * x_0, rtol=1e-10)
    spread = LINEAR.posterior_x_t[t] ** 2 * (1 - ab) + found.variance
    assert float(spread) == pytest.approx(float(1 - prev), rel=1e-10)
    assert float(found.log_variance) == pytest.approx(float(found.variance.log()), rel=1e-12)


def test_posterior_below_level_0_is_the_clean_state():
    x_0, x_t = states(0, 1)
    found = posterior(LINEAR, x_0, x_t, 0)
    assert torch.allclose(found.mean, x_0, rtol=1e-10) and found.variance == 0


@settings(deadline=None)
@given(st.integers(0, 1000 - 1), st.sampled_from(["linear", "cosine"]))
def test_conversions_agree_with_the_state_and_undo_each_other(t, name):
    schedule = LINEAR if name == "linear" else COSINE
    x_0, eps = states(0, 1)
    x_t = q_sample(schedule, x_0, t, eps)
    v = process.v_from(schedule, x_0, t, eps)
    tolerance = 1e-13 / math.sqrt(float(schedule.alpha_bar[t]) * float(1 - schedule.alpha_bar[t]))
    for found, expected in [
        (process.x_0_from_eps(schedule, x_t, t, eps), x_0),
        (process.eps_from_x_0(schedule, x_t, t, x_0), eps),
        (process.x_0_from_v(schedule, x_t, t, v), x_0),
        (process.eps_from_v(schedule, x_t, t, v), eps),
        (process.eps_from_score(schedule, t, process.score_from_eps(schedule, t, eps)), eps),
    ]:
        assert (found - expected).abs().max() < tolerance


def test_score_is_the_gradient_of_the_log_density():
    x_0, eps = states(0, 1)
    x_t = q_sample(LINEAR, x_0, 300, eps).requires_grad_()
    ab = LINEAR.alpha_bar[300]
    torch.distributions.Normal(ab.sqrt() * x_0, (1 - ab).sqrt()).log_prob(x_t).sum().backward()
    assert torch.allclose(process.score_from_eps(LINEAR, 300, eps), x_t.grad, rtol=1e-9)


def test_learned_range_runs_from_the_posterior_to_beta():
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    small, large = learned_range(LINEAR, torch.tensor([600, 600]), ends).flatten()
    assert small == LINEAR.posterior_log_variance[600] and large == LINEAR.beta[600].log()


def test_kl_equals_torchs():
    a, b, c, d = states(0, 1, 2, 3)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(a, (b / 2).exp()), torch.distributions.Normal(c, (d / 2).exp())
    )
    assert torch.allclose(normal_kl(a, b, c, d), expected, rtol=1e-10)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.4), (-0.9, 0.02), (3.0, 0.8)])
def test_likelihood_of_all_grey_levels_sums_to_one(mean, std):
    grey = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    nll = discretised_normal_nll(grey, torch.full_like(grey, mean), torch.tensor(math.log(std), dtype=torch.float64))
    assert float(torch.exp(-nll).sum()) == pytest.approx(1, abs=1e-9)


def test_likelihood_of_a_grey_level_is_the_normal_mass_of_its_bin():
    grey = torch.arange(1, 255, dtype=torch.float64) / 127.5 - 1
    normal = torch.distributions.Normal(torch.tensor(0.2).double(), torch.tensor(0.3).double())
    nll = discretised_normal_nll(grey, torch.full_like(grey, 0.2), torch.tensor(math.log(0.3)).double())
    mass = normal.cdf(grey + 1 / 255) - normal.cdf(grey - 1 / 255)
    assert (
        torch.exp(-nll) - mass
    ).abs().max() < 3e-5  # the tanh form is off by up to 3e-4 in the distribution function


def test_variational_term_at_level_0_is_the_likelihood_and_above_the_divergence():
    x_0, eps, mean, log_variance = states(0, 1, 2, 3)
    t = torch.tensor([0, 5, 0, 700])
    x_t = q_sample(LINEAR, x_0, t, eps)
    found = variational_term(LINEAR, x_0, x_t, t, mean=mean, log_variance=log_variance) * math.log(2)
    true = posterior(LINEAR, x_0, x_t, t)
    kl = normal_kl(true.mean, true.log_variance, mean, log_variance)
    nll = discretised_normal_nll(x_0, mean, log_variance / 2)
    assert torch.allclose(found[[1, 3]], kl[[1, 3]]) and torch.allclose(found[[0, 2]], nll[[0, 2]])
    assert not torch.allclose(kl[0], nll[0])


def test_bound_of_normal_data_is_tight_with_its_exact_reverse_process():
    """With reverse steps equal to the true p(x_t-1 | x_t), normal for normal data, the bound is the entropy."""
    mu, spread = 0.2, 0.5
    schedule = linear(120)
    rng = torch.Generator().manual_seed(0)
    x_0 = mu + spread * torch.randn(1, 60_000, generator=rng, dtype=torch.float64)
    bits = prior_bits(schedule, x_0).mean()
    for t in range(schedule.noise_levels):
        eps = torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
        x_t = q_sample(schedule, x_0, t, eps)
        # q(x_t-1 | x_t) of normal data by conditioning: prior N(m, v) seen through one noising step
        prev, beta = float(schedule.alpha_bar_prev[t]), float(schedule.beta[t])
        m, v = math.sqrt(prev) * mu, prev * spread**2 + 1 - prev
        gain = v * math.sqrt(1 - beta) / ((1 - beta) * v + beta)
        mean = m + gain * (x_t - math.sqrt(1 - beta) * m)
        log_variance = torch.tensor(math.log(v * (1 - gain * math.sqrt(1 - beta))), dtype=torch.float64)
        if t:
            bits += variational_term(schedule, x_0, x_t, t, mean=mean, log_variance=log_variance).mean()
        else:
            density = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(x_0)
            bits -= density.mean() / math.log(2)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * spread**2)
    assert float(bits) == pytest.approx(entropy, abs=0.02)


def test_prior_bits_are_the_divergence_of_the_noisiest_state():
    (x_0,) = states(0)
    short = linear(30)
    ab = short.alpha_bar[-1]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(ab.sqrt() * x_0, (1 - ab).sqrt()), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(prior_bits(short, x_0), expected / math.log(2), rtol=1e-9)


def test_results_keep_the_states_dtype():
    x_0, eps = (state.float() for state in states(0, 1))
    x_t = q_sample(LINEAR, x_0, LEVELS, eps)
    term = variational_term(LINEAR, x_0, x_t, LEVELS, mean=x_0, log_variance=learned_range(LINEAR, LEVELS, eps))
    assert x_t.dtype == term.dtype == prior_bits(LINEAR, x_0).dtype == torch.float32
