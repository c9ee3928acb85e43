# SPDX-License-Identifier: Apache-2.0
"""How likely Video VQ-VAE finds a clip: -log2 of the priors' probability of its codes, code by code, window by window.

-log2 p(top, bottom | codes of the given frames) is a sum over codes, top first, by the chain rule of section 3.2.
Nothing is estimated. It is no likelihood of pixels: the paper gives none, and neither do codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from framecast.system import Code, UnsupportedTask, Video, Window
from framecast.systems.video_vqvae.priors import GIVEN, BottomPrior, TopPrior
from framecast.systems.video_vqvae.tokenizer import Tokenizer
from framecast.video import Known


class CodesScorer:
    """Bits of every code of the frames that follow the given ones.

    Windows have the tokenizer's length. The first frames of a window are given, as codes of these frames alone; they
    are the last ones of the window before, whose own codes are others, so that windows compose as in `predict`.

    What is left at the end of a clip may be shorter than a window's new frames. With causal padding its window then
    begins earlier, and of its codes those of frames scored before are given as well: the top's before the first new
    one, the bottom's also. That is a probability of the new codes, too, but not the same as that under a longer clip.
    With `same` padding the codes of these earlier frames would tell of the new ones: all windows are whole there.

    Args:
        tokenizer: of the priors; all in evaluation mode.
        top: None where there is one level.
        bottom: the other prior.

    Source: sections 3.1 and 3.2.
    """

    of: Literal["codes"] = "codes"

    def __init__(self, tokenizer: Tokenizer, top: TopPrior | None, bottom: BottomPrior):
        self.tokenizer, self.top, self.bottom = tokenizer, top, bottom
        self.context, self.frames = 2 * GIVEN * tokenizer.stride[0], tokenizer.frames
        self.causal = tokenizer.config.temporal_padding == "causal"
        self.unit = tokenizer.given if self.causal else self.frames - self.context
        each = math.log2(tokenizer.config.codes)
        self.uniform: Mapping[str, float] = dict.fromkeys(tokenizer.levels, each)
        self.notes = self._notes()

    def _notes(self) -> tuple[str, ...]:
        if not self.causal:
            return (
                "codes see all frames of their window (temporal_padding same), so the bits tell in which window a clip "
                "is odd, not in which frame.",
            )
        if self.top is None:
            return ()
        return (
            "bits of a bottom code are given all top codes of its window, later ones too; those of the top tell when a "
            "clip turns odd.",
        )

    def windows(self, known: Sequence[bool]) -> list[Window]:
        """Windows that begin with given frames, or with those that an earlier one has scored.

        Raises:
            UnsupportedTask: known frames that are not the first ones, too few of them, or others in no whole `unit`.
        """
        given, length = sum(known), len(known)
        if not all(known[:given]) or given < self.context or (length - given) % self.unit or length < self.frames:
            raise UnsupportedTask(
                f"video_vqvae scores codes of clips of {self.frames} frames or more, {self.unit} at once, given the "
                f"first {self.context} or more: {given} of {length} are known."
            )
        windows = []
        while given < length:
            start = min(given - self.context, length - self.frames)
            frames = range(start, start + self.frames)
            windows.append(Window(tuple(frames), tuple(i < given for i in frames)))
            given = frames.stop
        return windows

    def calls(self, windows: Sequence[Window]) -> int:
        slices = sum(self._steps("bottom", window) for window in windows)
        return slices + (len(windows) if self.top else 0)

    def _steps(self, level: str, window: Window) -> int:
        """Steps of the window that are scored."""
        stride = self.tokenizer.stride[0] * (2 if level == "top" else 1)
        return (len(window.known) - sum(window.known)) // stride

    @torch.no_grad()
    def bits(self, frames: Video, known: Known) -> dict[str, Tensor]:
        """Bits of every code of the unknown frames, lower is likelier.

        Args:
            frames: the clip, all of its frames true.
            known: True = given, not scored; the first ones.

        Returns:
            By level, top first, (B, steps, rows, columns), float64 on the CPU.

        Raises:
            UnsupportedTask: as `windows`.
        """
        found: dict[str, list[Tensor]] = {level: [] for level in self.tokenizer.levels}
        for window in self.windows(known.tolist()):
            clip = frames[:, window.frames[0] : window.frames[-1] + 1]
            code = self.tokenizer.encode_after(clip, self.context)
            for level, bits in self._in_window(code, window).items():
                found[level].append(bits.cpu())
        return {level: torch.cat(several, dim=1) for level, several in found.items()}

    def _in_window(self, code: Code, window: Window) -> dict[str, Tensor]:
        top, bottom = code.get("top"), code["bottom"]
        found = {}
        if self.top is not None and top is not None:
            bits = surprise(self.top(top, bottom), top[:, GIVEN:])
            found["top"] = bits[:, -self._steps("top", window) :]
        slices = []
        for number in range(bottom.shape[1] - self._steps("bottom", window), bottom.shape[1]):
            n = torch.full((len(bottom),), number, device=bottom.device)
            slices.append(surprise(self.bottom(top, bottom, n), bottom[:, number : number + 1]))
        return {**found, "bottom": torch.cat(slices, dim=1)}


def surprise(logits: Float[Tensor, "b k *grid"], codes: Int64[Tensor, "b *grid"]) -> Float[Tensor, "b *grid"]:
    """-log2 of the probability of codes, float64.

    Example:
        >>> surprise(torch.zeros(1, 512, 1), torch.tensor([[7]]))
        tensor([[9.]], dtype=torch.float64)
    """
    chosen = logits.double().log_softmax(1).gather(1, codes[:, None]).squeeze(1)
    return -chosen / math.log(2)
