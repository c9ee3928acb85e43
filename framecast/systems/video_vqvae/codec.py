# SPDX-License-Identifier: Apache-2.0
"""Video VQ-VAE's tokenizer as a codec: its codes are whole numbers as they are; what each level tells; their use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from framecast.system import Code
from framecast.systems.video_vqvae.quantiser import perplexity
from framecast.systems.video_vqvae.tokenizer import Tokenizer
from framecast.video import Video


class CodesCodec:
    """Clips of the tokenizer's length to codes and back.

    Codes are dicts of `top` and `bottom`, int64 (B, steps, rows, columns).

    Args:
        tokenizer: in evaluation mode.

    Example:
        >>> from framecast.systems.video_vqvae.config import TokenizerConfig
        >>> config = TokenizerConfig(hidden=8, residual=4, codes=16, code_width=8)
        >>> codec = CodesCodec(Tokenizer(config, channels=1, size=(16, 16), frames=16).eval())
        >>> code = codec.encode(torch.zeros(1, 16, 1, 16, 16))
        >>> codec.bits(code), codec.stored(code) is code
        (576, True)
    """

    parts: tuple[str, ...] = ("tokenizer",)

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.frames = tokenizer.frames
        self.views: tuple[str, ...] = tokenizer.levels if len(tokenizer.levels) > 1 else ()

    def encode(self, video: Video) -> Code:
        """The codes of clips.

        Raises:
            ValueError: clips of another length or size than the tokenizer's.
        """
        return self.tokenizer.encode(video)

    def decode(self, code: Code) -> Video:
        """The clips of a code, in -1 to 1."""
        return self.tokenizer.decode(code)

    def stored(self, code: Code) -> Code:
        """The code itself."""
        return code

    def bits(self, code: Code) -> int:
        """Size of the code of one clip, with as many bits for each as the codebook's size needs."""
        each = math.ceil(math.log2(self.tokenizer.config.codes))
        return each * sum(tensor[0].numel() for tensor in code.values())

    def only(self, code: Code, view: str) -> Code:
        """The code without the other level, for which the decoder then sees zeros, as in training where it is masked.

        Args:
            code: of both levels.
            view: `top` or `bottom`.

        Raises:
            ValueError: no such level.
        """
        if view not in self.views:
            raise ValueError(f"{view!r} is no level of codes; choose of {', '.join(self.views) or 'none: it has one'}.")
        return {view: code[view]}

    def figures(self, codes: Sequence[Code]) -> dict[str, float]:
        """How evenly the codes of some clips use each codebook: its perplexity, by level."""
        found = {}
        for level in self.tokenizer.levels:
            hits = torch.bincount(torch.cat([code[level].flatten() for code in codes]))
            found[f"perplexity_{level}"] = float(perplexity(hits.double()))
        return found
