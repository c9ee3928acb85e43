# SPDX-License-Identifier: Apache-2.0
"""How far two sets of clips lie apart, once a network has turned each clip into a vector of features.

Nothing here knows the network: Fréchet distance (Unterthiner et al., 2018, section 3), kernel distance (Bińkowski et
al., 2018, section 4), density and coverage (Naeem et al., 2020, section 3), precision and recall (Kynkäänniemi et al.,
2019, section 2), Inception Score (Salimans et al., 2016, section 4), distance to the nearest of a reference. All in
float64, with memory bounded for any number of clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, Num
from torch import Tensor

_CELLS = 2**22  # of a block of distances or of a block of values in float64: 32 MiB


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features, of any number of clips seen one batch after another.

    Sums are kept around the mean, so that nothing is lost where features lie far from zero, and merging in any order
    agrees to rounding. Moments of no clip at all merge as well.

    Example:
        >>> parts = Moments.of(torch.tensor([[0.0], [2.0]])), Moments.of(torch.tensor([[4.0]]))
        >>> whole = parts[0].merge(parts[1])
        >>> whole.count, whole.mean.tolist(), whole.covariance().tolist()
        (3, [2.0], [[4.0]])
    """

    count: int
    mean: Float64[Tensor, "d"]
    scatter: Float64[Tensor, "d d"]  # sum of (x - mean) (x - mean)'

    @classmethod
    def of(cls, features: Num[Tensor, "n d"]) -> Moments:
        """Moments of n clips.

        Raises:
            ValueError: a value that is not finite.
        """
        x = _finite(features)
        mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of the clips of both.

        Raises:
            ValueError: features of different lengths.
        """
        _same_length(len(self.mean), len(other.mean))
        count = self.count + other.count
        gap = other.mean - self.mean
        share = other.count / count if count else 0.0
        between = self.count * share * torch.outer(gap, gap)
        return Moments(count, self.mean + share * gap, self.scatter + other.scatter + between)

    def covariance(self, *, ddof: int = 1) -> Float64[Tensor, "d d"]:
        """Covariance matrix, the scatter over count - ddof.

        Raises:
            ValueError: no more clips than `ddof`.
        """
        return self.scatter / _freedom(self.count, ddof)


def frechet(
    mean1: Float[Tensor, "d"], cov1: Float[Tensor, "d d"], mean2: Float[Tensor, "d"], cov2: Float[Tensor, "d d"]
) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two normal distributions.

    |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). With any factors S = F' F the last trace is the sum of the singular
    values of F1 F2', which needs no root of a matrix that is not symmetric; factors come from the eigenvectors of each
    covariance, negative eigenvalues (rounding) taken as zero. The error is about 1e-14 of the covariances, and 1e-8
    where they have no full rank; `frechet_of` keeps 1e-14 there, too.

    Args:
        mean1: of the first distribution.
        cov1: its covariance.
        mean2: of the second.
        cov2: its covariance.

    Source: Dowson and Landau (1982); Unterthiner et al. (2018), equation 1.

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> round(frechet(torch.zeros(2), one, torch.ones(2), 4 * one), 12)
        4.0
    """
    gap = mean1.double() - mean2.double()
    return _between(gap, _factor(cov1.double()), _factor(cov2.double()))


def frechet_of(x: Num[Tensor, "n d"], y: Num[Tensor, "m e"], *, ddof: int = 1) -> float:
    """Squared Fréchet distance of two sets of features, exact for fewer clips than features, too.

    Centred features over sqrt(N - ddof) are factors of the covariances, as `frechet` needs them, and a QR decomposition
    leaves no more than d rows of them; no covariance is formed, and no root of rounding errors is taken.

    Args:
        x: features of the first set.
        y: of the second, of as many dimensions.
        ddof: 1 divides by N - 1; 0 by N, as StyleGAN-V's protocol does.

    Raises:
        ValueError: too few clips, a value that is not finite, or features of different lengths.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> round(frechet_of(x, 3 * x + 1, ddof=0), 12)
        5.0
    """
    x, y = _pair(x, y)
    factors = []
    for part in (x, y):
        factor = (part - part.mean(0)) / _freedom(len(part), ddof) ** 0.5
        factors.append(torch.linalg.qr(factor, mode="r").R if len(factor) > factor.shape[1] else factor)
    return _between(x.mean(0) - y.mean(0), *factors)


