# SPDX-License-Identifier: Apache-2.0
"""Networks that turn a clip into numbers which sets of clips are compared by, and what must be told beside them.

A `FeatureNetwork` is made by `load_i3d` (`i3d_weights.py`) or `load_c3d` (`c3d.py`) from a file of the user's; nothing
is bundled. Features of the same clip differ with weights, batch-norm epsilon and resizing, so each of these is recorded
and is part of the key under which features may be kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_CPU = torch.device("cpu")
_AT_ONCE = {"cpu": 64, "cuda": 512}  # frames worked on together, whatever the length of clips; bounds memory


@dataclass(frozen=True)
class FeatureNetwork:
    """A network with its weights, and all that determines what it says about a clip."""

    name: str  # "i3d" or "c3d"
    sha256: str  # of the file of weights
    about: Mapping[str, Any]  # plain values for records: where eps came from, resizing, …
    frames: tuple[int | None, int | None]  # shortest and longest clip it takes; None: no bound
    width: int  # features per clip
    network: nn.Module  # uint8 (N, T, 3, H, W) to features (N, width)
    device: torch.device = _CPU

    @property
    def key(self) -> str:
        """16 hex digits that change with anything that determines the features."""
        told = json.dumps([self.name, self.sha256, dict(self.about)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def to(self, device: torch.device | str) -> FeatureNetwork:
        """The same on another device; its weights move there."""
        return replace(self, network=self.network.to(device), device=torch.device(device))

    @torch.no_grad()
    def features(self, clips: Tensor, progress: Callable[[int], None] | None = None) -> Tensor:
        """Features of every clip.

        Args:
            clips: uint8 (N, T, C, H, W); one channel is repeated three times. They may lie on any device.
            progress: called with the number of clips done so far.

        Returns:
            float64 (N, width) on the CPU.

        Raises:
            ValueError: not such clips, too short or too long ones, or a network that answers with something else.
        """
        self._check(clips)
        at_once = max(1, _AT_ONCE.get(self.device.type, 64) // clips.shape[1])
        found = []
        for done in range(0, len(clips), at_once):
            some = clips[done : done + at_once].to(self.device)
            with strict_float32():
                made = self.network(some.expand(-1, -1, 3, -1, -1))
            found.append(made.to("cpu").to(torch.float64))
            if progress is not None:
                progress(done + len(some))
        made = torch.cat(found) if found else torch.zeros(0, self.width, dtype=torch.float64)
        if made.shape != (len(clips), self.width):
            raise ValueError(
                f"the {self.name} network answers with shape {tuple(made.shape)} to {len(clips)} clips, expected "
                f"{(len(clips), self.width)}: its file is of another network."
            )
        if not bool(torch.isfinite(made).all()):
            raise ValueError(f"the {self.name} network answers with values that are not numbers: its file is damaged.")
        return made

    def _check(self, clips: Tensor) -> None:
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[2] not in (1, 3):
            dtype = str(clips.dtype).removeprefix("torch.")
            raise ValueError(
                f"{self.name} takes 8-bit clips (N, T, C, H, W) of 1 or 3 channels; these are {dtype} of shape "
                f"{tuple(clips.shape)}."
            )
        shortest, longest = self.frames
        frames = clips.shape[1]
        if shortest == longest and frames != shortest:
            raise ValueError(f"{self.name} takes clips of exactly {shortest} frames; these have {frames}.")
        if shortest is not None and frames < shortest:
            raise ValueError(f"{self.name} takes clips of {shortest} frames or more; these have {frames}.")
        if longest is not None and frames > longest:
            raise ValueError(f"{self.name} takes clips of at most {longest} frames; these have {frames}.")


@contextmanager
def strict_float32() -> Iterator[None]:
    """Products on GPUs keep all of float32's digits inside, so that features are those of a CPU to 1e-4.

    By default convolutions there round their factors to ten bits (TF32).
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
