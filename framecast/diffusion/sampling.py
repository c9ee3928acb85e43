# SPDX-License-Identifier: Apache-2.0
"""Samplers: from noise to a clean state along a list of noise levels, given what a system makes of each noisy state.

A system supplies `denoise`; clamping, guidance and known frames are its business (the last through `before`). Every
sampler is a loop over a public single step, so that a system may write its own loop. A single step works on the process
respaced to the visited levels and on a position in it. Sources: Ho et al. 2020, Alg. 2; Song, Meng and Ermon 2021
(DDIM), Eq. 12 and 16; Lu et al. 2022, arXiv 2211.01095, Alg. 2 (DPM-Solver++ 2M).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from framecast.diffusion.process import eps_from_v, eps_from_x_0, v_from, x_0_from_eps, x_0_from_v
from framecast.diffusion.schedule import Schedule
from framecast.draws import Draws

State: TypeAlias = Float[Tensor, "b *shape"]


@dataclass(frozen=True)
class Estimate:
    """What a system makes of a noisy state x_t.

    Samplers use both `x_0` and `eps` as they are: a system that clamps x_0 decides whether eps follows (as RaMViD
    wants) or stays the network's (as PVDM wants), see `estimate`.

    Attributes:
        x_0: the clean state.
        eps: the noise in x_t.
        log_variance: of the reverse step to the next level visited, where it is learned (`process.learned_range`).
    """

    x_0: Tensor
    eps: Tensor
    log_variance: Tensor | None = None


Denoise: TypeAlias = Callable[[Tensor, int], Estimate]  # state and its level on the full schedule
Before: TypeAlias = Callable[[Tensor, int], Tensor]  # runs before every evaluation, e.g. writes the known frames


def estimate(
    schedule: Schedule,
    x: State,
    t: int,
    output: State,
    *,
    target: Literal["eps", "x_0", "v"] = "eps",
    bound: float | None = None,
    keeps: Literal["x_t", "eps"] = "x_t",
    log_variance: Tensor | None = None,
) -> Estimate:
    """Read a network's output as an Estimate, in which eps and x_0 agree: x_t = sqrt(ab) x_0 + sqrt(1 - ab) eps.

    Args:
        schedule: the full schedule.
        x: noisy state.
        t: its level on that schedule.
        output: what the network said.
        target: what the network predicts.
        bound: clamp x_0 to -bound to bound; None: no clamp.
        keeps: what a clamp leaves as it is: x_t, for which eps is derived again from x_0, or eps, which then no longer
            agrees with it.
        log_variance: handed on.
    """
    if target == "eps":
        x_0, eps = x_0_from_eps(schedule, x, t, output), output
    elif target == "x_0":
        x_0, eps = output, eps_from_x_0(schedule, x, t, output)
    else:
        x_0, eps = x_0_from_v(schedule, x, t, output), eps_from_v(schedule, x, t, output)
    if bound is not None:
        x_0 = x_0.clamp(-bound, bound)
        eps = eps_from_x_0(schedule, x, t, x_0) if keeps == "x_t" else eps
    return Estimate(x_0, eps, log_variance)


def respaced(schedule: Schedule, times: Sequence[int]) -> tuple[Schedule, dict[int, int]]:
    """The process over the visited levels, and the position of each level in it.

    Args:
        schedule: the full schedule.
        times: levels on it, descending, ending in -1.

    Returns:
        The respaced schedule, which the single steps work on, and a map from full-schedule level to position.

    Raises:
        ValueError: times that do not fall strictly or do not end in -1.

    Example:
        >>> from framecast.diffusion.schedule import linear
        >>> respaced(linear(1000), [999, 500, 0, -1])[1]
        {0: 0, 500: 1, 999: 2}
    """
    if len(times) < 2 or times[-1] != -1:
        raise ValueError(f"a sampler's times fall from the noisiest level to -1, got {list(times)[-3:]} at the end.")
    kept = list(times[-2::-1])
    return schedule.respace(kept), {t: position for position, t in enumerate(kept)}


def ddpm(
    denoise: Denoise,
    schedule: Schedule,
    x: State,
    times: Sequence[int],
    *,
    rng: Draws,
    variance: Literal["large", "small"] = "large",
    before: Before | None = None,
) -> State:
    """Ancestral sampling: draw every state from the reverse process.

    One normal tensor of the state's shape is drawn at every step, the last one included, where it is not used.

    Args:
        denoise: the system.
        schedule: the full schedule.
        x: the start, standard normal.
        times: levels to visit, descending, ending in -1 (`schedule.descending`).
        rng: one row per row of x.
        variance: of the reverse step where the Estimate brings none.
        before: changes the state before every evaluation.

    Returns:
        The clean state; what `before` does is not done to it.

    Source: Ho et al. 2020, Alg. 2.
    """
    process, position = respaced(schedule, times)
    for t in times[:-1]:
        x = before(x, t) if before else x
        found = denoise(x, t)
        x = ddpm_step(process, position[t], x, found, rng.normal(x.shape), variance=variance)
    return x


def ddpm_step(
    process: Schedule,
    position: int,
    x: State,
    found: Estimate,
    noise: State,
    *,
    variance: Literal["large", "small"] = "large",
) -> State:
    """One ancestral step, c1 x_0 + c2 x_t + sigma z, without noise at position 0.

    Args:
        process: respaced schedule.
        position: of the state in it.
        x: state at that position.
        found: what the system makes of it.
        noise: standard normal.
        variance: where `found` brings none.
    """
    mean = float(process.posterior_x_0[position]) * found.x_0 + float(process.posterior_x_t[position]) * x
    if position == 0:
        return mean
    if found.log_variance is None:
        spread = math.exp(float(process.fixed_log_variance(variance)[position]) / 2)
        return mean + spread * noise.to(x)
    return mean + torch.exp(found.log_variance / 2) * noise.to(x)


def renoise_step(process: Schedule, position: int, x: State, noise: State) -> State:
    """One step of the forward process, from the state below `position` back up to it: undoes a step of a sampler.

    sqrt(1 - beta) x + sqrt(beta) z. The part that RePaint-like resampling adds.

    Source: Ho et al. 2020, Eq. 2.
    """
    beta = float(process.beta[position])
    return math.sqrt(1 - beta) * x + math.sqrt(beta) * noise.to(x)


def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x: State,
    times: Sequence[int],
    *,
    rng: Draws,
    eta: float = 0.0,
    before: Before | None = None,
) -> State:
    """Denoising diffusion implicit sampling, deterministic for eta = 0.

    Draws nothing for eta = 0, else one normal tensor at every step but the last.

    Args:
        denoise: the system.
        schedule: the full schedule.
        x: the start, standard normal.
        times: levels to visit, descending, ending in -1.
        rng: one row per row of x.
        eta: share of fresh noise; 1 gives every step the posterior's variance.
        before: changes the state before every evaluation.

    Returns:
        The clean state, the last x_0.

    Raises:
        ValueError: eta outside 0 to 1.

    Source: Song, Meng and Ermon 2021, Eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; it must lie between 0 (no fresh noise) and 1 (all of it).")
    process, position = respaced(schedule, times)
    for t in times[:-1]:
        x = before(x, t) if before else x
        found = denoise(x, t)
        noise = rng.normal(x.shape) if eta > 0 and position[t] > 0 else None
        x = ddim_step(process, position[t], found, noise, eta=eta)
    return x


