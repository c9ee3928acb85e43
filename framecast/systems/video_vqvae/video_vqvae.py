# SPDX-License-Identifier: Apache-2.0
"""Video VQ-VAE: clips become two levels of codes; two priors draw the codes that follow those of the first frames.

Paper "Predicting Video with VQVAE". The tokenizer is in tokenizer.py and quantiser.py, the priors in priors.py, what
they are made of in pixelcnn.py and conditioning.py, drawing in incremental.py, training in stages.py. No code was
published; what the paper leaves open is told in README.md here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import nn

from framecast.assets import Assets
from framecast.draws import Draws
from framecast.experiment import StageConfig, VideoSpec
from framecast.system import Carry, Code, Stage, System, UnsupportedTask, Video, Window
from framecast.systems.video_vqvae.codec import CodesCodec
from framecast.systems.video_vqvae.config import (
    BottomPriorStageConfig,
    PriorStageConfig,
    TokenizerStageConfig,
    VideoVQVAEConfig,
    VideoVQVAESampling,
)
from framecast.systems.video_vqvae.priors import BottomPrior, TopPrior
from framecast.systems.video_vqvae.scorer import CodesScorer
from framecast.systems.video_vqvae.stages import BottomPriorStage, TokenizerStage, TopPriorStage
from framecast.systems.video_vqvae.tokenizer import Tokenizer
from framecast.video import Known


@final
class VideoVQVAE(System):
    """Continues clips from frames that are one top step's (4 as published); encodes clips and decodes them.

    Args:
        config: the three networks.
        video: the clips it is made for.
        options: how `sample` draws when nothing else is asked for.

    Raises:
        ValueError: settings or clips that no such model can be built for.
    """

    name = "video_vqvae"
    config: VideoVQVAEConfig
    options: VideoVQVAESampling

    def __init__(self, config: VideoVQVAEConfig, video: VideoSpec, options: VideoVQVAESampling = VideoVQVAESampling()):  # noqa: B008
        super().__init__()
        self.config, self.video, self.options = config, video, options
        self.tokenizer = Tokenizer(
            config.tokenizer, channels=video.channels, size=(video.height, video.width), frames=video.clip_frames
        )
        self.given = 2 * self.tokenizer.stride[0]  # frames that a clip begins with
        if video.clip_frames <= self.given:
            raise ValueError(
                f"clip_frames is {video.clip_frames}; a clip begins with {self.given} known frames, so it must have "
                "more."
            )
        codes, two = config.tokenizer.codes, config.tokenizer.levels == 2
        if two:
            self.top_prior = TopPrior(config.top_prior, codes=codes, grid=self.tokenizer.grid("top"))
        self.bottom_prior = BottomPrior(config.bottom_prior, codes=codes, grid=self.tokenizer.grid("bottom"), top=two)
        self.codec = CodesCodec(self.tokenizer)
        self.scorer = CodesScorer(self.tokenizer, self.top_prior if two else None, self.bottom_prior)

    def parts(self) -> dict[str, nn.Module]:
        top = {"top_prior": self.top_prior} if self.config.tokenizer.levels == 2 else {}
        return {"tokenizer": self.tokenizer, **top, "bottom_prior": self.bottom_prior}

    @property
    def context(self) -> int:
        """Frames of one top step."""
        return self.given

    def plan(self, known: Sequence[bool], options: VideoVQVAESampling) -> list[Window]:  # type: ignore[override]
        check_sampling(options, self.config)
        length = self.video.clip_frames
        given = next((i for i, there in enumerate(known) if not there), len(known))
        late = next((i for i in range(given, len(known)) if known[i]), None)
        if late is not None:
            raise UnsupportedTask(
                f"video_vqvae draws what follows, so known frames must come first: frame {late} is known, frame "
                f"{given} is not."
            )
        if given == len(known):
            return []
        if given < self.given:
            raise UnsupportedTask(
                f"video_vqvae continues a clip from {self.given} known frames or more; {given} "
                f"{'is' if given == 1 else 'are'} known."
            )
        fresh = length - self.given  # frames that a window draws after those it is given
        starts = range(given - self.given, len(known) - self.given, fresh)
        told = (True,) * self.given + (False,) * fresh
        return [Window(tuple(range(start, start + length)), told) for start in starts]

    def calls(self, window: Window, options: VideoVQVAESampling) -> int:  # type: ignore[override]
        """Rows of codes."""
        return sum(prior.rows for prior in self.priors())

    def watched(self) -> list[nn.Module]:
        return [prior.network.embedding for prior in self.priors()]  # finished rows are embedded, each in one call

    def priors(self) -> list[TopPrior | BottomPrior]:
        """In the order of drawing."""
        return [self.top_prior, self.bottom_prior] if self.config.tokenizer.levels == 2 else [self.bottom_prior]

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        frames: Video,
        known: Known,
        *,
        rng: Draws,
        options: VideoVQVAESampling,
        carry: Carry = None,
    ) -> tuple[Video, Carry]:
        check_sampling(options, self.config)
        given = frames[:, known]
        if given.shape[1] != self.given:
            raise ValueError(f"video_vqvae is given {self.given} frames, not {given.shape[1]}.")
        made = self.tokenizer.decode(self.draw(self.tokenizer.encode(given), rng=rng, options=options))
        return made if options.given == "model" else torch.cat([given, made[:, self.given :]], dim=1), None

    def draw(self, code: Code, *, rng: Draws, options: VideoVQVAESampling) -> Code:
        """The codes of whole clips.

        Args:
            code: of the given frames alone.
            rng: one row per clip.
            options: how.

        Source: section 3.2: the top first, then the bottom slice by slice.
        """
        top, bottom = code.get("top"), code["bottom"]
        if top is not None:
            top = self.top_prior.draw(top, bottom, rng=rng, options=options)
        bottom = self.bottom_prior.draw(top, bottom, rng=rng, options=options)
        return {"bottom": bottom} if top is None else {"top": top, "bottom": bottom}

    def stage(self, name: str, settings: StageConfig, assets: Assets) -> Stage:
        if name not in ("tokenizer", "top_prior", "bottom_prior"):
            raise ValueError(
                f"video_vqvae has no stage {name!r}; its stages are tokenizer, top_prior and bottom_prior."
            )
        if name not in self.parts():
            raise ValueError(
                "this video_vqvae has one level (model.tokenizer.levels 1), so there is no stage top_prior."
            )
        if name == "tokenizer" and isinstance(settings, TokenizerStageConfig):
            return TokenizerStage(self.tokenizer, settings)
        if name == "top_prior" and isinstance(settings, PriorStageConfig):
            return TopPriorStage(self.tokenizer, self.top_prior, name, settings)
        if name == "bottom_prior" and isinstance(settings, BottomPriorStageConfig):
            return BottomPriorStage(self.tokenizer, self.bottom_prior, name, settings)
        raise ValueError(f"the stage {name} cannot take settings of {type(settings).__name__}.")


def check_sampling(options: VideoVQVAESampling, config: VideoVQVAEConfig) -> None:
    """Raise ValueError where options are out of range."""
    for level in ("", "bottom_"):
        if not (value := getattr(options, f"{level}temperature")) > 0:
            raise ValueError(f"{level}temperature is {value:g}; it must be above 0 (1: the model's own chances).")
        if not 0 <= (most := getattr(options, f"{level}top_k")) <= config.tokenizer.codes:
            raise ValueError(
                f"{level}top_k is {most}; it must lie between 1 and {config.tokenizer.codes} codes, or be 0 for all."
            )
        if not 0 < (share := getattr(options, f"{level}top_p")) <= 1:
            raise ValueError(f"{level}top_p is {share:g}; it must lie above 0 and not above 1 (all).")
