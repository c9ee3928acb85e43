# SPDX-License-Identifier: Apache-2.0
"""The two priors: a conditioning stack and a gated PixelCNN each. Section 3.2, tables 4 to 6.

Codes of a clip are whole arrays, top (B, T, H, W) and bottom (B, 2T, 2H, 2W); the first top step and the first two
bottom slices are those of the known frames, encoded alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from framecast.draws import Draws
from framecast.systems.video_vqvae.conditioning import BottomCondition, TopCondition
from framecast.systems.video_vqvae.config import BottomPriorConfig, TopPriorConfig, VideoVQVAESampling
from framecast.systems.video_vqvae.incremental import draw
from framecast.systems.video_vqvae.pixelcnn import GatedPixelCNN
from framecast.systems.video_vqvae.quantiser import Codes

GIVEN = 1  # top steps of the known frames; twice as many bottom slices


class TopPrior(nn.Module):
    """Draws the top steps that follow the first.

    Args:
        config: sizes.
        codes: entries of the codebook.
        grid: steps, rows and columns of a clip's top codes.

    Source: section 3.2, tables 4 and 5.
    """

    def __init__(self, config: TopPriorConfig, *, codes: int, grid: tuple[int, int, int]):
        super().__init__()
        self.config = config
        steps, rows, columns = grid
        drawn = (steps - GIVEN, rows, columns)
        self.condition = TopCondition(config, codes=codes, steps=drawn[0])
        self.network = GatedPixelCNN(
            config, grid=drawn, codes=codes, condition=config.condition_hidden, past=(config.kernel - 1) // 2,
            vertical=config.vertical,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Rows of codes that it draws of a clip."""
        steps, rows, _ = self.network.grid
        return steps * rows

    def forward(self, top: Codes, bottom: Codes) -> Float[Tensor, "b k t y x"]:
        """Logits of the steps after the given one.

        Args:
            top: of a clip.
            bottom: of a clip; the given slices are read.
        """
        logits: Tensor = self.network(top[:, GIVEN:], self.condition(top[:, :GIVEN], bottom[:, : 2 * GIVEN]))
        return logits

    def draw(self, top: Codes, bottom: Codes, *, rng: Draws, options: VideoVQVAESampling) -> Codes:
        """The given top step and those drawn after it.

        Args:
            top: the given step.
            bottom: the given slices.
            rng: one row per clip.
            options: temperature and what cuts the distribution.
        """
        chances = rng.uniform((len(top), *self.network.grid)).to(top.device)
        with _as_it_is(top):
            drawn = draw(
                self.network, self.condition(top, bottom), chances, temperature=options.temperature,
                top_k=options.top_k, top_p=options.top_p,
            )  # fmt: skip
        return torch.cat([top, drawn.codes], dim=1)


class BottomPrior(nn.Module):
    """Draws bottom slices one after the other.

    Args:
        config: sizes.
        codes: entries of the codebook.
        grid: slices, rows and columns of a clip's bottom codes.
        top: whether there is a top level.

    Source: section 3.2, tables 4 and 6.
    """

    def __init__(self, config: BottomPriorConfig, *, codes: int, grid: tuple[int, int, int], top: bool):
        super().__init__()
        self.config, self.codes, self.slices = config, codes, grid[0]
        self.condition = BottomCondition(config, codes=codes, top=top, slices=grid[0])
        self.network = GatedPixelCNN(
            config, grid=(1, *grid[1:]), codes=codes, condition=config.condition_hidden, past=0, vertical="full"
        )

    @property
    def rows(self) -> int:
        """Rows of codes that it draws of a clip."""
        return (self.slices - self.first) * self.network.grid[1]

    @property
    def first(self) -> int:
        """The first slice that is drawn."""
        return 2 * GIVEN

    def past(self, bottom: Codes, n: Int64[Tensor, " b"]) -> Codes:
        """The slices before each clip's slice `n`, as many as the window; `codes` where there is none."""
        at = n[:, None] + torch.arange(-self.config.window, 0, device=n.device)
        rows = torch.arange(len(bottom), device=n.device)[:, None]
        return torch.where((at < 0)[:, :, None, None], self.codes, bottom[rows, at.clamp(min=0)])

    def forward(self, top: Codes | None, bottom: Codes, n: Int64[Tensor, " b"]) -> Float[Tensor, "b k t y x"]:
        """Logits of slice `n` of each clip, (B, K, 1, rows, columns).

        Args:
            top: of a clip; None: there is no such level.
            bottom: of a clip, slices from `n` on are read as what is to be learned only.
            n: which slice, 2 or later.
        """
        condition = self.condition(top, self.past(bottom, n), n)
        codes = bottom[torch.arange(len(bottom), device=n.device), n]
        logits: Tensor = self.network(codes[:, None], condition[:, :, None])
        return logits

    def draw(self, top: Codes | None, bottom: Codes, *, rng: Draws, options: VideoVQVAESampling) -> Codes:
        """The given slices and those drawn after them.

        Args:
            top: all steps.
            bottom: the given slices.
            rng: one row per clip.
            options: temperature and what cuts the distribution.
        """
        with _as_it_is(bottom):
            features = None if top is None else self.condition.top_features(top)
            for number in range(bottom.shape[1], self.slices):
                n = torch.full((len(bottom),), number, device=bottom.device)
                condition = self.condition.joined(features, self.past(bottom, n), n)[:, :, None]
                chances = rng.uniform((len(bottom), *self.network.grid)).to(condition.device)
                drawn = draw(
                    self.network, condition, chances, temperature=options.bottom_temperature,
                    top_k=options.bottom_top_k, top_p=options.bottom_top_p,
                )  # fmt: skip
                bottom = torch.cat([bottom, drawn.codes], dim=1)
        return bottom


def _as_it_is(codes: Codes) -> torch.autocast:
    """Drawing in the type of the weights, previews of a training in half precision too: caches hold one type."""
    return torch.autocast(codes.device.type, enabled=False)
