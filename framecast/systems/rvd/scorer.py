# SPDX-License-Identifier: Apache-2.0
"""How likely RVD finds the frames of a clip: the bound of appendix C, frame after frame.

-log2 p(x_1 ... x_T | x_0) is the sum over frames of -log2 p(x_t | frames before t), and each of those is at most the
variational bound of the residual y_0 = (x_t - mu) / sigma, Eq. A1, with mu and the contexts of the true frames before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from framecast.diffusion.bound import BINS, bound
from framecast.diffusion.sampling import Denoise
from framecast.diffusion.schedule import Schedule, descending, snr_levels
from framecast.draws import Draws
from framecast.system import UnsupportedTask, Video, Window
from framecast.systems.rvd.config import RVDConfig, RVDSampling
from framecast.video import Known

LEVELS = 40  # visited unless told otherwise
NO_SIGNAL = 1e-4  # an alpha_bar at which a state is nearly the prior


class Forecaster(Protocol):
    """What scoring uses of RVD, whose file imports this one."""

    config: RVDConfig
    options: RVDSampling
    schedule: Schedule

    def read(self, frames: Video, seen: Any = None) -> Any: ...
    def denoise(self, context: Sequence[Tensor], options: RVDSampling) -> Denoise: ...


class BoundScorer:
    """Bits of every frame given all true frames before it; what comes after a frame has no part in its bits.

    All terms of Eq. A1 count, the first one too, which the paper drops for training. DEVIATES: the variance of a
    reverse step is not the fixed gamma of Eq. A4 but fitted to its state, which bounds better (`diffusion.bound`); and
    a frame is known to within a bin, so that the last term, Eq. A2, is a probability in place of a density.

    Args:
        system: whose networks and clamp are used.
    """

    of: Literal["pixels"] = "pixels"
    context = 1  # mu and the contexts of the first frame would be made of nothing

    def __init__(self, system: Forecaster):
        self.system = system
        self.telling = telling_levels(system.schedule, system.config.sigma)
        self.most_levels = len(self.telling)
        self.levels = min(LEVELS, self.most_levels)

    def windows(self, known: Sequence[bool]) -> list[Window]:
        """One window per unknown frame; those before it reach it through the recurrent states.

        Raises:
            UnsupportedTask: known frames that are not the first ones, or none.
        """
        given = sum(known)
        if not given or not all(known[:given]):
            raise UnsupportedTask(
                "rvd scores every frame given all frames before it, so known frames must be the first ones, at "
                f"least 1: {given} of {len(known)} are known, "
                + ("and they are not the first." if given else "so the first has none before it.")
            )
        return [Window((i,), (False,)) for i in range(given, len(known))]

    def calls(self, windows: Sequence[Window], levels: int) -> int:
        readers = 1 + (self.system.config.prediction == "network")
        return len(windows) * (readers + levels)

    @torch.no_grad()
    def bits(self, frames: Video, known: Known, *, rng: Draws, levels: int | None = None) -> Tensor:
        """Bits per dimension of every unknown frame, lower is likelier.

        Args:
            frames: the clip, all of its frames true.
            known: True = given, not scored.
            rng: one row per clip.
            levels: noise levels visited, evenly spaced in the log signal-to-noise ratio over those that tell
                something (`telling_levels`); None: `self.levels`.

        Returns:
            (B, unknown frames), float64 on the CPU.

        Raises:
            UnsupportedTask: known frames that are not the first ones, or none.

        Source: Eq. A1.
        """
        system, sigma = self.system, self.system.config.sigma
        process = system.schedule.respace(self.telling)
        kept = snr_levels(process, self.levels if levels is None else levels)
        times = descending([self.telling[i] for i in kept])
        found = torch.zeros(len(frames), int((~known).sum()), dtype=torch.float64)
        unread, seen = int(known.sum()), None
        for place, window in enumerate(self.windows(known.tolist())):
            (at,) = window.frames
            seen = system.read(frames[:, at - unread : at], seen)
            unread = 1
            y_0 = (frames[:, at] - seen.mu) / sigma
            bits = bound(
                system.denoise(seen.context, system.options),
                system.schedule,
                y_0,
                times,
                rng=rng,
                shift=seen.mu,
                scale=sigma,
            )
            found[:, place] = bits.mean(dim=(1, 2, 3))
        return found


def telling_levels(schedule: Schedule, sigma: float) -> range:
    """The noise levels at which a bound is worth its terms: those between two ends.

    At the one end noise in the data, sigma sqrt((1 - alpha_bar) / alpha_bar), is finer than half a bin, so that the
    bound would pay for digits that nobody asked for: with sigma 0.25 and N = 1600 it stands 0.7 bits too high. At the
    other end all but the first level without a signal repeat what the prior says.

    Args:
        schedule: the full one.
        sigma: scale of the residual.

    Example:
        >>> from framecast.diffusion.schedule import cosine
        >>> telling_levels(cosine(1600), 1.0), telling_levels(cosine(1600), 0.25)
        (range(0, 1590), range(7, 1590))
    """
    ab = schedule.alpha_bar
    last = min(int((ab >= NO_SIGNAL).sum()), len(ab) - 1)
    first = int((sigma * ((1 - ab) / ab).sqrt() < 1 / BINS).sum())
    return range(min(first, last), last + 1)
