# SPDX-License-Identifier: Apache-2.0
"""PVDM's autoencoder as a codec of clips of any length, and what is left of a clip in some of its planes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from framecast.systems.pvdm.autoencoder import PLANES, Autoencoder, Planes
from framecast.video import Video

LEVELS = 255  # of a latent value kept in 8 bits, less one


class PlanesCodec:
    """Clips to planes and back, piece by piece of the autoencoder's clip length.

    Codes are dicts of `xy`, `yt` and `xt`, (B, pieces, C, ...), float32 in -1 to 1 or uint8, and `frames`, the length
    of the clip. Where the last piece is not full it begins earlier, and of its frames only the last are used.

    Args:
        autoencoder: in evaluation mode.
    """

    views = ("xy", "motion")

    def __init__(self, autoencoder: Autoencoder):
        self.autoencoder = autoencoder

    def encode(self, video: Video) -> dict[str, Tensor]:
        """The code of clips.

        Raises:
            ValueError: clips shorter than the autoencoder's, or of another size.
        """
        frames, length = video.shape[1], self.autoencoder.frames
        if frames < length:
            raise ValueError(
                f"the clip has {frames} frames, the autoencoder encodes {length} at once: give a longer clip."
            )
        pieces = [self.autoencoder.encode(video[:, start : start + length]) for start in _starts(frames, length)]
        code = {name: torch.stack([getattr(piece, name) for piece in pieces], dim=1) for name in PLANES}
        return {"frames": torch.tensor(frames), **code}

    def decode(self, code: dict[str, Tensor]) -> Video:
        """The clips of a code, in -1 to 1."""
        frames, length = int(code["frames"]), self.autoencoder.frames
        planes = {name: _values(code[name]) for name in PLANES}
        made: list[Tensor] = []
        for k, start in enumerate(_starts(frames, length)):
            piece = self.autoencoder.decode(Planes(**{name: plane[:, k] for name, plane in planes.items()}))
            made.append(piece[:, k * length - start :])
        return torch.cat(made, dim=1)

    def bits(self, code: dict[str, Tensor]) -> float:
        """Size of the code of one clip, per frame of the clip."""
        sizes = [code[name][0].numel() * code[name].element_size() * 8 for name in PLANES]
        return sum(sizes) / int(code["frames"])

    def values(self, code: dict[str, Tensor]) -> int:
        """Numbers in the code of one clip."""
        return sum(code[name][0].numel() for name in PLANES)

    def in_bytes(self, code: dict[str, Tensor]) -> dict[str, Tensor]:
        """The code with one byte per value: the nearest of 256 steps from -1 to 1."""
        kept: dict[str, Tensor] = {name: ((code[name] + 1) * (LEVELS / 2)).round().to(torch.uint8) for name in PLANES}
        return {**code, **kept}

    def only(self, code: dict[str, Tensor], view: str) -> dict[str, Tensor]:
        """The code without what the other planes carry.

        Args:
            code: of floats.
            view: `xy`: the planes with a time axis stand still, at their mean over time; `motion`: the plane without
                one is flat, its mean over all places.

        Raises:
            ValueError: no such view.
        """
        if view not in self.views:
            raise ValueError(f"{view!r} is no set of planes; choose of {', '.join(self.views)}.")
        flat: dict[str, tuple[int, ...]] = {"yt": (-2,), "xt": (-2,)} if view == "xy" else {"xy": (-2, -1)}
        means = {name: code[name].mean(axes, keepdim=True).expand_as(code[name]) for name, axes in flat.items()}
        return {**code, **means}


def _starts(frames: int, length: int) -> list[int]:
    """First frames of the pieces.

    Example:
        >>> _starts(40, 16)
        [0, 16, 24]
    """
    return [min(k * length, frames - length) for k in range(math.ceil(frames / length))]


def _values(plane: Tensor) -> Tensor:
    return plane.float() * (2 / LEVELS) - 1 if plane.dtype == torch.uint8 else plane
