# SPDX-License-Identifier: Apache-2.0
"""The Gaussian process at one noise level: noising, posterior, conversions between predictions, bound on likelihood.

All functions are elementwise in the state and take its noise level as an int, or as one int64 index per row of a
training batch. Indices count on the schedule they are given with, be it the full one or a respaced one. Sources:
Ho et al. 2020, section 2 and 3; Nichol and Dhariwal 2021, Eq. 15; Salimans and Ho 2022, section 4 (v).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from framecast.diffusion.schedule import Schedule

State: TypeAlias = Float[Tensor, "b *shape"]
Level: TypeAlias = int | Int64[Tensor, "b"]


class Posterior(NamedTuple):
    """Moments of q(x_t-1 | x_t, x_0); the variances broadcast against the mean."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


def _at(table: Tensor, t: Level, like: Tensor) -> Tensor:
    """Entries of a float64 table as factors of a state, one per row."""
    if isinstance(t, int):
        if not 0 <= t < len(table):
            raise ValueError(f"there is no noise level {t} among {len(table)}.")
        return table[t].to(like.dtype).to(like.device)
    rows = table.to(like.dtype).to(like.device)[t.to(like.device)]
    return rows.reshape(-1, *(1,) * (like.ndim - 1))


def q_sample(schedule: Schedule, x_0: State, t: Level, eps: State) -> State:
    """The noisy state x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    Args:
        schedule: the process.
        x_0: clean state.
        t: noise level, of all or of each row.
        eps: standard normal.

    Source: Ho et al. 2020, Eq. 4.
    """
    return _at(schedule.alpha_bar.sqrt(), t, x_0) * x_0 + _at((1 - schedule.alpha_bar).sqrt(), t, x_0) * eps


def posterior(schedule: Schedule, x_0: State, x_t: State, t: Level) -> Posterior:
    """Moments of q(x_t-1 | x_t, x_0); the log variance is the clipped one.

    Source: Ho et al. 2020, Eq. 6 and 7.
    """
    return Posterior(
        _at(schedule.posterior_x_0, t, x_0) * x_0 + _at(schedule.posterior_x_t, t, x_t) * x_t,
        _at(schedule.posterior_variance, t, x_t),
        _at(schedule.posterior_log_variance, t, x_t),
    )


def x_0_from_eps(schedule: Schedule, x_t: State, t: Level, eps: State) -> State:
    """The clean state that x_t holds if its noise is eps."""
    ab = schedule.alpha_bar
    return _at((1 / ab).sqrt(), t, x_t) * x_t - _at((1 / ab - 1).sqrt(), t, x_t) * eps


def eps_from_x_0(schedule: Schedule, x_t: State, t: Level, x_0: State) -> State:
    """The noise that x_t holds if its clean state is x_0."""
    ab = schedule.alpha_bar
    return (_at((1 / ab).sqrt(), t, x_t) * x_t - x_0) / _at((1 / ab - 1).sqrt(), t, x_t)


def v_from(schedule: Schedule, x_0: State, t: Level, eps: State) -> State:
    """The velocity v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.

    Source: Salimans and Ho 2022, section 4.
    """
    return _at(schedule.alpha_bar.sqrt(), t, x_0) * eps - _at((1 - schedule.alpha_bar).sqrt(), t, x_0) * x_0


def x_0_from_v(schedule: Schedule, x_t: State, t: Level, v: State) -> State:
    """The clean state that x_t holds if its velocity is v."""
    return _at(schedule.alpha_bar.sqrt(), t, x_t) * x_t - _at((1 - schedule.alpha_bar).sqrt(), t, x_t) * v


def eps_from_v(schedule: Schedule, x_t: State, t: Level, v: State) -> State:
    """The noise that x_t holds if its velocity is v."""
    return _at((1 - schedule.alpha_bar).sqrt(), t, x_t) * x_t + _at(schedule.alpha_bar.sqrt(), t, x_t) * v


