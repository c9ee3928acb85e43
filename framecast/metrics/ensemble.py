# SPDX-License-Identifier: Apache-2.0
"""Whether a forecast knows how uncertain it is: spread against error, ranks of the truth, diversity, modes, best of N.

All of them look at S samples of one future, (S, T, C, H, W), and most at the truth (T, C, H, W) beside them. Frames are
worked on one by one in float64, so that memory is bounded by one frame of all samples.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

_GATE = 0.95  # share of fresh true futures that are close enough to another one to find it
_EXACT = "donot_use_mm_for_euclid_dist"  # equal videos are at distance 0, not at the root of a rounding error


def spread_skill(
    samples: Num[Tensor, "s t c h w"], truth: Num[Tensor, "t c h w"]
) -> tuple[Float[Tensor, "t"], Float[Tensor, "t"]]:
    """Variance of the samples and squared error of their mean, frame by frame; equal on average if the truth is a draw.

    With the truth and S samples drawn from one law of variance v, the mean errs by v (1 + 1 / S) on average, its own
    scatter included. The unbiased variance, sum (x - mean)^2 / (S - 1), is therefore multiplied by (S + 1) / S, which
    makes the two comparable for every S.

    Args:
        samples: S >= 2 drawn futures.
        truth: what really followed.

    Returns:
        Spread and skill of each frame, averaged over its values, in squared units of the values. Average both over
        windows before dividing (`ratio`).

    Raises:
        ValueError: fewer than two samples, or a truth of another shape.

    Source: Fortin, Abaza, Anctil and Turcotte (2014), Why should ensemble spread match the RMSE of the ensemble mean?

    Example:
        >>> spread, skill = spread_skill(torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        >>> spread.item(), skill.item()
        (3.0, 1.0)
    """
    count = _count(samples, "spread", truth)
    spread, skill = [], []
    for made, true in zip(samples.unbind(1), truth):
        variance, mean = torch.var_mean(made.to(torch.float64), 0)
        spread.append(variance.mean() * (count + 1) / count)
        skill.append((mean - true).square().mean())
    return torch.stack(spread), torch.stack(skill)


def ratio(spread: Float[Tensor, "*t"], skill: Float[Tensor, "*t"]) -> float:
    """Root of mean spread over mean skill of `spread_skill`: 1 calibrated, below 1 too sure, above 1 too unsure.

    nan where there is neither; infinite where only the error is 0.

    Example:
        >>> ratio(torch.tensor([1.0, 3.0]), torch.tensor([8.0, 8.0]))
        0.5
    """
    return (spread.mean() / skill.mean()).sqrt().item()


def ranks(samples: Num[Tensor, "s t c h w"], truth: Num[Tensor, "t c h w"], *, seed: int) -> Int[Tensor, "n"]:
    """How many values of the truth have 0, 1, … S samples below them: flat if the truth is one more draw.

    A hump in the middle tells of too much spread, high ends of too little, a slope of a bias. Equal values, frequent in
    8 bits, share their ranks at random.

    Args:
        samples: S drawn futures.
        truth: what really followed.
        seed: of the random order among equal values; one seed gives one result.

    Returns:
        S + 1 counts; they add up to the number of values of the truth, and counts of windows may be added. Neighbouring
        pixels are not independent: judge flatness by windows, not by pixels.

    Raises:
        ValueError: no sample, or a truth of another shape.

    Source: Hamill (2001), Interpretation of rank histograms for verifying ensemble forecasts.

    Example:
        >>> samples = torch.tensor([1, 3, 5]).reshape(3, 1, 1, 1, 1)
        >>> ranks(samples, torch.tensor([4]).reshape(1, 1, 1, 1), seed=0).tolist()
        [0, 0, 1, 0]
    """
    count = _count(samples, "ranks", truth, least=1)
    rng = torch.Generator().manual_seed(seed)
    counts = torch.zeros(count + 1, dtype=torch.int64)
    for made, true in zip(samples.unbind(1), truth):
        below = (made < true).sum(0).cpu()
        equal = (made == true).sum(0).cpu()
        drawn = torch.rand(below.shape, generator=rng, dtype=torch.float64)
        rank = below + (drawn * (equal + 1)).long()
        counts += torch.bincount(rank.flatten(), minlength=count + 1)
    return counts


def diversity(samples: Num[Tensor, "s t c h w"]) -> Float[Tensor, "t"]:
    """How far samples are from one another: the root mean square difference of two, averaged over all pairs.

    Noise has the most of it, so read it beside the error.

    Args:
        samples: S >= 2 drawn futures.

    Returns:
        One value per frame, in the units of the values.

    Raises:
        ValueError: fewer than two samples.

    Example:
        >>> diversity(torch.tensor([0, 1, 2]).reshape(3, 1, 1, 1, 1)).item()
        1.3333333333333333
    """
    _count(samples, "diversity")
    frames = [torch.pdist(made.to(torch.float64).flatten(1)).mean() for made in samples.unbind(1)]
    return torch.stack(frames) / math.sqrt(samples[0, 0].numel())


def best_of(scores: Float[Tensor, "s t"], *, larger: bool) -> Float[Tensor, "t"]:
    """The curve of the one sample whose mean over frames is best; every metric chooses its own.

    The figure flatters: it falls with the number of samples even of a forecast that knows nothing, so it is to be named
    with that number (best of 100) and never set beside a mean over samples.

    Args:
        scores: of every sample and frame.
        larger: whether larger scores are better (PSNR, SSIM) or smaller ones (LPIPS).

    Returns:
        One value per frame.

    Raises:
        ValueError: no sample.

    Source: Denton and Fergus (2018), Stochastic video generation with a learned prior, section 4.

    Example:
        >>> best_of(torch.tensor([[1.0, 5.0], [4.0, 4.0]]), larger=True).tolist()
        [4.0, 4.0]
    """
    _count(scores, "the best of samples", least=1)
    means = scores.to(torch.float64).mean(1)
    return scores[means.argmax() if larger else means.argmin()]


def mode_coverage(samples: Num[Tensor, "s *shape"], futures: Num[Tensor, "m *shape"]) -> float:
    """How many different true futures the samples find, beside what as many fresh true futures find.

    Of M true futures, S are held out in turn. A video finds the one of the others nearest to it (root mean square
    difference), if it is no farther from it than 95 % of all held-out ones are from theirs. The different futures that
    the samples find are counted, and so are those that the held-out ones find; the ratio of both counts, summed over
    turns, is the coverage. True futures thus have 1 on average, one repeated sample about 1 / S, anything else 0.

    Each sample is asked for its nearest future, not each future for its nearest sample: the mean of all futures is
    nearer to each of them than they are to one another, and would cover them all. Blends of a few futures each still
    pass for some, so read it beside the spread.

    Args:
        samples: S drawn futures.
        futures: M >= 2 S independent true futures that continue the same frames.

    Returns:
        0 to about 1; that of single forecasts scatters above 1, so average over windows.

    Raises:
        ValueError: no sample, fewer true futures than twice the samples, or unlike shapes.

    Example:
        >>> left_or_right = torch.tensor([[-1.0], [1.0]]).repeat(4, 1)
        >>> mode_coverage(torch.tensor([[1.0], [-1.0]]), left_or_right)
        1.0
        >>> mode_coverage(torch.tensor([[1.0], [1.0]]), left_or_right)
        0.5
    """
    count, total = _count(samples, "mode coverage", least=1), len(futures)
    if samples.shape[1:] != futures.shape[1:]:
        raise ValueError(f"samples of shape {_shape(samples[0])} have no mode among futures of {_shape(futures[0])}.")
    if total < 2 * count:
        raise ValueError(f"mode coverage of {count} samples needs {2 * count} true futures at least, not {total}.")
    true, made = (videos.to(torch.float64).flatten(1) for videos in (futures, samples))
    apart, between = (torch.cdist(videos, true, compute_mode=_EXACT) for videos in (true, made))
    same = (apart == 0).int().argmax(1)  # the first of equal futures stands for all of them
    fresh: list[tuple[Tensor, Tensor]] = []  # of every turn: distances to the nearest others, and which these are
    ours: list[tuple[Tensor, Tensor]] = []
    for held_out in torch.arange(total // count * count, device=true.device).split(count):
        for distances, nearest in ((apart[held_out], fresh), (between, ours)):
            distance, at = distances.index_fill(1, held_out, math.inf).min(1)
            nearest.append((distance, same[at]))
    reached = torch.cat([distance for distance, _ in fresh]).sort().values
    gate = reached[math.ceil(_GATE * len(reached)) - 1]
    found, expected = (
        sum(len(which[distance <= gate].unique()) for distance, which in turns) for turns in (ours, fresh)
    )
    return found / expected


def _count(samples: Tensor, what: str, truth: Tensor | None = None, *, least: int = 2) -> int:
    """The number of samples, if there are enough and they have the shape of the truth."""
    if len(samples) < least:
        wanted = {1: "one sample", 2: "two samples"}[least]
        raise ValueError(f"{what} needs {wanted} at least; there {'is one' if len(samples) else 'are none'}.")
    if truth is not None and samples.shape[1:] != truth.shape:
        raise ValueError(f"samples of shape {_shape(samples[0])} cannot be judged by a truth of {_shape(truth)}.")
    return len(samples)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one value"