def _factor(covariance: Tensor) -> Tensor:
    """A matrix F with F' F = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def _between(gap: Tensor, a: Tensor, b: Tensor) -> float:
    """The distance, of covariances a' a and b' b; rounding may not make it negative."""
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, (gap.square().sum() + a.square().sum() + b.square().sum() - 2 * cross).item())


def kernel_distance(x: Num[Tensor, "n d"], y: Num[Tensor, "m e"]) -> float:
    """Squared maximum mean discrepancy with the kernel (x · y / d + 1)³, unbiased: zero on average for equal laws.

    Pairs of a clip with itself are left out, so that it may come out negative and does not depend on the number of
    clips as the Fréchet distance does.

    Args:
        x: features of the first set.
        y: of the second, of as many dimensions.

    Raises:
        ValueError: fewer than two clips in a set, a value that is not finite, or features of different lengths.

    Source: Bińkowski et al. (2018), section 4.

    Example:
        >>> kernel_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]]))
        7.0
    """
    x, y = _pair(x, y)
    within = 0.0
    for part in (x, y):
        own = _cubed(part.square().sum(1), part.shape[1]).sum().item()
        within += (_kernel_sum(part, part) - own) / (len(part) * _freedom(len(part), 1))
    return within - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _cubed(product: Tensor, length: int) -> Tensor:
    return (product / length + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """Sum of the kernel over all pairs."""
    return sum(_cubed(x[rows] @ y.T, x.shape[1]).sum().item() for rows in _blocks(len(x), len(y)))


def density_coverage(real: Num[Tensor, "n d"], fake: Num[Tensor, "m e"], *, k: int = 5) -> tuple[float, float]:
    """Whether clips lie where real ones do (density), and whether real ones are met (coverage).

    Around every real clip lies the ball that reaches to its k-th nearest real neighbour. Density is the number of
    balls that a fake clip lies in, over k, on average: 1 for equal laws, more where fakes crowd in the dense places.
    Coverage is the share of balls with a fake clip inside, at most 1: about 1 - 2^-k for equal laws and numbers. The
    rim belongs to the ball, so that data with duplicates cover themselves.

    Args:
        real: features of the reference.
        fake: of the clips judged, of as many dimensions.
        k: which neighbour the balls reach to.

    Returns:
        Density and coverage.

    Raises:
        ValueError: no more than k real clips, no fake one, a value that is not finite, or different lengths.

    Source: Naeem et al. (2020), equations 3 and 4.

    Example:
        >>> line = torch.arange(8.0)[:, None]
        >>> density_coverage(line, line[:4] + 0.5, k=1)
        (2.0, 0.625)
    """
    real, fake = _pair(real, fake, fewest=1)
    per_ball, _ = _inside(real, _radii(real, k), fake)
    return per_ball.sum().item() / (k * len(fake)), (per_ball > 0).double().mean().item()


def precision_recall(real: Num[Tensor, "n d"], fake: Num[Tensor, "m e"], *, k: int = 5) -> tuple[float, float]:
    """Share of fake clips among the real ones (precision), and of real clips among the fake ones (recall).

    A set's region is the union of balls around its clips, each reaching to the k-th nearest neighbour of its own set.

    Args:
        real: features of the reference.
        fake: of the clips judged, of as many dimensions.
        k: which neighbour the balls reach to.

    Returns:
        Precision and recall, each in 0 to 1.

    Raises:
        ValueError: no more than k clips in a set, a value that is not finite, or different lengths.

    Source: Kynkäänniemi et al. (2019), equations 1 and 2.

    Example:
        >>> line = torch.arange(8.0)[:, None]
        >>> precision_recall(line, line[:4] + 0.5, k=1)
        (1.0, 0.625)
    """
    real, fake = _pair(real, fake, fewest=1)
    precision, recall = (
        (_inside(centres, _radii(centres, k), points)[1] > 0).double().mean().item()
        for centres, points in ((real, fake), (fake, real))
    )
    return precision, recall


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, pair by pair: equal points are at 0, and a pair has the same distance in every block."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of every point to its k-th nearest other one."""
    if k < 1:
        raise ValueError(f"k is {k}; it counts nearest neighbours, give 1 or more.")
    if len(points) <= k:
        raise ValueError(
            f"{_clips(len(points))} have no neighbour number {k}; give {k + 1} or more (better hundreds), or a lower k."
        )
    # of its own set, the nearest point of all is the point itself
    blocks = _blocks(len(points), len(points))
    return torch.cat([_distances(points[rows], points).kthvalue(k + 1, dim=1).values for rows in blocks])