def score_from_eps(schedule: Schedule, t: Level, eps: State) -> State:
    """The gradient of the log density at x_t that belongs to a noise estimate, -eps / sqrt(1 - alpha_bar)."""
    return -eps / _at((1 - schedule.alpha_bar).sqrt(), t, eps)


def eps_from_score(schedule: Schedule, t: Level, score: State) -> State:
    """The noise estimate that belongs to a score; inverse of `score_from_eps`."""
    return -score * _at((1 - schedule.alpha_bar).sqrt(), t, score)


def learned_range(schedule: Schedule, t: Level, v: State) -> State:
    """Log variance of a reverse step that the network places between the posterior's and beta.

    f log beta_t + (1 - f) log posterior variance, f = (v + 1) / 2; v itself is not bounded.

    Args:
        schedule: the process whose step it is: for a sampler the respaced one.
        t: level on that schedule (a position, for a respaced one).
        v: the network's second half of channels.

    Source: Nichol and Dhariwal 2021, Eq. 15.
    """
    share = (v + 1) / 2
    return share * _at(schedule.beta.log(), t, v) + (1 - share) * _at(schedule.posterior_log_variance, t, v)


def normal_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q || p) of two normal distributions, elementwise, in nats; arguments broadcast."""
    gap = (mean_q - mean_p) ** 2 * torch.exp(-log_variance_p)
    return (log_variance_p - log_variance_q + torch.exp(log_variance_q - log_variance_p) + gap - 1) / 2


def discretised_normal_nll(x: State, mean: State, log_std: Tensor) -> State:
    """Negative log likelihood of 256 grey levels under a normal distribution, elementwise, in nats.

    A level is the bin of half width 1/255 around its value in -1 to 1; the outermost bins reach to infinity.

    Args:
        x: values k / 127.5 - 1, k = 0 to 255.
        mean: of the normal distribution.
        log_std: logarithm of its standard deviation; broadcasts.

    Source: Ho et al. 2020, Eq. 13, with the published code's tanh form of the normal distribution function.
    """
    narrow = torch.exp(-log_std)
    above = _normal_cdf(narrow * (x - mean + 1 / 255))
    below = _normal_cdf(narrow * (x - mean - 1 / 255))
    share = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -share.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    # OFFICIAL: tanh in place of the error function; the figures to agree with were made so
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def variational_term(
    schedule: Schedule, x_0: State, x_t: State, t: Level, *, mean: State, log_variance: Tensor
) -> State:
    """The term of the bound on -log p(x_0) that belongs to level t, elementwise, in bits.

    The divergence of the model's reverse step from the posterior, and at level 0 the discretised likelihood of x_0.
    The sum over all levels plus `prior_bits`, averaged over elements, bounds the code length in bits per dimension.

    Args:
        schedule: the process (full, or respaced with t a position in it).
        x_0: clean state.
        x_t: its noisy state at t.
        t: noise level, of all or of each row.
        mean: of the model's reverse step p(x_t-1 | x_t).
        log_variance: of that step; broadcasts.

    Source: Ho et al. 2020, Eq. 5.
    """
    true = posterior(schedule, x_0, x_t, t)
    divergence = normal_kl(true.mean, true.log_variance, mean, log_variance)
    likelihood = discretised_normal_nll(x_0, mean, log_variance / 2)
    first = t == 0 if isinstance(t, int) else (t == 0).to(x_0.device).reshape(-1, *(1,) * (x_0.ndim - 1))
    return torch.where(torch.as_tensor(first, device=x_0.device), likelihood, divergence) / math.log(2)


def prior_bits(schedule: Schedule, x_0: State) -> State:
    """The bound's constant term: divergence of q(x_S-1 | x_0) from a standard normal, elementwise, in bits.

    Source: Ho et al. 2020, Eq. 5.
    """
    ab = schedule.alpha_bar[-1]
    zero = torch.zeros((), dtype=x_0.dtype, device=x_0.device)
    mean = float(ab.sqrt()) * x_0
    return normal_kl(mean, zero + float((1 - ab).log()), zero, zero) / math.log(2)
