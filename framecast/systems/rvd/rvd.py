# SPDX-License-Identifier: Apache-2.0
"""RVD: a recurrent network expects the next frame, a diffusion model draws what that expectation lacks.

Paper "Diffusion Probabilistic Modeling for Video Generation", section 3: x = mu + sigma y_0 with y_0 from a denoiser
that sees recurrent context maps. Algorithm 1 is `ForecastStage.loss`, algorithm 2 `RVD.sample`, the bound of appendix C
scorer.py. Where paper and official code differ the code wins, see README.md here. The networks are in network.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from framecast.assets import Assets
from framecast.diffusion import process as diffusion
from framecast.diffusion import sampling
from framecast.diffusion.schedule import descending, kept_levels, named, snr_levels
from framecast.draws import Draws
from framecast.experiment import StageConfig, VideoSpec
from framecast.system import Carry, Group, Loss, Stage, System, UnsupportedTask, Video, Window, sampler_steps
from framecast.systems.rvd.config import ForecastStageConfig, RVDConfig, RVDSampling
from framecast.systems.rvd.network import ContextNetwork, Denoiser, Frame, Prepared, TransformNetwork, check_size
from framecast.systems.rvd.network import validate as check_config
from framecast.systems.rvd.scorer import BoundScorer
from framecast.video import Known

PREVIEW_STEPS = 20  # enough to see what is learned, cheap enough to do often
CHUNK = 16  # given frames read at once


@dataclass(frozen=True)
class Seen:
    """What the recurrent networks know after a frame; everything the next frame depends on.

    Attributes:
        context: (B, C_l, H_l, W_l) per level: state of the context network and condition of the denoiser.
        transform: states of the transform network.
        mu: (B, C, H, W), what the next frame is expected to be.
    """

    context: tuple[Tensor, ...]
    transform: tuple[Tensor, ...]
    mu: Tensor


@final
class RVD(System):
    """Draws the frames that follow given ones, one after another.

    Args:
        config: networks and process.
        video: the clips it is made for.
        options: how `sample` draws when nothing else is asked for.

    Raises:
        ValueError: settings no such model can be built with.
    """

    name = "rvd"
    config: RVDConfig
    options: RVDSampling

    def __init__(self, config: RVDConfig, video: VideoSpec, options: RVDSampling = RVDSampling()):  # noqa: B008
        super().__init__()
        check_config(config)
        check_size(config, (video.height, video.width))
        self.config, self.video, self.options = config, video, options
        self.schedule = named(config.schedule, config.noise_levels)
        channels, draws_residual = video.channels, config.residual == "diffusion"
        self.context_network = ContextNetwork(config, channels=channels) if draws_residual else None
        self.denoiser = Denoiser(config, channels=channels) if draws_residual else None
        self.transform = TransformNetwork(config, channels=channels) if config.prediction == "network" else None
        self.scorer = BoundScorer(self) if draws_residual else None

    def parts(self) -> dict[str, nn.Module]:
        found = {"context": self.context_network, "transform": self.transform, "denoiser": self.denoiser}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def context(self) -> int:
        """Four frames, as published, whatever the length of the training clips."""
        return 4

    def horizon(self, context: int) -> int:
        """Sixteen frames, as published."""
        return 16

    def calls(self, window: Window, options: RVDSampling) -> int:  # type: ignore[override]
        if not self._draws(options):
            return window.known.count(False) * (self.transform is not None)
        readers = len(self.parts()) - 1
        return window.known.count(False) * (readers + sampler_steps(options))

    def plan(self, known: Sequence[bool], options: RVDSampling) -> list[Window]:  # type: ignore[override]
        check_sampling(options, self.config)
        if self._draws(options):
            self.times(options)  # refuses steps that the noise levels do not have
        given = next((i for i, there in enumerate(known) if not there), len(known))
        late = next((i for i in range(given, len(known)) if known[i]), None)
        if late is not None:
            raise UnsupportedTask(
                f"rvd draws every frame from the ones before it, so known frames must come first: frame {late} is "
                f"known, frame {given} is not."
            )
        if given == 0:
            raise UnsupportedTask("rvd draws every frame from the ones before it, so it needs at least 1 known frame.")
        if given == len(known):
            return []
        length = options.window or self.video.clip_frames
        starts = range(given, len(known), length)
        blocks = [range(start, min(start + length, len(known))) for start in starts]
        first = range(blocks[0].stop)
        return [
            Window(tuple(first), tuple(known[: first.stop])),
            *(Window(tuple(block), (False,) * len(block)) for block in blocks[1:]),
        ]

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        frames: Video,
        known: Known,
        *,
        rng: Draws,
        options: RVDSampling,
        carry: Carry = None,
    ) -> tuple[Video, Carry]:
        check_sampling(options, self.config)
        given, draws = int(known.sum()), self._draws(options)
        if carry is None and not given:
            raise ValueError("rvd begins with at least 1 known frame; a window without any continues another one.")
        times = self.times(options) if draws else []
        # algorithm 2; a frame is read when the next one is asked for, so that the last is never read in vain
        seen, unread = carry or (None, frames[:, :0])
        unread = torch.cat([unread, frames[:, :given]], dim=1)
        video = list(frames[:, :given].unbind(dim=1))
        for _ in range(given, frames.shape[1]):
            seen = self.read(unread, seen, maps=draws)
            frame = self.draw(seen, times, rng=rng, options=options) if draws else seen.mu
            video.append(frame)
            unread = frame.clamp(-1.0, 1.0)[:, None]
        made = torch.stack(video, dim=1)
        if options.given == "exact":
            made[:, given:] = made[:, given:].clamp(-1.0, 1.0)  # OFFICIAL: "model" leaves them beyond the range
        return made, (seen, unread)

    def read(self, frames: Video, seen: Seen | None = None, *, maps: bool = True) -> Seen:
        """What is known after some frames.

        Args:
            frames: (B, T, C, H, W), T at least 1.
            seen: what was known before; None: nothing.
            maps: whether the context network reads them, too, as drawing needs it and expecting does not.
        """
        context, transform = (seen.context, seen.transform) if seen else (None, None)
        mu = frames[:, -1]
        for some in frames.split(CHUNK, dim=1):
            if maps and self.context_network is not None:
                context = tuple(level[:, -1] for level in self.context_network(some, context))
            if self.transform is not None:
                expected, states = self.transform(some, transform, first=some.shape[1] - 1)
                mu, transform = expected[:, -1].clamp(-1.0, 1.0), tuple(level[:, -1] for level in states)
        if self.config.prediction == "none":
            mu = torch.zeros_like(mu)
        return Seen(context or (), transform or (), mu)

    def draw(self, seen: Seen, times: Sequence[int], *, rng: Draws, options: RVDSampling) -> Frame:
        """The next frame, not clamped: mu + sigma y_0, with the residual y_0 drawn along the noise levels `times`.

        Source: algorithm 2, Eq. 5; OFFICIAL: its steps are those of Eq. A6, with the estimate clamped, and no noise is
        added at the last one; as printed they are not the reverse of Eq. 8.
        """
        denoise = self.denoise(seen.context, options)
        y = rng.normal(seen.mu.shape).to(seen.mu)
        if options.sampler == "ddim":
            y = sampling.ddim(denoise, self.schedule, y, times, rng=rng, eta=options.eta)
        elif options.sampler == "dpmpp_2m":
            y = sampling.dpmpp_2m(denoise, self.schedule, y, times, rng=rng)
        else:
            y = sampling.ddpm(denoise, self.schedule, y, times, rng=rng, variance="small")
        return seen.mu + self.config.sigma * y

    def mean_frame(self, frames: Video) -> Frame:
        """What the frame after these is expected to be, (B, C, H, W): the transform network's, before any residual.

        Args:
            frames: (B, T, C, H, W) in -1 to 1.

        Raises:
            ValueError: a model that expects nothing (VD).
        """
        if self.config.prediction == "none":
            raise ValueError("this model draws whole frames and expects none (prediction is none).")
        with torch.no_grad():
            return self.read(frames, maps=False).mu

    def _draws(self, options: RVDSampling) -> bool:
        """Whether frames are more than what is expected."""
        return self.denoiser is not None and options.sampler != "mean"

    def stage(self, name: str, settings: StageConfig, assets: Assets) -> Stage:
        if name != "forecast":
            raise ValueError(f"rvd has no stage {name!r}; its only stage is forecast.")
        if not isinstance(settings, ForecastStageConfig):
            raise ValueError(f"the stage forecast takes ForecastStageConfig, got {type(settings).__name__}.")
        return ForecastStage(self, settings)

    def times(self, options: RVDSampling) -> list[int]:
        """Noise levels that sampling visits, descending, -1 at the end.

        They are spaced evenly over the levels; for `dpmpp_2m`, which extrapolates along the log signal-to-noise ratio,
        evenly along that, unless `options.steps` spells the spacing out.
        """
        if options.sampler == "dpmpp_2m" and isinstance(options.steps, int):
            return descending(snr_levels(self.schedule, options.steps))
        return descending(kept_levels(self.config.noise_levels, options.steps))

    def denoise(self, context: Sequence[Tensor], options: RVDSampling) -> sampling.Denoise:
        """The denoiser as samplers see it: a noisy residual and its level to an estimate of the clean one."""
        assert self.denoiser is not None
        denoiser = self.denoiser
        prepared = denoiser.prepare(context)  # once per frame: it depends on no noise level
        bound = residual_range(self.config) if options.bound == "range" else options.bound

        def denoise(y: Tensor, n: int) -> sampling.Estimate:
            output = denoiser(y, torch.full((len(y),), n, device=y.device), prepared)
            # the model always hears of the original level; 1 / sqrt(alpha_bar) is up to 3e4: clamp
            return sampling.estimate(self.schedule, y, n, output, target=self.config.target, bound=bound)

        return denoise


def residual_range(config: RVDConfig) -> float:
    """The largest residual there can be: frames and mu lie in -1 to 1, and without mu the residual is the frame.

    OFFICIAL: a clamp, of which the paper does not speak. DEVIATES: there it is 2 for VD, too.
    """
    return 1.0 if config.prediction == "none" else 2.0 / config.sigma


def check_sampling(options: RVDSampling, config: RVDConfig) -> None:
    """Raise ValueError where options contradict each other or the model."""
    if options.window < 0:
        raise ValueError(f"window is {options.window}; it must be 0 (the model's clip_frames) or more.")
    if not 0.0 <= options.eta <= 1.0:
        raise ValueError(f"eta is {options.eta:g}; it must lie between 0 (no fresh noise) and 1 (all of it).")
    if not isinstance(options.bound, (str, type(None))) and not options.bound > 0:
        raise ValueError(
            f"bound is {options.bound:g}; it must be above 0, range (all a residual can be) or null (none)."
        )
    if options.sampler == "mean" and config.prediction == "none":
        raise ValueError("the sampler mean shows what the model expects, but this one expects nothing: take ddim.")


class ForecastStage(Stage):
    """Trains all networks to tell the noise in the residuals of every frame that follows `context` true ones.

    Args:
        system: whose networks learn.
        settings: how.

    Raises:
        ValueError: settings that contradict each other.

    Source: algorithm 1, Eq. 9; OFFICIAL: L1 and means for squares and sums, N noise levels and not N + 1; the first
    target comes after two frames, as the paper's text says and its algorithm does not.
    """

    def __init__(self, system: RVD, settings: ForecastStageConfig):
        if not 1 <= settings.context < settings.clip_frames:
            raise ValueError(
                f"context is {settings.context}; it must be at least 1 and below clip_frames, which is "
                f"{settings.clip_frames}."
            )
        if not 0 <= settings.past_noise < math.inf:
            raise ValueError(f"past_noise is {settings.past_noise:g}; it must be 0 (none, as published) or more.")
        self.system, self.settings = system, settings
        self.clip_frames, self.min_frames = settings.clip_frames, settings.context + 1
        for part in system.parts().values():
            part.checkpointing = settings.checkpointing  # type: ignore[assignment]

    def groups(self) -> dict[str, Group]:
        return {"forecast": Group(self.system.parts(), self.settings.optimiser)}

    def examples(self, clip: Video, valid: Tensor, rng: Draws) -> dict[str, Tensor]:
        return {"clip": clip, "valid": valid}

    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        system, first = self.system, self.settings.context
        clip, valid = examples["clip"], examples["valid"]
        past, frames = clip[:, :-1], clip[:, first:]  # teacher forcing: true frames are read, gradients run through all
        if self.settings.past_noise:  # DEVIATES: forecasts read drawn frames, which are never quite true
            past = past + self.settings.past_noise * rng.normal(past.shape).to(past)
        mu = self._expected(past, first=first - 1)
        terms = {}
        if system.config.prediction != "none":
            terms["mean_error"] = self._mean((frames - mu.detach()).abs(), valid)
        if system.denoiser is None:
            return Loss(self._mean(self._size(frames - mu), valid), terms)
        assert system.context_network is not None
        context = [level[:, first - 1 :].flatten(0, 1) for level in system.context_network(past)]

        n = rng.integers(0, system.config.noise_levels, (len(clip),)).to(clip.device)  # one per clip: algorithm 1
        n = n.repeat_interleave(frames.shape[1])
        eps = rng.normal(frames.shape).to(clip).flatten(0, 1)
        y_0 = ((frames - mu) / system.config.sigma).flatten(0, 1)  # Eq. 5
        y_n = diffusion.q_sample(system.schedule, y_0, n, eps)
        prepared: list[Prepared] = system.denoiser.prepare(context)
        output = system.denoiser(y_n, n, prepared)
        wanted = eps
        if system.config.target == "x_0":
            wanted = y_0  # depends on mu, which so learns from it directly too
        elif system.config.target == "v":
            wanted = diffusion.v_from(system.schedule, y_0, n, eps)  # so does this
        error = self._size(wanted - output).unflatten(0, frames.shape[:2])
        return Loss(self._mean(error, valid), terms)

    def _expected(self, past: Video, *, first: int) -> Video:
        """mu of the frame after each frame, from `first` on."""
        if self.system.transform is not None:
            return self.system.transform(past, first=first)[0].clamp(-1.0, 1.0)  # no gradient beyond the range
        known = past[:, first:]
        return known if self.system.config.prediction == "previous" else torch.zeros_like(known)

    def _size(self, error: Tensor) -> Tensor:
        return error.abs() if self.settings.loss == "l1" else error**2  # OFFICIAL: l1; Eq. 9 has the square

    def _mean(self, values: Video, valid: Tensor) -> Tensor:
        """Mean over the targets that are not padding, then over clips."""
        counted = valid[:, self.settings.context :]
        return (torch.where(counted, values.mean(dim=(2, 3, 4)), 0.0).sum(dim=1) / counted.sum(dim=1)).mean()

    def preview(self, clips: Video, rng: Draws) -> Video:
        known = torch.arange(clips.shape[1]) < self.settings.context
        steps = min(PREVIEW_STEPS, self.system.config.noise_levels)
        options = replace(self.system.options, sampler="dpmpp_2m", steps=steps, eta=0.0, given="exact")
        return self.system.sample(clips, known, rng=rng, options=options)[0]
