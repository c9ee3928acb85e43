# SPDX-License-Identifier: Apache-2.0
"""PVDM: clips become three planes of an autoencoder's latent, a diffusion model draws latents clip after clip.

Paper "Video Probabilistic Diffusion Models in Projected Latent Space", section 3: algorithm 1 is `PVDM.sample`, run by
`framecast.generate` window by window. The networks are in autoencoder.py and denoiser.py, their training in stages.py.
Where paper and official code differ the code wins, see README.md here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import nn

from framecast.assets import Assets
from framecast.diffusion import sampling
from framecast.diffusion.schedule import descending, named, snr_levels, trailing_levels
from framecast.draws import Draws
from framecast.experiment import StageConfig, VideoSpec
from framecast.system import Carry, Stage, System, UnsupportedTask, Video, Window
from framecast.systems.pvdm.autoencoder import Autoencoder, Planes
from framecast.systems.pvdm.codec import PlanesCodec
from framecast.systems.pvdm.config import AutoencoderStageConfig, DiffusionStageConfig, PVDMConfig, PVDMSampling
from framecast.systems.pvdm.denoiser import Denoiser, Latent, denoise
from framecast.systems.pvdm.stages import AutoencoderStage, DiffusionStage
from framecast.video import Known


@final
class PVDM(System):
    """Draws clips from nothing, or after a clip, clip by clip; encodes clips and decodes them.

    Args:
        config: both networks and the process.
        video: the clips it is made for.
        options: how `sample` draws when nothing else is asked for.

    Raises:
        ValueError: settings or clips that no such model can be built for.
    """

    name = "pvdm"
    config: PVDMConfig
    options: PVDMSampling

    def __init__(self, config: PVDMConfig, video: VideoSpec, options: PVDMSampling = PVDMSampling()):  # noqa: B008
        super().__init__()
        self.config, self.video, self.options = config, video, options
        self.autoencoder = Autoencoder(
            config.autoencoder, channels=video.channels, size=(video.height, video.width), frames=video.clip_frames
        )
        planes = (*self.autoencoder.grid, video.clip_frames)
        self.denoiser = Denoiser(config.denoiser, channels=config.autoencoder.latent_channels, planes=planes)
        self.schedule = named(config.denoiser.schedule, config.denoiser.noise_levels)
        self.codec = PlanesCodec(self.autoencoder)

    def parts(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder, "denoiser": self.denoiser}

    @property
    def context(self) -> int:
        """One clip."""
        return self.video.clip_frames

    def horizon(self, context: int) -> int:
        """One clip."""
        return self.video.clip_frames

    def calls(self, window: Window, options: PVDMSampling) -> int:  # type: ignore[override]
        first, later = clip_steps(options)
        return later if any(window.known) or min(window.frames) > 0 else first

    def plan(self, known: Sequence[bool], options: PVDMSampling) -> list[Window]:  # type: ignore[override]
        check_sampling(options, self.config)
        length = self.video.clip_frames
        given = next((i for i, there in enumerate(known) if not there), len(known))
        late = next((i for i in range(given, len(known)) if known[i]), None)
        if late is not None:
            raise UnsupportedTask(
                f"pvdm draws clip after clip, so known frames must come first: frame {late} is known, frame {given} is "
                "not."
            )
        if given == len(known):
            return []
        if 0 < given < length:
            raise UnsupportedTask(
                f"pvdm predicts a clip from the clip before it, so it needs {length} known frames or more, or none at "
                f"all; {given} {'is' if given == 1 else 'are'} known."
            )
        if not self.config.denoiser.conditional and (given or len(known) > length):
            raise UnsupportedTask(
                f"this pvdm looks at no clip before (conditional false), so it draws {length} frames from nothing only."
            )
        begin = given - length if given else 0  # of the first window, which holds the last known clip
        starts = range(given, len(known), length)
        windows = [Window(tuple(range(start, start + length)), (False,) * length) for start in starts]
        if given:
            frames = tuple(range(begin, given + length))
            windows[0] = Window(frames, (True,) * length + (False,) * length)
        return windows

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        frames: Video,
        known: Known,
        *,
        rng: Draws,
        options: PVDMSampling,
        carry: Carry = None,
    ) -> tuple[Video, Carry]:
        check_sampling(options, self.config)
        given = frames[:, known]
        if given.shape[1] not in (0, self.video.clip_frames):
            raise ValueError(f"pvdm is given a clip of {self.video.clip_frames} frames or none, not {given.shape[1]}.")
        condition = self.autoencoder.encode(given).flat() if given.shape[1] else carry
        latent = self.draw(len(frames), condition, rng=rng, options=options)
        if condition is None and options.order == "told":
            latent, made = self.in_order(latent)
        else:
            made = self.autoencoder.decode(self.autoencoder.split(latent))
        if options.given == "model" and condition is not None and given.shape[1]:
            given = self.autoencoder.decode(self.autoencoder.split(condition))
        # OFFICIAL: the drawn latent itself, as in algorithm 1; "frames" is what others do who run the official code
        carried = latent if options.condition == "latent" else self.autoencoder.encode(made).flat()
        return torch.cat([given, made], dim=1), carried

    def draw(self, rows: int, condition: Latent | None, *, rng: Draws, options: PVDMSampling) -> Latent:
        """Latents of clips.

        Args:
            rows: how many.
            condition: latents of the clips before them; None: there are none.
            rng: one row per latent.
            options: sampler and steps.

        Source: algorithm 1, one turn of its outer loop.
        """
        steps = clip_steps(options)[condition is not None]
        times = descending(self.levels(options, steps))
        network = denoise(self.denoiser, self.schedule, condition, guidance=options.guidance, bound=options.bound)
        channels = self.config.autoencoder.latent_channels
        z = rng.normal((rows, channels, self.autoencoder.places)).to(self.device)
        if options.sampler == "ddim":
            return sampling.ddim(network, self.schedule, z, times, rng=rng, eta=options.eta)
        if options.sampler == "dpmpp_2m":
            return sampling.dpmpp_2m(network, self.schedule, z, times, rng=rng)
        return sampling.ddpm(network, self.schedule, z, times, rng=rng, variance="small")

    def in_order(self, latent: Latent) -> tuple[Latent, Video]:
        """Latents of clips, their planes yt and xt exchanged where they came the wrong way round; and their clips.

        Of square frames both have one shape, and the denoiser treats them alike: exchanged noise becomes an exchanged
        clip, and without a condition either way round is as likely. The wrong way round they are no latent of any clip,
        so that they change when they are decoded and encoded again; the order is taken in which they change less.

        DEVIATES: the official code leaves them as they come.
        """
        planes = self.autoencoder.split(latent)
        made = self.autoencoder.decode(planes)
        if self.autoencoder.grid[0] != self.autoencoder.grid[1]:
            return latent, made
        turned = Planes(planes.xy, planes.xt, planes.yt)
        other = self.autoencoder.decode(turned)
        wrong = self._changed(turned.flat(), other) < self._changed(latent, made)
        latent = torch.where(wrong[:, None, None], turned.flat(), latent)
        return latent, torch.where(wrong[:, None, None, None, None], other, made)

    def _changed(self, latent: Latent, clip: Video) -> Float[Tensor, " b"]:
        """Mean squared difference of latents from what their decoded clips are encoded to."""
        return (self.autoencoder.encode(clip).flat() - latent).square().mean((1, 2))

    def levels(self, options: PVDMSampling, steps: int) -> list[int]:
        """Noise levels that sampling visits, rising: evenly spaced; for `dpmpp_2m` in the log signal-to-noise ratio."""
        if options.sampler == "dpmpp_2m":
            return snr_levels(self.schedule, steps)
        return trailing_levels(self.schedule.noise_levels, steps)

    def stage(self, name: str, settings: StageConfig, assets: Assets) -> Stage:
        if name == "autoencoder" and isinstance(settings, AutoencoderStageConfig):
            return AutoencoderStage(self.autoencoder, settings, assets)
        if name == "diffusion" and isinstance(settings, DiffusionStageConfig):
            return DiffusionStage(self.autoencoder, self.denoiser, self.schedule, settings)
        if name not in ("autoencoder", "diffusion"):
            raise ValueError(f"pvdm has no stage {name!r}; its stages are autoencoder and diffusion.")
        raise ValueError(f"the stage {name} cannot take settings of {type(settings).__name__}.")


def clip_steps(options: PVDMSampling) -> tuple[int, int]:
    """Sampler steps of a clip without one before it, and of a clip with one.

    Raises:
        ValueError: neither a number nor two.

    Example:
        >>> clip_steps(PVDMSampling(steps="100/20")), clip_steps(PVDMSampling(steps=50))
        ((100, 20), (50, 50))
    """
    pieces = str(options.steps).split("/")
    if len(pieces) > 2 or not all(piece.strip().isdecimal() and int(piece) > 0 for piece in pieces):
        raise ValueError(
            f"steps is {options.steps!r}; give a number, or two as 100/20: of a first clip, and of each that follows."
        )
    return int(pieces[0]), int(pieces[-1])


def check_sampling(options: PVDMSampling, config: PVDMConfig) -> None:
    """Raise ValueError where options contradict each other or the model."""
    for steps in clip_steps(options):
        if steps > config.denoiser.noise_levels:
            raise ValueError(
                f"steps is {options.steps}, but the model has {config.denoiser.noise_levels} noise levels: ask for at "
                "most as many."
            )
    if not 0.0 <= options.eta <= 1.0:
        raise ValueError(f"eta is {options.eta:g}; it must lie between 0 (no fresh noise) and 1 (all of it).")
    if options.guidance and not config.denoiser.conditional:
        raise ValueError("guidance leads towards the clip before, which this model does not look at: leave it at 0.")
    if options.bound is not None and not options.bound > 0:
        raise ValueError(f"bound is {options.bound:g}; it must be above 0, or null for none.")
