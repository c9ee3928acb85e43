# SPDX-License-Identifier: Apache-2.0
"""A complete system in a page: every next frame is a per-pixel linear function of the frame before, plus noise.

x_t = a * x_{t-1} + b + s * eps, elementwise, with a, b and log s learned by the exact likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from framecast.experiment import Experiment, OptimiserConfig, SampleOptions, StageConfig, VideoSpec
from framecast.system import Group, Loss, Stage, System, UnsupportedTask, Window


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    dropout: float = 0.0  # share of inputs blanked in training


@dataclass(frozen=True, kw_only=True)
class ToyStages:
    pixel: StageConfig = field(default_factory=lambda: StageConfig(optimiser=OptimiserConfig(lr=0.02)))


@dataclass(frozen=True, kw_only=True)
class ToyExperiment(Experiment):
    system: Literal["toy"] = "toy"
    model: ToyConfig = field(default_factory=ToyConfig)
    stages: ToyStages = field(default_factory=ToyStages)
    sample: SampleOptions = field(default_factory=SampleOptions)


class Pixel(nn.Module):
    """The mean and log standard deviation of the next frame."""

    def __init__(self, video: VideoSpec, dropout: float):
        super().__init__()
        shape = (video.channels, video.height, video.width)
        self.gain, self.bias = nn.Parameter(torch.rand(shape)), nn.Parameter(torch.zeros(shape))
        self.log_std = nn.Parameter(torch.zeros(shape))
        self.dropout = nn.Dropout(dropout)

    def forward(self, before):
        return self.gain * self.dropout(before) + self.bias, self.log_std


class Toy(System):
    name = "toy"

    def __init__(self, config: ToyConfig, video: VideoSpec, options: SampleOptions):
        super().__init__()
        self.config, self.video, self.options = config, video, options
        self.pixel = Pixel(video, config.dropout)

    def parts(self):
        return {"pixel": self.pixel}

    def plan(self, known, options):
        context = list(known).index(False) if not all(known) else len(known)
        if not context or any(known[context:]):
            raise UnsupportedTask("toy predicts forward only: give the first frame, or more, and no later one.")
        if context == len(known):
            return []
        frames = tuple(range(context - 1, len(known)))
        return [Window(frames, (True,) + (False,) * (len(frames) - 1))]

    @torch.no_grad()
    def sample(self, frames, known, *, rng, options, carry=None):
        frames = frames.clone()
        for t in (i for i in range(frames.shape[1]) if not known[i]):
            mean, log_std = self.pixel(frames[:, t - 1])
            frames[:, t] = mean + log_std.exp() * rng.normal(mean.shape)
        return frames, None

    def stage(self, name, settings, assets):
        if name != "pixel":
            raise ValueError(f"toy has no stage {name!r}; it has: pixel.")
        return PixelStage(self, settings)


class PixelStage(Stage):
    def __init__(self, system: Toy, settings: StageConfig):
        self.system, self.settings = system, settings
        self.clip_frames, self.min_frames = settings.clip_frames, 2

    def groups(self):
        return {"model": Group({"pixel": self.system.pixel}, self.settings.optimiser)}

    def examples(self, clip, valid, rng):
        return {"before": clip[:, :-1], "after": clip[:, 1:], "valid": valid[:, 1:]}

    def loss(self, examples, *, step, turn, rng):
        mean, log_std = self.system.pixel(examples["before"])
        error = examples["after"] - mean
        nats = (error**2 / (2 * (2 * log_std).exp()) + log_std).mean(dim=(2, 3, 4))  # less log(2 pi) / 2
        weight = examples["valid"].float()
        return Loss(((nats * weight).sum(1) / weight.sum(1)).mean(), {"mse": (error.detach() ** 2).mean()})

    def preview(self, clips, rng):
        known = torch.arange(clips.shape[1]) < 1
        return self.system.sample(clips, known, rng=rng, options=self.system.options)[0]
