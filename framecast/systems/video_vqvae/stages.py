# SPDX-License-Identifier: Apache-2.0
"""How Video VQ-VAE's three networks learn: the tokenizer on clips, each prior on the codes of its level."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from framecast.draws import Draws
from framecast.system import Group, Loss, Stage, Video
from framecast.systems.video_vqvae.config import (
    BottomPriorStageConfig,
    PriorStageConfig,
    TokenizerStageConfig,
    VideoVQVAESampling,
)
from framecast.systems.video_vqvae.priors import GIVEN, BottomPrior, TopPrior
from framecast.systems.video_vqvae.quantiser import Codes, Latent
from framecast.systems.video_vqvae.tokenizer import Tokenizer


class TokenizerStage(Stage):
    """Trains the tokenizer to give clips back.

    L = error of pixels / their variance + beta (commitment of the top + of the bottom); codebooks move after each step.

    Args:
        tokenizer: which learns.
        settings: how.

    Raises:
        ValueError: settings out of range.

    Source: equations 2 and 3, section 3.1; the variance as in van den Oord et al. 2017.
    """

    def __init__(self, tokenizer: Tokenizer, settings: TokenizerStageConfig):
        for key, low, high in (("bottom_mask", 0.0, 1.0), ("codebook_decay", 0.0, 1.0), ("restart", 0.0, 1.0)):
            if not low <= (value := getattr(settings, key)) <= high:
                raise ValueError(f"{key} is {value:g}; it must lie between {low:g} and {high:g}.")
        for key in ("commitment", "codebook_eps"):
            if (value := getattr(settings, key)) < 0:
                raise ValueError(f"{key} is {value:g}; it must not be below 0.")
        if settings.variance is not None and not settings.variance > 0:
            raise ValueError(f"variance is {settings.variance:g}; it must be above 0, or null for that of the data.")
        if settings.codebook_average == "debiased" and settings.codebook_decay == 1:
            raise ValueError("codebook_decay is 1, at which averages that begin with nothing stay so; take less.")
        if settings.clip_frames != tokenizer.frames:
            raise ValueError(f"clip_frames is {settings.clip_frames}, the tokenizer takes {tokenizer.frames} frames.")
        self.tokenizer, self.settings = tokenizer, settings
        self.clip_frames = self.min_frames = tokenizer.frames
        self.masked = settings.bottom_mask if len(tokenizer.levels) > 1 else 0.0
        tokenizer.checkpointing = settings.checkpointing

    def groups(self) -> dict[str, Group]:
        return {"tokenizer": Group({"tokenizer": self.tokenizer}, self.settings.optimiser)}

    def start(self, clips: Video, rng: Draws) -> None:
        self.tokenizer.start(clips, rng.shared, self.settings)

    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        clip, tokenizer = examples["clip"], self.tokenizer
        levels = tokenizer.quantised(clip)
        shown: dict[str, Latent] = {level: found.values for level, found in levels.items()}
        if self.masked and tokenizer.training:
            shown["bottom"] = shown["bottom"] * self._mask(shown["bottom"], rng)
        error = self._reduced(((tokenizer.decoded(shown).float() - clip) / 2).square()) / tokenizer.variance
        total, terms = error, {"error": error.detach()}
        for level, found in levels.items():
            distance = self._reduced(found.commitment())
            total = total + self.settings.commitment * distance
            terms[f"commitment_{level}"] = distance.detach()
        if len(levels) > 1:
            with torch.no_grad():  # of one clip: what the decoder would make of it, were it never shown the bottom
                alone = tokenizer.decoded({"top": levels["top"].values[:1].detach()}).float()
                terms["error_top_only"] = self._reduced(((alone - clip[:1]) / 2).square()) / tokenizer.variance
        return Loss(total, terms)

    def after_step(self, step: int, rng: Draws) -> dict[str, Tensor]:
        settings = self.settings
        told: dict[str, Tensor] = {}
        for level in self.tokenizer.levels:
            figures = self.tokenizer.quantiser(level).update(
                decay=settings.codebook_decay, eps=settings.codebook_eps, restart=settings.restart, rng=rng,
                average=settings.codebook_average,
            )  # fmt: skip
            told |= {f"{name}_{level}": value for name, value in figures.items()}
        return told

    def preview(self, clips: Video, rng: Draws) -> Video:
        """Clips as their codes tell them."""
        return self.tokenizer.decode(self.tokenizer.encode(clips))

    def _mask(self, like: Latent, rng: Draws) -> Float[Tensor, "b 1 t y x"]:
        """0 where the bottom level is not shown to the decoder."""
        b, _, t, y, x = like.shape
        shape = {"clip": (b, 1, 1, 1, 1), "step": (b, 1, t, 1, 1), "place": (b, 1, t, y, x)}[self.settings.mask_unit]
        return (rng.uniform(shape).to(like) >= self.masked).to(like)

    def _reduced(self, squares: Tensor) -> Tensor:
        """Mean over elements, or mean over clips of their sum."""
        return squares.mean() if self.settings.reduction == "mean" else squares.sum() / len(squares)


class PriorStage(Stage):
    """What both priors' stages share: the codes they learn.

    The codes of the known frames are those of these frames alone, as when drawing; the others are the whole clip's, as
    the decoder knows them. With causal padding that makes no difference.

    Args:
        tokenizer: trained.
        prior: which learns.
        name: of the part.
        settings: how.

    Raises:
        ValueError: settings out of range.
    """

    needs = ("tokenizer",)

    def __init__(self, tokenizer: Tokenizer, prior: TopPrior | BottomPrior, name: str, settings: PriorStageConfig):
        if settings.clip_frames != tokenizer.frames:
            raise ValueError(f"clip_frames is {settings.clip_frames}, the tokenizer takes {tokenizer.frames} frames.")
        self.tokenizer, self.prior, self.name, self.settings = tokenizer, prior, name, settings
        self.clip_frames = self.min_frames = tokenizer.frames
        self.given = 2 * tokenizer.stride[0]
        prior.condition.checkpointing = prior.network.checkpointing = settings.checkpointing
        self.keeps = settings.cache
        self.type = torch.int16 if tokenizer.config.codes <= 1 << 15 else torch.int32  # that codes fit into
        if self.keeps:
            size = self.type.itemsize * sum(math.prod(tokenizer.grid(level)) for level in tokenizer.levels)
            self.notes = (f"codes are kept in memory, {size / 1000:.3g} kB for each clip that was seen.",)

    def groups(self) -> dict[str, Group]:
        return {self.name: Group({self.name: self.prior}, self.settings.optimiser)}

    def examples(self, clip: Video, valid: Tensor, rng: Draws) -> dict[str, Tensor]:
        return {level: codes.to(self.type) for level, codes in self.codes(clip).items()}

    def codes(self, clip: Video) -> dict[str, Codes]:
        """Codes by level, those of the known frames first; in float32 as in drawing, for rounding changes some."""
        with torch.autocast(clip.device.type, enabled=False):
            return self.tokenizer.encode_after(clip, self.given)

    def _learned(self, logits: Float[Tensor, "b k *grid"], codes: Int64[Tensor, "b *grid"]) -> Loss:
        """Mean over codes of -log of their probability, in nats; in bits as a term."""
        nats = F.cross_entropy(logits.float(), codes)
        return Loss(nats, {"bits_per_code": nats.detach() / math.log(2)})


class TopPriorStage(PriorStage):
    """Trains the top prior on the codes of clips.

    Source: section 3.2, table 4.
    """

    prior: TopPrior

    def start(self, clips: Video, rng: Draws) -> None:
        self.prior.condition.start_from(self.tokenizer.top.codebook, self.tokenizer.bottom.codebook)

    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        top, bottom = examples["top"].long(), examples["bottom"].long()
        return self._learned(self.prior(top, bottom), top[:, GIVEN:])

    def preview(self, clips: Video, rng: Draws) -> Video:
        """Top codes drawn after those of the first frames, decoded without a bottom."""
        given = self.tokenizer.encode(clips[:, : self.given])
        top = self.prior.draw(given["top"], given["bottom"], rng=rng, options=VideoVQVAESampling())
        return self.tokenizer.decode({"top": top})


class BottomPriorStage(PriorStage):
    """Trains the bottom prior on some slices of each clip.

    Source: section 3.2, table 4.
    """

    prior: BottomPrior

    settings: BottomPriorStageConfig

    def __init__(self, tokenizer: Tokenizer, prior: BottomPrior, name: str, settings: BottomPriorStageConfig):
        super().__init__(tokenizer, prior, name, settings)
        most = prior.slices - prior.first
        if not 0 <= settings.slices <= most:
            raise ValueError(f"slices is {settings.slices}; it must lie between 1 and {most}, or be 0 for all.")

    def start(self, clips: Video, rng: Draws) -> None:
        top = self.tokenizer.top.codebook if len(self.tokenizer.levels) > 1 else None
        self.prior.condition.start_from(top, self.tokenizer.bottom.codebook)

    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        top, bottom = examples.get("top"), examples["bottom"].long()
        first, last, rows = self.prior.first, self.prior.slices, len(bottom)
        if self.settings.slices:
            n = rng.integers(first, last, (rows, self.settings.slices)).to(bottom.device)
        else:
            n = torch.arange(first, last, device=bottom.device).expand(rows, -1)
        clip = torch.arange(rows, device=bottom.device).repeat_interleave(n.shape[1])
        n = n.flatten()
        logits = self.prior(None if top is None else top[clip].long(), bottom[clip], n)
        return self._learned(logits, bottom[clip, n][:, None])

    def preview(self, clips: Video, rng: Draws) -> Video:
        """Bottom slices drawn after those of the first frames, given the true top."""
        codes = self.codes(clips)
        drawn = self.prior.draw(
            codes.get("top"), codes["bottom"][:, : self.prior.first], rng=rng, options=VideoVQVAESampling()
        )
        return self.tokenizer.decode({**codes, "bottom": drawn})