def _inside(centres: Tensor, radii: Tensor, points: Tensor) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "m"]]:
    """How many points each ball holds, and how many balls hold each point."""
    per_ball = torch.zeros(len(centres), dtype=torch.int64, device=centres.device)
    per_point = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for rows in _blocks(len(points), len(centres)):
        held = _distances(points[rows], centres) <= radii
        per_ball += held.sum(0)
        per_point[rows] = held.sum(1)
    return per_ball, per_point


def inception_score(probabilities: Float[Tensor, "n k"], *, splits: int, eps: float = 0.0) -> Float64[Tensor, "splits"]:
    """Inception Score of consecutive parts of a set of clips, from what a classifier says of each.

    exp of the mean of KL(p(y|x) ‖ p(y)), where p(y) is the mean of p(y|x) within the part. At most the number of
    classes. It grows with the number of clips per part: compare equal numbers only.

    Args:
        probabilities: of k classes for each of n clips.
        splits: number of parts; part i holds rows i n // splits to (i + 1) n // splits.
        eps: added to every probability (1e-20 in TGANv2's code); with 0 a probability of zero adds nothing, its limit.

    Returns:
        A score per part; publications give their mean and population standard deviation.

    Raises:
        ValueError: fewer clips than parts, or a value that is not finite.

    Source: Salimans et al. (2016), section 4.

    Example:
        >>> inception_score(torch.eye(3, dtype=torch.float64).repeat(2, 1), splits=2)
        tensor([3.0000, 3.0000], dtype=torch.float64)
    """
    p = _finite(probabilities) + eps
    if not 1 <= splits <= len(p):
        raise ValueError(f"an Inception Score of {splits} splits needs as many clips; there are {_clips(len(p))}.")
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))).sum(1)
        scores.append(divergence.mean().exp())
    return torch.stack(scores)


def nearest_distance(samples: Num[Tensor, "n d"], reference: Num[Tensor, "m e"]) -> Float64[Tensor, "n"]:
    """Euclidean distance of every sample to the nearest of a reference; near zero where a model has memorised.

    Features or pixels of whole clips; both may stay uint8, since float64 copies are made block by block.

    Args:
        samples: what is judged.
        reference: for example the windows a model was trained on, of as many dimensions.

    Raises:
        ValueError: an empty reference, or rows of different lengths.

    Example:
        >>> nearest_distance(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([[3.0, 4.0], [9.0, 9.0]])).tolist()
        [5.0, 0.0]
    """
    _same_length(samples.shape[1], reference.shape[1])
    if not len(reference):
        raise ValueError("the reference is empty; there is nothing to be near to.")
    rows = list(_blocks(len(reference), max(1, reference.shape[1])))
    found = []
    for few in _blocks(len(samples), max(1, samples.shape[1])):
        x = samples[few].double()
        nearest, least = torch.zeros(len(x), dtype=torch.int64, device=x.device), torch.full_like(x[:, 0], torch.inf)
        for part in rows:
            y = reference[part].double()
            # |y|² - 2 x y orders references as the distance does; the distance of the nearest is taken exactly
            value, index = (y.square().sum(1) - 2 * x @ y.T).min(1)
            nearest = torch.where(value < least, index + part.start, nearest)
            least = torch.minimum(value, least)
        found.append((x - reference[nearest].double()).square().sum(1).sqrt())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows, so many at once that a block with these columns stays small."""
    step = max(1, _CELLS // max(1, columns))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _finite(features: Tensor) -> Tensor:
    """As float64, finite throughout."""
    x = features.double()
    wrong = (~torch.isfinite(x)).any(1)
    if wrong.any():
        first = wrong.nonzero()[0].item()
        raise ValueError(f"features of clip {first} are not finite; look at that clip, and at the network's weights.")
    return x


def _pair(x: Tensor, y: Tensor, *, fewest: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of features that can be compared."""
    _same_length(x.shape[1], y.shape[1])
    if min(len(x), len(y)) < fewest:
        raise ValueError(
            f"{_clips(len(x))} against {_clips(len(y))}: such a comparison needs at least {fewest} on each side, "
            "and hundreds to mean much."
        )
    return _finite(x), _finite(y)


def _same_length(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"features of {first} and of {second} numbers cannot be compared: take one network for both.")


def _freedom(count: int, ddof: int) -> int:
    if count <= ddof:
        raise ValueError(f"a covariance with ddof {ddof} of {_clips(count)} is undefined; give more clips.")
    return count - ddof


def _clips(count: int) -> str:
    return f"{count} clip" if count == 1 else f"{count} clips"
