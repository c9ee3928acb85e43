# SPDX-License-Identifier: Apache-2.0
"""A codebook that follows what is quantised by it: equations 1 and 3, and what the paper leaves out.

The averages of equation 3 start at one hit per code, counts are smoothed, and codes that nobody chooses may be put
elsewhere (README.md here tells why). Everything a resumed run needs is a buffer; what a step gathers is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from framecast.draws import Draws
from framecast.nn.blocks import widened
from framecast.nn.processes import of_first, summed

Latent: TypeAlias = Float[Tensor, "b d t y x"]
Codes: TypeAlias = Int64[Tensor, "b t y x"]

_ROWS = 1 << 16  # vectors whose distances to all codes are held at once


@dataclass(frozen=True)
class Quantised:
    """What a level passes on.

    Args:
        values: vectors of the chosen codes; the gradient passes as if they were the vectors that were quantised.
        codes: the choice.
        vectors: what was quantised.
    """

    values: Latent
    codes: Codes
    vectors: Latent

    def commitment(self) -> Latent:
        """Squared difference of the vectors from their codes', by element, in float32 at least.

        Its gradient goes to the vectors alone.
        """
        vectors = widened(self.vectors)
        return (vectors - self.values.detach().to(vectors)).square()


class Quantiser(nn.Module):
    """Vectors to the nearest of K codes.

    Args:
        codes: K.
        width: numbers of a vector, D.

    Example:
        >>> quantiser = Quantiser(codes=2, width=1)
        >>> quantiser.fill(torch.tensor([[-1.0], [1.0]]))
        >>> quantiser.nearest(torch.tensor([[0.2], [-3.0]])).tolist()
        [1, 0]

    Source: equations 1 and 3; van den Oord et al. 2017, appendix A.1.
    """

    for_training = ("sums",)  # buffers that nothing else reads: a copy of half the size may round them
    codebook: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, *, codes: int, width: int):
        super().__init__()
        self.register_buffer("codebook", torch.randn(codes, width))
        self.register_buffer("counts", torch.ones(codes))  # N of equation 3
        self.register_buffer("sums", self.codebook.clone())  # m of equation 3
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._hits: Tensor | None = None  # of this step so far: how often each code was chosen,
        self._total: Tensor | None = None  # the sum of the vectors that chose it,
        self._rows: Tensor | None = None  # and vectors of the last micro-batch

    def forward(self, z: Latent) -> Quantised:
        """The nearest codes; in training their use is kept for `update`."""
        rows = z.movedim(1, -1).reshape(-1, z.shape[1]).detach()
        chosen = self.nearest(rows)
        if self.training and torch.is_grad_enabled():
            self._gather(rows, chosen)
        codes = chosen.view(len(z), *z.shape[2:])
        values = self.lookup(codes).to(z.dtype)
        # z - z is 0, so that these are the codes' vectors to the last bit, as when decoding
        return Quantised(values + (z - z.detach()), codes, z)

    def nearest(self, rows: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The code nearest to each vector, in float32 at least: in half precision some would choose others."""
        with torch.autocast(rows.device.type, enabled=False):
            book = self.codebook
            # |z - e|² without |z|², which is the same for all codes
            squares = book.square().sum(1)
            parts = rows.to(book.dtype).split(_ROWS)
            return torch.cat([torch.addmm(squares, part, book.t(), alpha=-2.0).argmin(1) for part in parts])

    def lookup(self, codes: Codes) -> Latent:
        """The vectors of codes."""
        return self.codebook[codes].movedim(-1, 1)

    def fill(self, book: Float[Tensor, "k d"], *, average: Literal["ones", "debiased"] = "ones") -> None:
        """Begin with this codebook.

        Args:
            book: vectors of all codes.
            average: of hits and vectors: `ones` counts the codebook as one hit each; `debiased` begins with nothing,
                and divides by the share of the average that is there, which forgets the codebook at the first update.
        """
        self.codebook.copy_(book)
        self.counts.fill_(average == "ones")
        self.sums.copy_(self.codebook * self.counts[:, None])
        self.updates.zero_()

    def start(
        self,
        rows: Float[Tensor, "n d"],
        how: Literal["data", "normal", "uniform"],
        generator: torch.Generator,
        *,
        average: Literal["ones", "debiased"] = "ones",
    ) -> None:
        """The first codebook.

        Args:
            rows: vectors of the first batch, the same on every process.
            how: `data`: different rows at random, with a little noise where they are too few; `normal`: deviation 1;
                `uniform`: within 1/K around 0.
            generator: of the choice.
            average: see `fill`.
        """
        codes, width = self.codebook.shape
        if how == "normal":
            book = torch.randn(codes, width, generator=generator)
        elif how == "uniform":
            book = (2 * torch.rand(codes, width, generator=generator) - 1) / codes
        else:
            place = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(-(-codes // len(rows)))])
            book = rows[place[:codes].to(rows.device)].float().cpu()
            noise = torch.randn(codes, width, generator=generator) * (0.01 / math.sqrt(width))
            book[len(rows) :] += noise[len(rows) :]
        # rounding may differ between processes, codebooks must not
        self.fill(of_first(book.to(self.codebook)), average=average)

    @torch.no_grad()
    def update(
        self, *, decay: float, eps: float, restart: float = 0.0, rng: Draws | None = None,
        average: Literal["ones", "debiased"] = "ones",
    ) -> dict[str, Tensor]:  # fmt: skip
        """Move the codebook by what all processes gathered since the last update: equation 3.

        Args:
            decay: gamma.
            eps: added to each count, so that none is 0; 0 is the equation as printed.
            restart: codes with fewer hits on average than this share of the mean get a vector of the batch; 0: none do.
            rng: one row, of the choice of vectors.
            average: as given to `fill`.

        Returns:
            `perplexity` of the codes' use in this step, `used`: how many codes were chosen, `restarted`.
        """
        assert self._hits is not None and self._total is not None and self._rows is not None, "nothing was gathered"
        hits, total, rows = summed(self._hits), summed(self._total), self._rows
        self._hits = self._total = self._rows = None
        self.updates += 1
        self.counts.mul_(decay).add_(hits, alpha=1 - decay)
        self.sums.mul_(decay).add_(total, alpha=1 - decay)
        there = 1 - decay ** int(self.updates) if average == "debiased" else 1.0
        self.codebook.copy_((self.sums / there) / smoothed(self.counts / there, eps)[:, None])
        told = {"perplexity": perplexity(hits), "used": (hits > 0).sum()}
        if restart:
            assert rng is not None
            told["restarted"] = self._restart(rows, there * restart * hits.sum() / len(hits), rng)
        return told

    def _restart(self, rows: Tensor, least: Tensor, rng: Draws) -> Tensor:
        """Codes below `least` hits on vectors of the batch; with their averages, else the next update moves them back.

        Hits given anew are `least`, too.
        """
        dead = self.counts < least
        chance = rng.uniform((1, len(dead)))[0].to(rows.device)
        fresh = of_first(rows[(chance * len(rows)).long()].to(self.codebook))
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.counts.copy_(torch.where(dead, least.to(self.counts), self.counts))
        self.sums.copy_(torch.where(dead[:, None], fresh * self.counts[:, None], self.sums))
        return dead.sum()

    def _gather(self, rows: Tensor, chosen: Tensor) -> None:
        rows = rows.to(self.codebook.dtype)
        if self._hits is None or self._total is None:
            self._hits, self._total = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        self._hits += torch.bincount(chosen, minlength=len(self.counts))
        self._total.index_add_(0, chosen, rows)
        self._rows = rows


def smoothed(counts: Float[Tensor, " k"], eps: float) -> Float[Tensor, " k"]:
    """Counts of which none is 0, with the same sum: (N_i + eps) / (sum N + K eps) sum N."""
    total = counts.sum()
    return (counts + eps) * (total / (total + len(counts) * eps))


def perplexity(hits: Tensor) -> Tensor:
    """How many codes would be in use, were all that are chosen equally often: exp of the entropy of their shares.

    Args:
        hits: of each code.

    Example:
        >>> round(perplexity(torch.tensor([5.0, 5.0, 0.0])).item(), 3)
        2.0
    """
    shares = hits / hits.sum()
    return torch.exp(-(shares * (shares + 1e-10).log()).sum())
