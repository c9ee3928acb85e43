# SPDX-License-Identifier: Apache-2.0
"""How likely a diffusion model finds a state: its variational bound, estimated with one noisy state per level.

The process may be respaced: every choice of visited levels is a model of its own with a bound of its own. The terms of
the bound are in process.py. Sources: Ho et al. 2020, Eq. 5 and 13; Nichol and Dhariwal 2021, section 4 (respacing);
Bao et al. 2022, "Analytic-DPM", arXiv 2201.06503, Theorem 1 and 2 (a reverse step's best variance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from framecast.diffusion.process import (
    discretised_normal_nll,
    eps_from_x_0,
    posterior,
    prior_bits,
    q_sample,
    variational_term,
)
from framecast.diffusion.sampling import Denoise, respaced
from framecast.diffusion.schedule import Schedule
from framecast.draws import Draws

State: TypeAlias = Float[Tensor, "b *shape"]

CHANCE = 3  # standard deviations by which the mean of eps^2 may exceed 1 before it tells something
BINS = 255  # of the range -1 to 1: the bound is on the probability of the bin, 1/255 to either side, around a value


def bound(
    denoise: Denoise,
    schedule: Schedule,
    x_0: State,
    times: Sequence[int],
    *,
    rng: Draws,
    known: Bool[Tensor, "..."] | None = None,
    shift: Tensor | float = 0.0,
    scale: float = 1.0,
) -> State:
    """An estimate of an upper bound on -log2 p(unknown elements | known ones), element by element; lower is likelier.

    KL(q(x_S | x_0), N(0, 1)) + sum over levels of KL(q(x_s | x_t, x_0), p(x_s | x_t)) - log p(x_0 | x at the lowest),
    where s is the next level visited below t, and p is the reverse process of the same levels. All its steps are
    diagonal normals, so the bound is a sum over elements: their mean is the bound in bits per dimension, the mean over
    a frame is that frame's share. What is bounded is the probability of the bin of half width 1/255 around every
    value of the data: one of 256 grey levels for 8-bit data, an interval of a 255th of the range for all other. The
    data are `shift` + `scale` x_0 where the state is not the data itself; the divergences do not change with units.

    Mean and variance of a reverse step are the system's where the Estimate brings a variance; else they are those of
    `fitted_step`, which bound far better at few levels than either of the fixed variances.

    One normal tensor of the state's shape is drawn at every level, from the noisiest on.

    Args:
        denoise: the system.
        schedule: the full schedule.
        x_0: clean state.
        times: levels to visit, descending, ending in -1 (`schedule.descending`).
        rng: one row per row of x_0.
        known: broadcasts against x_0; True where an element is given: it reaches `denoise` clean.
        shift: what is added to a scaled state to give data in -1 to 1; broadcasts against x_0.
        scale: of the state, above 0.

    Returns:
        Bits of every element, 0 where known; float64 on the CPU.

    Source: Ho et al. 2020, Eq. 5.
    """
    process, position = respaced(schedule, times)
    clean = x_0.cpu().double()  # differences of nearly equal means are squared; some devices have no float64
    unknown = torch.ones_like(clean) if known is None else (~known).cpu().double().expand_as(clean)
    offset = torch.as_tensor(shift).cpu().double()
    bits = prior_bits(process, clean)
    for t in times[:-1]:
        at = position[t]
        x_t = q_sample(process, x_0, at, rng.normal(x_0.shape).to(x_0))
        x_t = x_t if known is None else torch.where(known, x_0, x_t)
        found = denoise(x_t, t)
        noisy, estimated = x_t.cpu().double(), found.x_0.cpu().double()
        if found.log_variance is None:
            mean, log_variance = fitted_step(process, noisy, at, estimated, unknown=unknown, scale=scale)
        else:
            mean = posterior(process, estimated, noisy, at).mean
            log_variance = found.log_variance.cpu().double()
        if at > 0:
            bits += variational_term(process, clean, noisy, at, mean=mean, log_variance=log_variance)
        else:  # x_0 itself, to within the bins of the data
            log_std = log_variance / 2 + math.log(scale)
            nats = discretised_normal_nll(offset + scale * clean, offset + scale * mean, log_std)
            bits += nats / math.log(2)
    return torch.where(unknown > 0, bits, 0.0)


def fitted_step(
    process: Schedule, x_t: State, at: int, x_0: State, *, unknown: State, scale: float = 1.0
) -> tuple[State, Tensor]:
    """The normal reverse step that suits best, as far as the state and the estimate of x_0 tell.

    Its variance is the posterior's plus c^2 E, c the weight of x_0 in the posterior's mean and E the squared error to
    be expected of the estimate. The true x_0 is not looked at, so p stays a model and its bound a bound. What tells of
    E is the mean of eps^2, eps the noise that the estimate finds in x_t, whose size is s^2 = (1 - alpha_bar) /
    alpha_bar in units of x_0:

    - less than 1: an exact denoiser takes its own error for data, so E = s^2 (1 - mean of eps^2), and the mean is the
      posterior's. For normal data this makes the bound tight at any number of levels.
    - more than 1, and more than chance explains: the estimate errs by more than the noise would, by
      D = s^2 (mean of eps^2 - 1), as networks do on data that they do not know, or below the finest detail that they
      can give. x_t itself, which errs by s^2, then has a share D / (D + s^2) in the estimate, and
      E = D s^2 / (D + s^2).

    Args:
        process: the respaced schedule.
        x_t: noisy state at `at`.
        at: position on that schedule.
        x_0: what the system makes of it.
        unknown: 1 for elements that count, 0 for others, of the state's shape.
        scale: of the state in the data, as for `bound`.

    Returns:
        The mean, and one log variance per row, broadcasting against it.

    Source: Bao et al. 2022, Theorem 1, with the mean taken over the elements of one state; the limits are those of
        Theorem 2 for data in -1 to 1. The second case is ours: the best weights of two estimates whose errors have
        nothing to do with each other.
    """
    ab = process.alpha_bar[at]
    axes, size = tuple(range(1, x_t.ndim)), (1 - ab) / ab
    eps = eps_from_x_0(process, x_t, at, x_0)
    count = unknown.sum(axes, keepdim=True)
    found = (eps**2 * unknown).sum(axes, keepdim=True) / count
    found = torch.where((found - 1) < CHANCE * (2 / count).sqrt(), found.clamp(max=1), found)
    widest = 1 / scale**2  # of data in -1 to 1
    excess = (size * (found - 1)).clamp(-widest, widest)
    share = (excess / (excess + size)).clamp(min=0)
    mean = posterior(process, x_0 + share * size.sqrt() * eps, x_t, at).mean
    error = torch.where(excess < 0, -excess, share * size)
    if at == 0:  # the clean state has no posterior variance; a spread of half the half width of a bin is fine enough
        return mean, error.clamp(min=(1 / (2 * BINS * scale)) ** 2).log()
    most = process.beta[at] * max(1.0, widest)
    return mean, (process.posterior_variance[at] + process.posterior_x_0[at] ** 2 * error).clamp(max=most).log()