def ddim_step(
    process: Schedule, position: int, found: Estimate, noise: State | None = None, *, eta: float = 0.0
) -> State:
    """One DDIM step, sqrt(ab_prev) x_0 + sqrt(1 - ab_prev - sigma^2) eps + sigma z.

    Args:
        process: respaced schedule.
        position: of the state in it.
        found: what the system makes of the state.
        noise: standard normal; not needed for eta = 0 or position 0.
        eta: share of fresh noise.
    """
    here, prev = float(process.alpha_bar[position]), float(process.alpha_bar_prev[position])
    sigma = eta * math.sqrt((1 - prev) / (1 - here)) * math.sqrt(1 - here / prev)  # Eq. 16
    x = math.sqrt(prev) * found.x_0 + math.sqrt(max(1 - prev - sigma**2, 0.0)) * found.eps  # Eq. 12
    return x if noise is None or position == 0 else x + sigma * noise.to(x)


def dpmpp_2m(
    denoise: Denoise,
    schedule: Schedule,
    x: State,
    times: Sequence[int],
    *,
    rng: Draws | None = None,
    before: Before | None = None,
) -> State:
    """DPM-Solver++(2M): the deterministic path of `ddim`, followed with second-order accuracy at the same cost.

    Args:
        denoise: the system; only its x_0 is used.
        schedule: the full schedule.
        x: the start, standard normal.
        times: levels to visit, descending, ending in -1.
        rng: not used; there so that samplers are called alike.
        before: changes the state before every evaluation.

    Returns:
        The clean state, the last x_0.

    Source: Lu et al. 2022, arXiv 2211.01095, Alg. 2.
    """
    process, position = respaced(schedule, times)
    last: Tensor | None = None
    for t in times[:-1]:
        x = before(x, t) if before else x
        found = denoise(x, t)
        x = dpmpp_2m_step(process, position[t], x, found, last)
        last = found.x_0
    return x


