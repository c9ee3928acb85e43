# SPDX-License-Identifier: Apache-2.0
"""PVDM's autoencoder as a codec: planes as floats, planes in bytes, and what some of the planes tell of a clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from framecast.system import Code
from framecast.systems.pvdm.autoencoder import PLANES, Autoencoder, Planes
from framecast.video import Video

LEVELS = 255  # of a latent value kept in 8 bits, less one


class PlanesCodec:
    """Clips of the autoencoder's length to planes and back.

    Codes are dicts of `xy`, `yt` and `xt`, (B, C, ...), float32 in -1 to 1 or uint8.

    Args:
        autoencoder: in evaluation mode.

    Example:
        >>> from framecast.systems.pvdm.config import AutoencoderConfig
        >>> config = AutoencoderConfig(width=8, patch=4, depth=1, heads=1, head_width=8, plane_depth=1)
        >>> codec = PlanesCodec(Autoencoder(config, channels=1, size=(8, 8), frames=4))
        >>> code = codec.encode(torch.zeros(1, 4, 1, 8, 8))
        >>> codec.bits(code), codec.stored(code)["xt"].dtype
        (640, torch.uint8)
    """

    parts: tuple[str, ...] = ("autoencoder",)
    views: tuple[str, ...] = ("xy", "motion")

    def __init__(self, autoencoder: Autoencoder):
        self.autoencoder = autoencoder
        self.frames = autoencoder.frames

    def encode(self, video: Video) -> Code:
        """The planes of clips.

        Raises:
            ValueError: clips of another length or size than the autoencoder's.
        """
        planes = self.autoencoder.encode(video)
        return {name: getattr(planes, name) for name in PLANES}

    def decode(self, code: Code) -> Video:
        """The clips of a code, in -1 to 1."""
        values = {name: code[name].float() for name in PLANES}
        if code["xy"].dtype == torch.uint8:
            values = {name: plane * (2 / LEVELS) - 1 for name, plane in values.items()}
        return self.autoencoder.decode(Planes(**values))

    def stored(self, code: Code) -> Code:
        """The code with one byte per value: the nearest of 256 steps from -1 to 1."""
        return {name: ((code[name] + 1) * (LEVELS / 2)).round().to(torch.uint8) for name in PLANES}

    def bits(self, code: Code) -> int:
        """Size of the stored code of one clip."""
        return 8 * sum(code[name][0].numel() for name in PLANES)

    def only(self, code: Code, view: str) -> Code:
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

    def figures(self, codes: Sequence[Code]) -> dict[str, float]:
        """None: size and quality tell all."""
        return {}
