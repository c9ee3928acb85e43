# SPDX-License-Identifier: Apache-2.0
"""How PVDM's two networks learn: the autoencoder in two phases, the denoiser on latents alone and in pairs.

Paper sections 3.2 and 3.3; schedules, weights and what discriminators see are those of the official code.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from framecast.assets import Assets
from framecast.diffusion import process, sampling
from framecast.diffusion.schedule import Schedule, descending, snr_levels
from framecast.draws import Draws
from framecast.nn.perceptual import LPIPS, load_lpips
from framecast.system import Group, Loss, Stage, Video
from framecast.systems.pvdm.adversary import Discriminator, chosen_frames, deception, feature_matching, hinge
from framecast.systems.pvdm.autoencoder import Autoencoder
from framecast.systems.pvdm.config import AutoencoderStageConfig, DiffusionStageConfig
from framecast.systems.pvdm.denoiser import Denoiser, Latent, denoise

PREVIEW_STEPS = 20  # enough to see what is learned, cheap enough to do often
SOUND = (0.05, 4.0)  # what the loss of discriminators keeps to while both sides still learn


class AutoencoderStage(Stage):
    """Trains the autoencoder to give clips back.

    Phase A: weighted sum of mean absolute error and LPIPS. Phase B adds what a discriminator of frames and one of clips
    think, and the distance in their features; autoencoder and discriminators learn in turn, step by step.

    Args:
        autoencoder: which learns.
        settings: how.
        assets: where VGG-16 is looked for.

    Raises:
        ValueError: settings that contradict each other, or a file that is not VGG-16's.

    Source: section 3.2; official code `losses/perceptual.py`, `tools/trainer.py`.
    """

    def __init__(self, autoencoder: Autoencoder, settings: AutoencoderStageConfig, assets: Assets):
        weights = ("pixel_weight", "perceptual_weight", "adversarial_weight", "matching_weight")
        for key in weights:
            if (value := getattr(settings, key)) < 0:
                raise ValueError(f"{key} is {value:g}; it must not be below 0.")
        start = settings.adversarial_from
        if start is not None and start < 0:
            raise ValueError(f"adversarial_from is {start}; it must be a step from 0 on, or null for no such phase.")
        self.autoencoder, self.settings = autoencoder, settings
        self.clip_frames = self.min_frames = autoencoder.frames
        autoencoder.checkpointing = settings.checkpointing
        self.lpips, self.notes = _perceptual(autoencoder, settings, assets)
        self.discriminators = nn.ModuleDict()
        if start is not None:
            sizes = {"channels": autoencoder.channels, "width": settings.discriminator_width}
            self.discriminators["discriminator_2d"] = Discriminator(dims=2, **sizes)
            self.discriminators["discriminator_3d"] = Discriminator(dims=3, **sizes)

    def groups(self) -> dict[str, Group]:
        learning = {"autoencoder": Group({"autoencoder": self.autoencoder}, self.settings.optimiser)}
        if self.discriminators:
            # one module each: gradients are clipped over each by itself
            judges = dict(self.discriminators.items())
            learning["discriminators"] = Group(judges, self.settings.discriminator_optimiser)
        return learning

    def frozen(self) -> dict[str, nn.Module]:
        return {"lpips": self.lpips} if self.lpips is not None else {}

    def turn(self, step: int) -> str:
        return "discriminators" if self._adversarial(step) and (step - self._start) % 2 else "autoencoder"

    def sound(self) -> dict[str, tuple[float, float]]:
        return {"discriminators": SOUND} if self.discriminators else {}

    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        clip = examples["clip"]
        index = rng.integers(0, clip.shape[1], (len(clip),)).to(clip.device)
        if turn == "discriminators":
            with torch.no_grad():
                made = self._reconstructed(clip)
            return self._judged(clip, made, index)
        settings, made = self.settings, self._reconstructed(clip)
        pixel = (made - clip).abs().mean()
        terms = {"pixel": pixel.detach()}
        total = settings.pixel_weight * pixel
        real, fake = chosen_frames(clip, index), chosen_frames(made, index)
        if self.lpips is not None:
            perceptual = self.lpips(_colour(real), _colour(fake)).mean()
            terms["lpips"] = perceptual.detach()
            total = total + settings.perceptual_weight * perceptual
        if self._adversarial(step):
            pairs = self._views(clip, made, index)
            with torch.no_grad():
                true = {name: judge(pairs[name][0]) for name, judge in self.discriminators.items()}
            false = {name: judge(pairs[name][1]) for name, judge in self.discriminators.items()}
            deceived = sum(deception(found[-1].float()) for found in false.values())
            matched = sum(feature_matching(true[name], found) for name, found in false.items())
            terms |= {"deception": deceived.detach(), "matching": matched.detach()}  # type: ignore[union-attr]
            total = total + settings.adversarial_weight * (deceived + settings.matching_weight * matched)
        return Loss(total, terms)

    def preview(self, clips: Video, rng: Draws) -> Video:
        return self._reconstructed(clips)

    @property
    def _start(self) -> int:
        return self.settings.adversarial_from or 0

    def _adversarial(self, step: int) -> bool:
        """Whether a step belongs to phase B."""
        return bool(self.discriminators) and step >= self._start

    def _reconstructed(self, clip: Video) -> Video:
        return self.autoencoder.decode(self.autoencoder.encode(clip))

    def _judged(self, clip: Video, made: Video, index: Tensor) -> Loss:
        """What discriminators learn from: the mean verdicts on true and made patches, by a hinge, of both added."""
        terms = {}
        for name, (real, fake) in self._views(clip, made, index).items():
            judge = self.discriminators[name]
            # OFFICIAL: true and made ones in two calls, so that batch norm takes the moments of each by itself
            terms[name] = hinge(judge(real)[-1].float(), judge(fake)[-1].float())
        return Loss(torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()})

    def _views(self, clip: Video, made: Video, index: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What each discriminator sees of true and made clips."""
        frames = (chosen_frames(clip, index), chosen_frames(made, index))
        return {"discriminator_2d": frames, "discriminator_3d": (clip, made)}


