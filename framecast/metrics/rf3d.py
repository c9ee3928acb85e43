# SPDX-License-Identifier: Apache-2.0
"""`rf3d-v1`: how far two sets of clips lie apart by the features of fixed random filters; no weights file is needed.

Appearance (frames one by one) and motion (differences of neighbouring frames) are two networks and two figures, so that
neither hides the other. Filters come from a formula (`hash_fill.py`), so that everyone has the same. Randomly
initialised networks rank generators sensibly (Naeem et al., 2020, section 5; Lee, Kim and Lee, 2022), but these figures
are blind to meaning, time reversed barely moves them, and their scale is that of these filters: they rank runs on one
data set with one number of clips, and are no published metric.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from torch import Tensor, nn

from framecast.metrics.distribution import density_coverage, frechet_of
from framecast.metrics.hash_fill import fill, uniform

NAME = "rf3d-v1"
PARTS = ("appearance", "motion")
LENGTH = 160  # features of each part: channels of its three layers
SIDE = 64  # of the frames the filters see
NEIGHBOURS = 5  # of density and coverage
_STILL = 1e-6  # features that differ less do so by rounding
_TINY = 1e-8  # added to standard deviations
_FRAMES = 128  # of one batch
_PIXELS = 2**23  # of one batch before it is resized


class RF3D(nn.Module):
    """The two networks of random filters, three convolutions each.

    Example:
        >>> clips = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 1, 8, 8)
        >>> {part: tuple(x.shape) for part, x in RF3D().features(clips).items()}
        {'appearance': (2, 160), 'motion': (2, 160)}
    """

    key = NAME  # what features are kept under; the name says all that determines them
    frames = (2, None)  # shortest and longest clip

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv2d(3, 32, 5, stride=2, padding=2)
        frame = [nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.Conv2d(64, 64, 3, stride=2, padding=1)]
        motion = [
            nn.Conv3d(3, 32, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
            nn.Conv3d(32, 64, 3, stride=2, padding=1),
            nn.Conv3d(64, 64, 3, stride=2, padding=1),
        ]
        self.app, self.mot = nn.ModuleList([first, *frame]), nn.ModuleList(motion)
        self.requires_grad_(False)
        fill(self, prefix=f"{NAME}/")
        u = torch.from_numpy(uniform(f"{NAME}/app.0.weight", first.weight.numel())).view(first.weight.shape)
        u *= math.sqrt(6.0 / u[0].numel())
        u[16:] -= u[16:].mean((2, 3), keepdim=True)  # these filters see no brightness
        first.weight.copy_(u)

    @torch.no_grad()
    def features(self, clips: UInt8[Tensor, "n t c h w"]) -> dict[str, Float64[Tensor, "n 160"]]:
        """Features of 8-bit clips, computed in small batches.

        Args:
            clips: grey or RGB, of two frames or more; frames that are not 64×64 are resized.

        Returns:
            `appearance` and `motion`, on the CPU.

        Raises:
            ValueError: clips of one frame, or of another number of channels.
        """
        _, length, channels, _, _ = clips.shape
        if length < 2:
            raise ValueError(f"{NAME} sees motion between frames; clips of {length} frame have none, give 2 or more.")
        if channels not in (1, 3):
            raise ValueError(f"{NAME} takes grey or RGB clips; these have {channels} channels.")
        device = next(self.parameters()).device
        found: dict[str, list[Tensor]] = {part: [torch.zeros(0, LENGTH)] for part in PARTS}
        # on CUDA convolutions round to ten bits by default (TF32); features that hardly vary would show it
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for batch in clips.split(max(1, _FRAMES // length)):
                x = _scaled(batch).to(device)
                found["appearance"].append(_means(self.app, x.flatten(0, 1)).unflatten(0, (-1, length)).mean(1).cpu())
                found["motion"].append(_means(self.mot, x.diff(dim=1).transpose(1, 2)).cpu())
        return {part: torch.cat(batches).double() for part, batches in found.items()}


def _scaled(clips: Tensor) -> Tensor:
    """Bytes as RGB in [-1, 1], 64×64."""
    n, t, c, height, width = clips.shape
    frames = clips.flatten(0, 1)
    if (height, width) != (SIDE, SIDE):
        parts = frames.split(max(1, _PIXELS // (c * height * width)))
        frames = torch.cat([F.interpolate(x.float(), (SIDE, SIDE), mode="bilinear", antialias=True) for x in parts])
    return (frames / 127.5 - 1).expand(-1, 3, -1, -1).unflatten(0, (n, t))


def _means(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Mean of each channel after each layer."""
    means = []
    for layer in layers:
        x = layer(x).relu_()
        means.append(x.flatten(2).mean(2))
    return torch.cat(means, dim=1)


def scores(
    real: dict[str, Float64[Tensor, "n 160"]], fake: dict[str, Float64[Tensor, "m 160"]]
) -> dict[str, dict[str, float]]:
    """The figures of each part.

    Features are first shifted and scaled so that the reference has mean 0 and standard deviation 1 in each.

    Args:
        real: features of the reference.
        fake: of the clips judged.

    Returns:
        For `appearance` and `motion`: `frechet`, the Fréchet distance over the number of features (around 0 for equal
        laws, of order 1 where the difference is plain; too high for few clips, so compare with that of two halves of
        the reference), `density` and `coverage`, and `silent`: how many features do not
        vary in the reference, but are another in the clips judged. Any at all makes the distance huge, whatever else is
        equal: few clips, or still ones, do not tell how much such a feature matters.

    Raises:
        ValueError: no more than five clips in the reference, fewer than two judged, or features that are not finite.

    Example:
        >>> x = {part: torch.randn(200, 160, dtype=torch.float64) for part in PARTS}
        >>> scores(x, x)["motion"]["coverage"]
        1.0
    """
    told = {}
    for part in PARTS:
        x, y = real[part], fake[part]
        density, coverage = density_coverage(*scaled(x, y), k=NEIGHBOURS)
        told[part] = {"frechet": distance(x, y), "density": density, "coverage": coverage, "silent": silent(x, y)}
    return told


def distance(real: Float64[Tensor, "n 160"], fake: Float64[Tensor, "m 160"]) -> float:
    """The figure `frechet` of one part, for two clips or more on each side."""
    return frechet_of(*scaled(real, fake)) / LENGTH


def scaled(
    real: Float64[Tensor, "n 160"], fake: Float64[Tensor, "m 160"]
) -> tuple[Float64[Tensor, "n 160"], Float64[Tensor, "m 160"]]:
    """Features of one part, shifted and scaled so that the reference has mean 0 and standard deviation 1 in each."""
    if len(real) < 2:
        raise ValueError(f"{NAME} needs two clips or more in the reference; there is {len(real)}.")
    mean, deviation = real.mean(0), real.std(0) + _TINY
    return (real - mean) / deviation, (fake - mean) / deviation


def silent(real: Float64[Tensor, "n 160"], fake: Float64[Tensor, "m 160"]) -> int:
    """How many features of one part do not vary in the reference, but are another in the clips judged."""
    still = real.std(0) + _TINY < _STILL
    return int((still & ((fake - real.mean(0)).abs().amax(0) > _STILL)).sum())
