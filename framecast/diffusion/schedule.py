# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: how much of the signal is left at each noise level, and which levels a sampler visits.

All tables are float64 and live on the CPU; whoever uses a value casts it to the dtype and device of the state it
multiplies. Index 0 is the least noisy level. Sources: Ho et al. 2020, section 2 and 3.2 (tables, linear); Nichol and
Dhariwal 2021, Eq. 17 (cosine) and section 4 (respacing); Rombach et al. 2022 (scaled linear).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a Gaussian diffusion process, all derived from its betas.

    One noising step is q(x_t | x_t-1) = N(sqrt(1 - beta_t) x_t-1, beta_t). With alpha_bar_t the product of all
    1 - beta up to t, q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t).

    Args:
        beta: variance added at each noise level, between 0 and 1.

    Raises:
        ValueError: betas that are no vector of float64 numbers strictly between 0 and 1.

    Source: Ho et al. 2020, Eq. 2, 4, 6 and 7.

    Example:
        >>> Schedule(torch.tensor([0.1, 0.5], dtype=torch.float64)).alpha_bar.tolist()
        [0.9, 0.45]
    """

    beta: Tensor

    def __post_init__(self) -> None:
        beta = self.beta
        if beta.ndim != 1 or not len(beta) or beta.dtype != torch.float64 or beta.device.type != "cpu":
            raise ValueError(
                f"a schedule is made from a vector of float64 betas on the CPU, got shape {tuple(beta.shape)}, "
                f"{beta.dtype}, on {beta.device}."
            )
        if not bool(((beta > 0) & (beta < 1)).all()):
            raise ValueError(
                f"every beta must lie strictly between 0 and 1; they run from {beta.min():g} to {beta.max():g} "
                f"over {len(beta)} noise levels: use other end points or more levels."
            )

    @property
    def noise_levels(self) -> int:
        """Number of noise levels S."""
        return len(self.beta)

    @cached_property
    def alpha_bar(self) -> Float64[Tensor, "s"]:
        """Share of the signal's variance left at t."""
        return torch.cumprod(1 - self.beta, dim=0)  # Ho et al., Eq. 4

    @cached_property
    def alpha_bar_prev(self) -> Float64[Tensor, "s"]:
        """alpha_bar one level below t; 1 below the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @cached_property
    def posterior_variance(self) -> Float64[Tensor, "s"]:
        """Variance of q(x_t-1 | x_t, x_0); 0 at level 0."""
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)  # Ho et al., Eq. 7

    @cached_property
    def posterior_log_variance(self) -> Float64[Tensor, "s"]:
        """Logarithm of `posterior_variance` with entry 1 in place of entry 0, whose logarithm is not finite.

        With a single noise level there is no entry 1; then it is log beta_0.
        """
        return torch.cat([self._second_posterior_variance, self.posterior_variance[1:]]).log()

    @cached_property
    def posterior_x_0(self) -> Float64[Tensor, "s"]:
        """Coefficient of x_0 in the mean of q(x_t-1 | x_t, x_0)."""
        return self.beta * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)  # Ho et al., Eq. 7

    @cached_property
    def posterior_x_t(self) -> Float64[Tensor, "s"]:
        """Coefficient of x_t in the mean of q(x_t-1 | x_t, x_0)."""
        return (1 - self.alpha_bar_prev) * (1 - self.beta).sqrt() / (1 - self.alpha_bar)  # Ho et al., Eq. 7

    @cached_property
    def half_log_snr(self) -> Float64[Tensor, "s"]:
        """log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), the time in which DPM-Solver works (its lambda)."""
        return (self.alpha_bar.log() - (1 - self.alpha_bar).log()) / 2

    @property
    def _second_posterior_variance(self) -> Tensor:
        # DEVIATES: the official code cannot build a process of one level; noise of level 0 is never added anyway
        return self.posterior_variance[1:2] if self.noise_levels > 1 else self.beta[:1]

    def fixed_log_variance(self, kind: Literal["large", "small"]) -> Float64[Tensor, "s"]:
        """Log variance of the reverse step where the network does not learn it.

        Args:
            kind: "large" is beta, right for data of unit variance, with the posterior's entry 1 in place of entry 0;
                "small" is the posterior variance, right for data of no variance.

        Source: Ho et al. 2020, section 3.2; the replaced entry as in the published code.
        """
        if kind == "small":
            return self.posterior_log_variance
        return torch.cat([self._second_posterior_variance, self.beta[1:]]).log()

    def respace(self, kept: Sequence[int]) -> Schedule:
        """The process that visits only some of the noise levels, with the same alpha_bar at those.

        Its betas are 1 - alpha_bar_kept / alpha_bar_previous-kept; every other table follows from them.

        Args:
            kept: levels, ascending; entry i becomes level i of the new schedule.

        Raises:
            ValueError: levels out of range, repeated, not ascending, or none.

        Source: Nichol and Dhariwal 2021, section 4.

        Example:
            >>> full = linear(1000)
            >>> bool(torch.isclose(full.respace([0, 999]).alpha_bar[1], full.alpha_bar[999]))
            True
        """
        levels = list(kept)
        inside = levels and levels[0] >= 0 and levels[-1] < self.noise_levels
        if not inside or any(low >= high for low, high in pairwise(levels)):
            raise ValueError(
                f"the levels kept must rise strictly within 0 to {self.noise_levels - 1}, got {_shortened(levels)}."
            )
        if len(levels) == self.noise_levels:
            return self
        alpha_bar = self.alpha_bar[levels]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        return Schedule(1 - alpha_bar / before)


def linear(noise_levels: int) -> Schedule:
    """Betas equally spaced from 0.1/S to 20/S (1e-4 to 0.02 for S = 1000); needs S above 20.

    Source: Ho et al. 2020, section 4; the scaling with S as in Nichol and Dhariwal's code.
    """
    _check_levels(noise_levels)
    return Schedule(torch.linspace(0.1 / noise_levels, 20 / noise_levels, noise_levels, dtype=torch.float64))


def scaled_linear(noise_levels: int, start: float = 0.0015, end: float = 0.0195) -> Schedule:
    """Betas whose square roots are equally spaced; the end points do not depend on S.

    Args:
        noise_levels: S.
        start: first beta.
        end: last beta.

    Source: the schedule of latent diffusion (Rombach et al. 2022, code), with PVDM's end points.
    """
    _check_levels(noise_levels)
    return Schedule(torch.linspace(math.sqrt(start), math.sqrt(end), noise_levels, dtype=torch.float64) ** 2)


def cosine(noise_levels: int) -> Schedule:
    """alpha_bar falls like a squared cosine; betas are cut at 0.999.

    beta_i = 1 - f((i + 1) / S) / f(i / S) with f(u) = cos((u + 0.008) / 1.008 * pi / 2)^2.

    Source: Nichol and Dhariwal 2021, Eq. 17; RVD uses S = 1600.
    """
    _check_levels(noise_levels)
    u = torch.arange(noise_levels + 1, dtype=torch.float64) / noise_levels
    signal = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return Schedule((1 - signal[1:] / signal[:-1]).clamp(max=0.999))


_NAMED = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


def named(name: str, noise_levels: int) -> Schedule:
    """The schedule that a configuration calls by this name.

    Raises:
        ValueError: no such schedule.

    Example:
        >>> named("cosine", 1600).noise_levels
        1600
    """
    if name not in _NAMED:
        raise ValueError(f"there is no noise schedule {name!r}; choose one of {', '.join(_NAMED)}.")
    return _NAMED[name](noise_levels)


def kept_levels(noise_levels: int, steps: int | str) -> list[int]:
    """The noise levels that a sampler of so many steps visits, ascending.

    Args:
        noise_levels: S.
        steps: n or "n": equally spaced from 0 to S - 1, both included; "a,b,c": as many equal sections of the levels,
            with a, b and c steps, each placed alike within its section; "ddimN": every k-th level from 0, k the
            smallest stride that gives exactly N; "": all levels.

    Returns:
        Levels from 0 to S - 1, strictly rising.

    Raises:
        ValueError: steps that cannot be read, are below 1, or do not fit.

    Source: Nichol and Dhariwal 2021, section 4, and the rounding of its code.

    Example:
        >>> kept_levels(1000, 5), kept_levels(1000, "ddim5")
        ([0, 250, 500, 749, 999], [0, 200, 400, 600, 800])
    """
    _check_levels(noise_levels)
    text = str(steps).strip()
    if not text:
        return list(range(noise_levels))
    if text.startswith("ddim"):
        return _strided(noise_levels, _count(text.removeprefix("ddim"), steps))
    counts = [_count(part, steps) for part in text.split(",")]
    if counts == [1]:
        # DEVIATES: the published rule would keep level 0, where the state is hardly noise; one step starts at the top
        return [noise_levels - 1]
    kept: list[int] = []
    size, longer = divmod(noise_levels, len(counts))
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if count > length:
            raise ValueError(
                f"steps {steps!r} asks for {count} steps among {length} of the {noise_levels} noise levels; "
                f"ask for at most {length}."
            )
        kept += [start + level for level in _spread(length, count)]
        start += length
    return kept


def trailing_levels(noise_levels: int, steps: int) -> list[int]:
    """The levels that a sampler visits, equally spaced from the noisiest down to -1, the clean state, rounded down.

    Args:
        noise_levels: T.
        steps: number of levels.

    Returns:
        Levels, strictly rising; -1 is not among them.

    Raises:
        ValueError: more steps than levels, or none.

    Source: the DDIM loop of PVDM's code.

    Example:
        >>> trailing_levels(1000, 5), trailing_levels(1000, 400)[:4]
        ([199, 399, 599, 799, 999], [1, 4, 6, 9])
    """
    _check_levels(noise_levels)
    if not 1 <= steps <= noise_levels:
        raise ValueError(f"steps is {steps}; it must lie between 1 and the {noise_levels} noise levels.")
    # OFFICIAL: in float32, which puts some levels that should be whole one lower
    return torch.linspace(-1, noise_levels - 1, steps + 1, dtype=torch.float32).int().tolist()[1:]


def snr_levels(schedule: Schedule, steps: int) -> list[int]:
    """The levels that a sampler visits, equally spaced in the log signal-to-noise ratio as far as whole levels allow.

    The spacing for `dpmpp_2m`: with levels equally spaced in t its last, long step in lambda extrapolates too far. For
    normal data of spread 0.5 and 20 steps of the linear schedule it returns a spread of 0.62, with these levels 0.50.

    Args:
        schedule: the full schedule.
        steps: number of levels, at least 1; the noisiest and, from 2 steps on, level 0 are among them.

    Returns:
        Levels, strictly rising.

    Raises:
        ValueError: more steps than levels, or none.

    Source: Lu et al. 2022, arXiv 2206.00927, section 3.4 (uniform steps in lambda).

    Example:
        >>> snr_levels(linear(1000), 5)
        [0, 30, 302, 722, 999]
    """
    levels = schedule.noise_levels
    if not 1 <= steps <= levels:
        raise ValueError(f"steps is {steps}; it must lie between 1 and the {levels} noise levels.")
    time = schedule.half_log_snr
    wanted = torch.linspace(float(time[-1]), float(time[0]), steps, dtype=torch.float64).flip(0)
    kept = [int((time - value).abs().argmin()) for value in wanted]
    if steps == 1:
        return [levels - 1]
    for i in range(1, steps):  # where whole levels are too coarse for the spacing, take neighbours
        kept[i] = max(kept[i], kept[i - 1] + 1)
    kept[-1] = levels - 1
    for i in range(steps - 2, -1, -1):
        kept[i] = min(kept[i], kept[i + 1] - 1)
    return kept


def descending(kept: Sequence[int]) -> list[int]:
    """The times of a sampler: the levels from noisiest to least noisy, then -1, the clean state.

    Example:
        >>> descending([0, 500, 999])
        [999, 500, 0, -1]
    """
    return [*reversed(kept), -1]


def _spread(length: int, count: int) -> list[int]:
    """`count` positions from 0 to length - 1."""
    stride = (length - 1) / (count - 1) if count > 1 else 1.0
    positions, at = [], 0.0
    for _ in range(count):
        positions.append(round(at))  # half to even
        at += stride  # OFFICIAL: summed, not multiplied, which rounds some positions differently
    return positions


def _strided(noise_levels: int, count: int) -> list[int]:
    """Every k-th level, `count` of them."""
    for stride in range(1, max(noise_levels, 2)):
        levels = range(0, noise_levels, stride)
        if len(levels) == count:
            return list(levels)
    raise ValueError(
        f"no stride picks exactly {count} of {noise_levels} noise levels; write {count} in place of 'ddim{count}'."
    )


def _count(text: str, steps: int | str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(
            f"steps {steps!r} cannot be read; give a number from 1, several with commas like '10,20', or 'ddim50'."
        )
    return int(text)


def _check_levels(noise_levels: int) -> None:
    if noise_levels < 1:
        raise ValueError(f"noise_levels is {noise_levels}; it must be at least 1.")


def _shortened(levels: list[int]) -> str:
    return str(levels) if len(levels) <= 8 else f"[{', '.join(map(str, levels[:4]))}, ... {levels[-1]}]"