class DiffusionStage(Stage):
    """Trains the denoiser to tell the noise in latents of clips: with the clip before as a condition, and without.

    Args:
        autoencoder: encodes; it does not learn.
        denoiser: which learns.
        schedule: its process.
        settings: how.

    Raises:
        ValueError: settings that contradict each other or the networks.

    Source: section 3.3, the seventh display; who is conditional: official code `losses/ddpm.py`.
    """

    needs = ("autoencoder",)

    def __init__(
        self, autoencoder: Autoencoder, denoiser: Denoiser, schedule: Schedule, settings: DiffusionStageConfig
    ):
        if not 0.0 <= settings.conditional <= 1.0:
            raise ValueError(f"conditional is {settings.conditional:g}; a share, it must lie between 0 and 1.")
        if settings.conditional and not denoiser.config.conditional:
            raise ValueError("conditional is above 0, but the denoiser reads no condition: set it to 0.")
        if settings.clip_frames != autoencoder.frames:
            raise ValueError(
                f"stages.diffusion.clip_frames is {settings.clip_frames}, but the autoencoder encodes clips of "
                f"{autoencoder.frames} frames: make them agree."
            )
        self.autoencoder, self.denoiser, self.schedule, self.settings = autoencoder, denoiser, schedule, settings
        self.frames = autoencoder.frames
        self.clip_frames, self.min_frames = 2 * self.frames, self.frames
        self.keeps = settings.cache
        if self.keeps:
            size = 2 * denoiser.channels * autoencoder.places * 4
            self.notes = (f"latents are kept in memory, {size / 1000:.3g} kB for each clip that was seen.",)
        denoiser.checkpointing = settings.checkpointing

    def groups(self) -> dict[str, Group]:
        return {"diffusion": Group({"denoiser": self.denoiser}, self.settings.optimiser)}

    def examples(self, clip: Video, valid: Tensor, rng: Draws) -> dict[str, Tensor]:
        paired = valid.all(dim=1)  # a clip too short for two is one that has none before it
        if self.keeps:
            before, after = self._encoded(clip[:, : self.frames]), self._encoded(clip[:, -self.frames :])
            return {"before": before, "after": torch.where(_of_rows(paired, after), after, before), "paired": paired}
        told = self._told(paired, rng)
        # OFFICIAL: without a condition, any of the windows of the clip
        start = (rng.uniform((len(clip),)).to(clip.device) * (self.frames + 1)).long()
        start = torch.where(paired, torch.where(told, self.frames, start), 0)
        places = start[:, None] + torch.arange(self.frames, device=clip.device)
        target = self._encoded(clip[torch.arange(len(clip), device=clip.device)[:, None], places])
        condition = torch.zeros_like(target)
        if told.any():
            condition[told] = self._encoded(clip[told, : self.frames])
        return {"target": target, "condition": condition}

    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        target, condition = self._pairs(examples, rng) if self.keeps else (examples["target"], examples["condition"])
        t = rng.integers(0, self.schedule.noise_levels, (len(target),)).to(target.device)
        eps = rng.normal(target.shape).to(target)
        z = process.q_sample(self.schedule, target, t, eps)
        if self.settings.draw == "none":
            # the paper: the same noisy latent with its condition and without, weighted
            both = torch.cat([condition, torch.zeros_like(condition)])
            found = self._network(z.repeat(2, 1, 1), t.repeat(2), both)
            told, untold = ((part - eps) ** 2 for part in found.chunk(2))
            share = self.settings.conditional
            terms = {"conditional": told.detach().mean(), "unconditional": untold.detach().mean()}
            return Loss(share * told.mean() + (1 - share) * untold.mean(), terms)
        # OFFICIAL: the squared error; the code's setting l1 reaches nothing
        error = (self._network(z, t, condition) - eps) ** 2
        return Loss(error.mean())

    def preview(self, clips: Video, rng: Draws) -> Video:
        """The first half as the autoencoder makes it, then a clip drawn after it."""
        autoencoder, before = self.autoencoder, self._encoded(clips[:, : self.frames])
        condition = before if self.denoiser.config.conditional else None
        ask = denoise(self.denoiser, self.schedule, condition)
        times = descending(snr_levels(self.schedule, min(PREVIEW_STEPS, self.schedule.noise_levels)))
        drawn = sampling.dpmpp_2m(ask, self.schedule, rng.normal(before.shape).to(before), times)
        return torch.cat([autoencoder.decode(autoencoder.split(z)) for z in (before, drawn)], dim=1)

    def _network(self, z: Latent, t: Tensor, condition: Latent) -> Latent:
        return self.denoiser(z, t, condition if self.denoiser.config.conditional else None).float()

    def _encoded(self, clip: Video) -> Latent:
        with torch.no_grad():
            return self.autoencoder.encode(clip).flat().float()

    def _told(self, paired: Tensor, rng: Draws) -> Tensor:
        """Which clips are conditional."""
        if self.settings.draw == "none":
            return paired
        if self.settings.draw == "step" and self.denoiser.training:  # judged by one coin, either side would go unseen
            # DEVIATES: one draw for all processes, where the code makes one per process
            chance = torch.rand((), generator=rng.shared).expand(len(paired))
        else:
            chance = rng.uniform((len(paired),))
        return paired & (chance.to(paired.device) < self.settings.conditional)

    def _pairs(self, examples: dict[str, Tensor], rng: Draws) -> tuple[Latent, Latent]:
        """Target and condition out of the latents of both halves of a clip."""
        before, after, paired = examples["before"], examples["after"], examples["paired"]
        told = self._told(paired, rng)
        # without a condition, either half: of all windows of the clip, those whose latents are there
        second = told | (rng.uniform((len(told),)).to(told.device) < 0.5)
        target = torch.where(_of_rows(second, after), after, before)
        return target, torch.where(_of_rows(told, before), before, 0.0)


