# SPDX-License-Identifier: Apache-2.0
"""RaMViD: known frames go into a diffusion model clean, the others noised; which ones are known is random in training.

Papers A and B ("Diffusion Models for Video Prediction and Infilling"), section 2: Eq. 6 is `known_into`, Eq. 8 the loss
of `DiffusionStage`, Eq. 9 `RaMViD.sample`, section 2.2 `draw_known`. Where papers and official code differ the code
wins, see README.md here. The network is in network.py. `BoundScorer` is not in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor

from framecast.assets import Assets
from framecast.diffusion import process as diffusion
from framecast.diffusion import sampling
from framecast.diffusion.bound import bound
from framecast.diffusion.schedule import Schedule, descending, kept_levels, named, snr_levels
from framecast.draws import Draws
from framecast.experiment import StageConfig, VideoSpec
from framecast.system import Carry, Group, Loss, Stage, System, UnsupportedTask, Video, Window, sampler_steps
from framecast.systems.ramvid.config import DiffusionStageConfig, RaMViDConfig, RaMViDSampling
from framecast.systems.ramvid.network import UNet3D, check_size
from framecast.task import sliding_windows
from framecast.video import Known

PREVIEW_STEPS = 20  # enough to see what is learned, cheap enough to do often
# noise levels of a score; vortex-ramvid at 10, 20, 40, 100 and all 1,000: 2.08, 1.51, 1.39, 1.36 and 1.35 bits
SCORE_LEVELS = 40


@final
class RaMViD(System):
    """Draws any unknown frames of a clip given any known ones, none included.

    Args:
        config: network and process.
        video: the clips it is made for.
        options: how `sample` draws when nothing else is asked for.

    Raises:
        ValueError: settings no such model can be built with.
    """

    name = "ramvid"
    config: RaMViDConfig
    options: RaMViDSampling

    def __init__(self, config: RaMViDConfig, video: VideoSpec, options: RaMViDSampling = RaMViDSampling()):  # noqa: B008
        super().__init__()
        check_size(config, (video.height, video.width))
        if config.time_frames and config.time_frames != video.clip_frames:
            raise ValueError(
                f"time_frames is {config.time_frames}, but clips have {video.clip_frames} frames: "
                f"a network that resamples time takes clips of exactly that many frames."
            )
        self.config, self.video, self.options = config, video, options
        self.schedule = named(config.schedule, config.noise_levels)
        self.network = UNet3D(config, channels=video.channels)
        self.scorer = BoundScorer(self)

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"diffusion": self.network}

    @property
    def context(self) -> int:
        """As many frames as a later window of a long video sees."""
        return max(1, min(self.options.overlap, self.video.clip_frames - 1))

    def calls(self, window: Window, options: RaMViDSampling) -> int:  # type: ignore[override]
        return sampler_steps(options) * max(1, options.resample)

    def plan(self, known: Sequence[bool], options: RaMViDSampling) -> list[Window]:  # type: ignore[override]
        check_sampling(options, classes=self.config.classes)
        self.times(options)  # refuses steps that the noise levels do not have
        length = options.window or self.video.clip_frames
        if self.config.time_frames and length != self.config.time_frames:
            raise UnsupportedTask(
                f"window is {length} frames, but this model resamples time and takes exactly "
                f"{self.config.time_frames}: leave window at 0."
            )
        overlap = options.overlap
        if len(known) <= length:  # one window does, whatever the overlap
            overlap = max(1, min(overlap, length - 1))
        return sliding_windows(known, length, overlap)

    def sample(
        self,
        frames: Video,
        known: Known,
        *,
        rng: Draws,
        options: RaMViDSampling,  # type: ignore[override]
        carry: Carry = None,
    ) -> tuple[Video, Carry]:
        check_sampling(options, classes=self.config.classes)
        known = known.to(frames.device)
        if bool(known.all()):
            return frames, None
        times = self.times(options)
        denoise = self._denoiser(times, options, rows=len(frames))
        variance = self.config.variance

        def before(x: Tensor, t: int) -> Tensor:
            if options.conditioning == "clean":
                return known_into(x, frames, known)
            noised = diffusion.q_sample(self.schedule, frames, t, rng.normal(x.shape).to(x))
            return known_into(x, noised, known)

        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                x = rng.normal(frames.shape).to(frames)
                if options.sampler == "ddim":
                    x = sampling.ddim(denoise, self.schedule, x, times, rng=rng, eta=options.eta, before=before)
                elif options.sampler == "dpmpp_2m":
                    x = sampling.dpmpp_2m(denoise, self.schedule, x, times, rng=rng, before=before)
                else:
                    x = resampled_ddpm(
                        denoise,
                        self.schedule,
                        x,
                        times,
                        visits=options.resample,
                        rng=rng,
                        variance=variance,
                        before=before,
                    )
        finally:
            self.network.train(training)
        if options.given == "model":
            return x, None  # OFFICIAL: what the last evaluation made of the known frames, unclamped
        # DEVIATES: the official code leaves the network's version of the known frames, up to 2.5 grey levels off
        return known_into(x.clamp(-1.0, 1.0), frames, known), None

    def stage(self, name: str, settings: StageConfig, assets: Assets) -> Stage:
        if name != "diffusion":
            raise ValueError(f"ramvid has no stage {name!r}; its only stage is diffusion.")
        if not isinstance(settings, DiffusionStageConfig):
            raise ValueError(f"the stage diffusion takes DiffusionStageConfig, got {type(settings).__name__}.")
        return DiffusionStage(self, settings)

    def times(self, options: RaMViDSampling) -> list[int]:
        """Noise levels that sampling visits, descending, -1 at the end.

        They are spaced evenly over the levels; for `dpmpp_2m`, which extrapolates along the log signal-to-noise ratio,
        evenly along that, unless `options.steps` spells the spacing out.
        """
        if options.sampler == "dpmpp_2m" and isinstance(options.steps, int):
            return descending(snr_levels(self.schedule, options.steps))
        return descending(kept_levels(self.config.noise_levels, options.steps))

    def model_time(self, t: Tensor) -> Tensor:
        """What the network is told of noise level t: t 1000 / S, whatever levels a sampler visits."""
        return t.float() * (1000.0 / self.config.noise_levels)

    def _denoiser(self, times: Sequence[int], options: RaMViDSampling, *, rows: int) -> sampling.Denoise:
        """The network as samplers see it: a noisy clip and its level to an estimate of the clean clip."""
        process, position = sampling.respaced(self.schedule, times)
        labels = None if options.label is None else torch.full((rows,), options.label, device=self.device)

        def denoise(x: Tensor, t: int) -> sampling.Estimate:
            output = self.network(x, self.model_time(torch.full((rows,), t, device=x.device)), labels)
            log_variance = None
            if self.config.learned_variance:
                output, share = output.chunk(2, dim=2)
                log_variance = diffusion.learned_range(process, position[t], share)
            return sampling.estimate(
                self.schedule,
                x,
                t,
                output,
                target=self.config.target,
                bound=1.0 if options.clip else None,
                log_variance=log_variance,
            )

        return denoise


class BoundScorer:
    """How likely the model finds the unknown frames of a clip: its variational bound, frame by frame.

    -log2 p(unknown | known) is at most the sum of `diffusion.bound.bound` over the unknown elements. A frame's bits
    are the mean over its own elements, so they are its share of the bound of a whole window, in which the noisy forms
    of the window's other unknown frames are seen as well; they are not the bits of the frame given the ones before it.
    Clips longer than a window go by the chain rule: a later window scores frames that no earlier one has, given true
    frames before them. The variance of a reverse step is the learned one, or else fitted to its state; the one that
    the configuration names would more than double the bits at few levels.

    Args:
        system: whose network, window, overlap and clamp are used; it is always given known frames clean, as in
            training.
    """

    of: Literal["pixels"] = "pixels"
    context = 0

    def __init__(self, system: RaMViD):
        self.system = system
        self.most_levels = system.schedule.noise_levels
        self.levels = min(SCORE_LEVELS, self.most_levels)

    def windows(self, known: Sequence[bool]) -> list[Window]:
        """The plan of sampling, moved into the clip where it reaches out: there are no surplus frames to score."""
        exact = self.system.config.time_frames
        if len(known) < exact:
            raise ValueError(
                f"the clip has {len(known)} frames, but this model resamples time and scores {exact} at once: "
                "give a longer clip."
            )
        finished, windows = list(known), list[Window]()
        for planned in self.system.plan(known, self.system.options):
            length = len(planned.frames)
            # vortex-ramvid, 1 to 8 frames over: 1.73 to 2.35 bits so, 1.73 to 2.67 with a shorter window instead
            start = max(0, min(planned.frames[0], len(known) - length))
            frames = tuple(range(start, min(start + length, len(known))))
            window = Window(frames, tuple(finished[i] for i in frames))
            if not all(window.known):
                windows.append(window)
                finished[frames[0] : frames[-1] + 1] = [True] * len(frames)
        return windows

    def calls(self, windows: Sequence[Window], levels: int) -> int:
        return levels * len(windows)

    def bits(self, frames: Video, known: Known, *, rng: Draws, levels: int | None = None) -> Tensor:
        """Bits per dimension of every unknown frame, lower is likelier.

        Args:
            frames: the clip, all of its frames true.
            known: True = given, not scored.
            rng: one row per clip.
            levels: noise levels visited, evenly spaced in the log signal-to-noise ratio; None: `self.levels`.

        Returns:
            (B, unknown frames), float64 on the CPU.
        """
        system = self.system
        times = descending(snr_levels(system.schedule, self.levels if levels is None else levels))
        found = torch.zeros(frames.shape[:2], dtype=torch.float64)
        training = system.network.training
        system.network.eval()
        try:
            with torch.no_grad():
                for window in self.windows(known.tolist()):
                    at, given = torch.tensor(window.frames), torch.tensor(window.known)
                    bits = self._in_window(frames[:, at.to(frames.device)], given, times, rng=rng)
                    found[:, at[~given]] = bits.mean(dim=(2, 3, 4))[:, ~given]
        finally:
            system.network.train(training)
        return found[:, ~known.cpu()]

    def _in_window(self, clip: Video, known: Known, times: Sequence[int], *, rng: Draws) -> Tensor:
        """Bits of every element of a window."""
        system, known = self.system, known.to(clip.device)
        return bound(
            system._denoiser(times, system.options, rows=len(clip)),
            system.schedule,
            clip,
            times,
            rng=rng,
            known=known[:, None, None, None],
        )


def known_into(x: Video, frames: Video, known: Tensor) -> Video:
    """Frames of `frames` where known, of `x` elsewhere; `known` is (T,) or (B, T).

    Source: Eq. 6.
    """
    return torch.where(known[..., None, None, None], frames, x)


def resampled_ddpm(
    denoise: sampling.Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Sequence[int],
    *,
    visits: int,
    rng: Draws,
    variance: Literal["large", "small"],
    before: sampling.Before,
) -> Tensor:
    """Ancestral sampling that visits every noise level several times, noising the state up again in between.

    Gives drawn frames more chances to agree with known ones (as RePaint does for images). One visit is plain ancestral
    sampling.

    Args:
        denoise: from a noisy clip and its level on `schedule` to an estimate.
        schedule: the full schedule.
        x: the start, standard normal.
        times: levels to visit, descending, ending in -1.
        visits: of every level, at least 1.
        rng: one row per clip.
        variance: of the reverse step where it is not learned.
        before: changes the state before every evaluation, repeats included.

    Source: official code (`resample_steps`); not in the papers.
    """
    process, position = sampling.respaced(schedule, times)
    for t in times[:-1]:
        for visit in range(visits):
            x = before(x, t)
            x = sampling.ddpm_step(process, position[t], x, denoise(x, t), rng.normal(x.shape), variance=variance)
            if visit + 1 < visits:
                x = sampling.renoise_step(process, position[t], x, rng.normal(x.shape))
    return x


def check_sampling(options: RaMViDSampling, *, classes: int) -> None:
    """Raise ValueError where options contradict each other or the model."""
    if options.window < 0:
        raise ValueError(f"window is {options.window}; it must be 0 (the model's own) or more.")
    if options.overlap < 1:
        raise ValueError(f"overlap is {options.overlap}; a later window must see at least 1 finished frame.")
    if not 0.0 <= options.eta <= 1.0:
        raise ValueError(f"eta is {options.eta:g}; it must lie between 0 (no fresh noise) and 1 (all of it).")
    if options.resample < 1:
        raise ValueError(f"resample is {options.resample}; every noise level must be visited at least once.")
    if options.resample > 1 and options.sampler != "ddpm":
        raise ValueError(f"resample works with the sampler ddpm only, not with {options.sampler}; set it to 1.")
    if options.label is not None and not 0 <= options.label < classes:
        raise ValueError(
            f"label {options.label} is not one of the model's {classes} classes."
            if classes
            else f"label {options.label} was asked for, but the model has no classes."
        )
    if classes and options.label is None:
        raise ValueError(f"the model was trained with {classes} classes: choose one, for example label=0.")


class DiffusionStage(Stage):
    """Trains the network to undo noise on randomly chosen frames, the others being clean.

    Args:
        system: whose network learns.
        settings: how.

    Raises:
        ValueError: settings that contradict each other or the model.
    """

    def __init__(self, system: RaMViD, settings: DiffusionStageConfig):
        check_stage(settings, system.config)
        first, _ = settings.known_range or (0, settings.clip_frames - 1)
        self.system, self.settings = system, settings
        self.clip_frames = settings.clip_frames
        self.min_frames = max(settings.max_known + 1, first + settings.max_known)
        system.network.checkpointing = settings.checkpointing

    def groups(self) -> dict[str, Group]:
        return {"diffusion": Group({"diffusion": self.system.network}, self.settings.optimiser)}

    def examples(self, clip: Video, valid: Tensor, rng: Draws) -> dict[str, Tensor]:
        return {"clip": clip, "valid": valid}

    def loss(self, examples: dict[str, Tensor], *, step: int, turn: str, rng: Draws) -> Loss:
        system, settings = self.system, self.settings
        schedule, target = system.schedule, system.config.target
        clip, valid = examples["clip"], examples["valid"]
        # section 2.2; all of it anew for every clip (OFFICIAL: the papers leave per clip or per batch open)
        known = draw_known(
            rng,
            valid,
            max_known=settings.max_known,
            unconditional_rate=settings.unconditional_rate,
            known_range=settings.known_range,
        )
        t, weight = draw_levels(rng, len(clip), schedule.noise_levels, settings.noise_level_draw)
        t, weight = t.to(clip.device), weight.to(clip.device)
        eps = rng.normal(clip.shape).to(clip)
        x_t, eps = noised(schedule, clip, known, t, eps)
        output, share = system.network(x_t, system.model_time(t)), None
        if system.config.learned_variance:
            output, share = output.chunk(2, dim=2)

        counted = valid if settings.loss_over == "all" else valid & ~known
        wanted = {"eps": eps, "x_0": clip, "v": diffusion.v_from(schedule, clip, t, eps)}[target]
        mse = mean_over((output - wanted) ** 2, counted)  # Eq. 8, as the mean over elements
        total, terms = mse, {"mse": mse.mean().detach()}
        if share is not None:
            bits = bound_terms(schedule, clip, x_t, t, output=output, share=share, target=target)
            # DEVIATES: the official code fails here; its evident intent averages over known frames too
            vb = mean_over(bits, valid & ~known) * (schedule.noise_levels / 1000)
            total, terms = mse + vb, {**terms, "vb": vb.mean().detach()}
        return Loss((weight * total).mean(), terms)

    def preview(self, clips: Video, rng: Draws) -> Video:
        known = torch.arange(clips.shape[1]) < self.settings.max_known
        steps = min(PREVIEW_STEPS, self.system.config.noise_levels)
        options = replace(self.system.options, sampler="ddim", steps=steps, eta=0.0, resample=1, given="exact")
        return self.system.sample(clips, known, rng=rng, options=options)[0]


def draw_known(
    rng: Draws,
    valid: Tensor,
    *,
    max_known: int,
    unconditional_rate: float,
    known_range: tuple[int, int] | None = None,
) -> Tensor:
    """Which frames of each clip are known: none with probability p_U, else k of 1 to K frames, all choices alike.

    Args:
        rng: one row per clip.
        valid: (B, T), False on frames that pad a short clip; those are never known.
        max_known: K.
        unconditional_rate: p_U.
        known_range: first and last position a known frame may take; None: the whole clip.

    Returns:
        (B, T), True = known.

    Source: section 2.2; K included.
    """
    rows, frames = valid.shape
    first, last = known_range or (0, frames - 1)
    position = torch.arange(frames, device=valid.device)
    allowed = valid & (position >= first) & (position <= last)
    unconditional = rng.uniform((rows,)).to(valid.device) < unconditional_rate
    count = rng.integers(1, max_known + 1, (rows,)).to(valid.device)
    order = rng.uniform((rows, frames)).to(valid.device).masked_fill(~allowed, 2.0).argsort(dim=1).argsort(dim=1)
    return (order < count[:, None]) & allowed & ~unconditional[:, None]


def draw_levels(rng: Draws, rows: int, noise_levels: int, how: Literal["uniform", "harmonic"]) -> tuple[Tensor, Tensor]:
    """A noise level per clip, and the weight S^-1 / p(t) that keeps the loss's expectation the same.

    Args:
        rng: one row per clip.
        rows: clips.
        noise_levels: S.
        how: "uniform", or "harmonic" with p(t) proportional to 1 / (t + 1).
    """
    if how == "uniform":
        return rng.integers(0, noise_levels, (rows,)), torch.ones(rows)
    p = 1 / torch.arange(1, noise_levels + 1, dtype=torch.float64)
    p /= p.sum()
    u = rng.uniform((rows,)).cpu().double()
    t = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=noise_levels - 1)
    return t, (1 / (noise_levels * p[t])).float()


def noised(schedule: Schedule, clip: Video, known: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The network's input and the noise in it: known frames are exactly the clip and hold no noise.

    Args:
        schedule: the process.
        clip: clean.
        known: (B, T), True = known.
        t: (B,) noise levels.
        eps: standard normal; values at known frames have no effect.

    Source: Eq. 6 and 8.
    """
    x_t = known_into(diffusion.q_sample(schedule, clip, t, eps), clip, known)
    return x_t, known_into(eps, torch.zeros_like(eps), known)


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of (B, T, C, H, W) over all elements of the frames counted, per clip.

    Clips with few such frames weigh as much as others.

    Args:
        values: elementwise.
        counted: (B, T), True where a frame counts; at least one per clip.
    """
    per_frame = values.mean(dim=(2, 3, 4))
    return torch.where(counted, per_frame, 0.0).sum(dim=1) / counted.sum(dim=1)


def bound_terms(
    schedule: Schedule,
    clip: Video,
    x_t: Tensor,
    t: Tensor,
    *,
    output: Tensor,
    share: Tensor,
    target: Literal["eps", "x_0", "v"],
) -> Tensor:
    """Elementwise terms, in bits, of the variational bound at level t; they teach the learned variance only.

    Args:
        schedule: the full schedule.
        clip: clean.
        x_t: the network's input.
        t: (B,) noise levels.
        output: the network's prediction; gradients do not reach it.
        share: the network's place in the log-variance range.
        target: what `output` predicts.

    Source: Nichol and Dhariwal 2021, Eq. 15 and 16.
    """
    output = output.detach()
    if target == "eps":
        x_0 = diffusion.x_0_from_eps(schedule, x_t, t, output)
    else:
        x_0 = output if target == "x_0" else diffusion.x_0_from_v(schedule, x_t, t, output)
    mean = diffusion.posterior(schedule, x_0, x_t, t).mean
    log_variance = diffusion.learned_range(schedule, t, share)
    return diffusion.variational_term(schedule, clip, x_t, t, mean=mean, log_variance=log_variance)


def check_stage(settings: DiffusionStageConfig, config: RaMViDConfig) -> None:
    """Raise ValueError where the stage's settings contradict each other or the model."""
    frames, most = settings.clip_frames, settings.max_known
    if not 1 <= most < frames:
        raise ValueError(f"max_known is {most}; it must be at least 1 and below clip_frames, which is {frames}.")
    if not 0.0 <= settings.unconditional_rate <= 1.0:
        raise ValueError(f"unconditional_rate is {settings.unconditional_rate}; it is a share between 0 and 1.")
    if settings.known_range is not None:
        first, last = settings.known_range
        if not 0 <= first <= last < frames:
            raise ValueError(f"known_range is {first} to {last}; it must lie within the clip, 0 to {frames - 1}.")
        if last - first + 1 < most:
            raise ValueError(f"known_range {first} to {last} has fewer positions than max_known, which is {most}.")
    if config.time_frames and config.time_frames != frames:
        raise ValueError(f"clip_frames is {frames}, but the network takes exactly {config.time_frames} (time_frames).")
    if config.classes:
        raise ValueError(
            f"the model has {config.classes} classes, but training clips carry no labels; set classes to 0."
        )