def dpmpp_2m_step(process: Schedule, position: int, x: State, found: Estimate, last: State | None) -> State:
    """One multistep step in the half log signal-to-noise ratio lambda; the step from position 0 returns x_0.

    Args:
        process: respaced schedule.
        position: of the state in it.
        x: state at that position.
        found: what the system makes of it.
        last: the x_0 found one position above; None at the start, where the step is of first order.
    """
    if position == 0:
        return found.x_0  # lambda is infinite there, and only the first-order step has a limit
    time = process.half_log_snr[position - 1 : position + 2].tolist()
    step = time[0] - time[1]
    slope_free = found.x_0
    if last is not None:
        ratio = (time[1] - time[2]) / step
        slope_free = (1 + 1 / (2 * ratio)) * found.x_0 - 1 / (2 * ratio) * last  # Alg. 2, D_i
    here, prev = float(process.alpha_bar[position]), float(process.alpha_bar[position - 1])
    # Alg. 2: x <- sigma_next / sigma x - alpha_next (exp(-h) - 1) D
    return math.sqrt((1 - prev) / (1 - here)) * x - math.sqrt(prev) * math.expm1(-step) * slope_free


@dataclass(frozen=True)
class DiffusersSampler:
    """Any scheduler of the diffusers library as a sampler that is called like those above.

    Their tables are float32, so figures agree with ours to about 1e-3 only. Clamping is the scheduler's own
    (`clip_sample`, on by default in some), beside whatever the system does. Schedulers that keep the state at another
    scale (Euler, Heun) are handled: `denoise` and `before` always see the state of `q_sample`.

    Args:
        scheduler: made with this library's betas, `trained_betas=schedule.beta.tolist()`, and a `prediction_type` of
            "epsilon", "sample" or "v_prediction".

    Raises:
        ValueError: when called with a schedule that is not the scheduler's, or times it cannot visit.

    Example:
        >>> DiffusersSampler(UniPCMultistepScheduler(...))(denoise, schedule, x, 10, rng=rng)  # doctest: +SKIP
    """

    scheduler: Any

    def __call__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x: State,
        times: Sequence[int] | int,
        *,
        rng: Draws,
        before: Before | None = None,
    ) -> State:
        """Sample; `times` is a list of levels ending in -1, or the number of steps that the scheduler then places."""
        self._check(schedule)
        options: dict[str, Any] = {"return_dict": False}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            # one stream per row, so that noise does not depend on the batch
            seeds = rng.integers(0, 2**62, (len(x),)).tolist()
            options["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        levels = self._place(times, x.device)
        sample: Tensor | None = None
        for time, t in zip(self.scheduler.timesteps, levels, strict=True):
            scale = float(self.scheduler.scale_model_input(torch.ones(()), time))
            state = x if sample is None else sample * scale
            state = before(state, t) if before else state
            told = self._predicted(schedule, t, denoise(state, t))
            sample = self.scheduler.step(told, time, state / scale, **options)[0]
        assert sample is not None
        return sample

    def _check(self, schedule: Schedule) -> None:
        theirs = getattr(self.scheduler, "alphas_cumprod", None)
        name = type(self.scheduler).__name__
        if theirs is None or len(theirs) != schedule.noise_levels:
            raise ValueError(
                f"{name} does not have this model's {schedule.noise_levels} noise levels; make it with "
                "trained_betas=schedule.beta.tolist() and num_train_timesteps=schedule.noise_levels."
            )
        apart = float((theirs.double().cpu() - schedule.alpha_bar).abs().max())
        if apart > 1e-4:
            raise ValueError(
                f"{name} has another noise schedule than this model (alpha_bar differs by up to {apart:.2g}); "
                "make it with trained_betas=schedule.beta.tolist()."
            )

    def _place(self, times: Sequence[int] | int, device: torch.device) -> list[int]:
        """Tell the scheduler what to visit; the level of each of its evaluations."""
        scheduler, name = self.scheduler, type(self.scheduler).__name__
        if isinstance(times, int):
            scheduler.set_timesteps(times, device=device)
        elif "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(timesteps=list(times[:-1]), device=device)
        else:
            scheduler.set_timesteps(len(times) - 1, device=device)
            if scheduler.timesteps.tolist() != list(times[:-1]):
                raise ValueError(f"{name} chooses its own noise levels; give the number of steps in place of a list.")
        levels = [float(time) for time in scheduler.timesteps]
        between = [level for level in levels if level != round(level)]
        if between:
            raise ValueError(
                f"{name} would evaluate the model between noise levels, at {between[0]:g}; make it with "
                "timestep_spacing='trailing', or take a scheduler that keeps to whole levels."
            )
        return [round(level) for level in levels]

    def _predicted(self, schedule: Schedule, t: int, found: Estimate) -> Tensor:
        """What the scheduler wants to be told."""
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return found.eps
        if kind == "sample":
            return found.x_0
        if kind == "v_prediction":
            return v_from(schedule, found.x_0, t, found.eps)
        raise ValueError(
            f"{type(self.scheduler).__name__} wants prediction_type {kind!r}; make it with 'epsilon', 'sample' or "
            "'v_prediction'."
        )