def _of_rows(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.ndim - 1))


def _colour(frames: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    return frames.expand(-1, 3, -1, -1)


def _perceptual(
    autoencoder: Autoencoder, settings: AutoencoderStageConfig, assets: Assets
) -> tuple[LPIPS | None, tuple[str, ...]]:
    """LPIPS with the user's weights, or None and why."""
    if not settings.perceptual_weight:
        return None, ()
    if autoencoder.channels not in (1, 3):
        return None, (f"frames have {autoencoder.channels} channels, so the loss has no LPIPS, which knows 1 or 3.",)
    path = Path(settings.vgg).expanduser()
    if not path.is_file():
        path = assets.dir / settings.vgg
    if not path.is_file():
        return None, (
            f"the loss has no LPIPS: {settings.vgg} is neither a file here nor in {assets.dir}; put VGG-16 as "
            "torchvision has it there, or name it with stages.autoencoder.vgg.",
        )
    if not settings.lin and find_spec("torchmetrics") is None:
        return None, (
            "the loss has no LPIPS: its own weights come with torchmetrics, which is not installed: pip install "
            "framecast[metrics], or name a file of them with stages.autoencoder.lin.",
        )
    network = load_lpips("vgg", path, Path(settings.lin).expanduser() if settings.lin else None)
    height, width = autoencoder.size
    if min(height, width) < network.shortest:
        least = f"{network.shortest}x{network.shortest}"
        return None, (f"frames are {width}x{height} pixels, so the loss has no LPIPS, which needs {least} at least.",)
    return network, ()
