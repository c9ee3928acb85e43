# SPDX-License-Identifier: Apache-2.0
"""R-FVD of clips that come one after another: how far their reconstructions lie from them as a set.

Clips are cut into windows, of which only features are kept. Without I3D's weights the distance is that of the random
filters of `rf3d-v1`, under that name: it is another number, and no R-FVD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framecast.evaluate.sets import Features, RandomFeatures, SetFigure, frechet_figures, random_figures
from framecast.experiment import VideoSpec
from framecast.metrics.features import FeatureNetwork
from framecast.metrics.forecast import eight_bit
from framecast.metrics.rf3d import NAME, RF3D
from framecast.video import Clip

# windows; measured on 384 of vortex32's test flows and an autoencoder of 30 dB: rf3d-v1 of 64 of them scatters by 8 to
# 11 %, of 32 by 19 to 26 %, of 16 by 24 to 38 %, and is beyond use below
FEWEST = 64


class Reconstructed:
    """Features of clips, and of what a codec made of them.

    Args:
        spec: of the model: windows have its clip length.
        i3d: its weights; None: `rf3d-v1`.
    """

    def __init__(self, spec: VideoSpec, i3d: FeatureNetwork | None = None):
        self.frames, self.i3d = spec.clip_frames, i3d
        self.name = "R-FVD" if i3d else NAME
        self._network = i3d or RandomFeatures()
        shortest, longest = i3d.frames if i3d else RF3D.frames
        fits = (shortest or 0) <= self.frames and (longest is None or self.frames <= longest)
        self._lacks = "" if fits else f"windows of {self.frames} frames are too short or too long for its network"
        if spec.channels not in (1, 3):
            self._lacks = f"its network takes 1 or 3 channels, the clips have {spec.channels}"
        self._real: list[Tensor] = []
        self._made: list[Tensor] = []
        self._units: list[str] = []

    def add(self, clip: Clip, made: Tensor, *, unit: str) -> None:
        """Look at the windows of a clip, one after another; what is left over at its end is not looked at.

        Args:
            clip: as it is.
            made: reconstructed, in the clip's units.
            unit: what clips that depend on each other share.
        """
        assert clip.value_range is not None
        for start in range(0, 0 if self._lacks else len(clip) - self.frames + 1, self.frames):
            part = slice(start, start + self.frames)
            for frames, found in ((clip.frames, self._real), (made, self._made)):
                window = eight_bit(frames[part], value_range=clip.value_range)
                found.append(self._network.features(window[None])[0])
            self._units.append(unit)

    @property
    def windows(self) -> int:
        """Looked at so far."""
        return len(self._units)

    def figures(self) -> dict[str, SetFigure]:
        """R-FVD and R-KVD, or the distances of `rf3d-v1` in appearance and motion, each beside its floor.

        Raises:
            ValueError: too few windows, or clips that the network cannot look at.
        """
        count = self.windows
        if self._lacks:
            raise ValueError(f"{self.name} is not computed: {self._lacks}.")
        if count < FEWEST:
            raise ValueError(
                f"{self.name} is not computed: {count} of the {FEWEST} windows of {self.frames} frames that it takes "
                "at least to say anything of a set; give more or longer clips."
            )
        real, made = (Features(torch.stack(found), self._units) for found in (self._real, self._made))
        return frechet_figures("r-fvd", real, made) if self.i3d else random_figures(real, made)
