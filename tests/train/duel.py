# SPDX-License-Identifier: Apache-2.0
"""A system with everything the trainer must cope with: two groups that take turns, a module that is no part, dropout,
buffers set before the first step and after every one, and a second stage that stands on the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from framecast.experiment import DataConfig, Experiment, SampleOptions, StageConfig
from framecast.system import Group, Loss, Stage, System, Window
from framecast.systems import Entry
from tests.tiny import DATA, quick

DUEL = Entry(
    system="tests.train.duel:Duel", experiment="tests.train.duel:DuelExperiment", presets="", weights="", tasks=()
)


@dataclass(frozen=True, kw_only=True)
class DuelConfig:
    width: int = 4
    dropout: float = 0.2


@dataclass(frozen=True, kw_only=True)
class DuelStages:
    codec: StageConfig = field(default_factory=lambda: StageConfig(**quick(lr=0.01, clip_frames=4)))
    prior: StageConfig = field(default_factory=lambda: StageConfig(**quick(lr=0.01, clip_frames=6)))


@dataclass(frozen=True, kw_only=True)
class DuelExperiment(Experiment):
    system: Literal["duel"] = "duel"
    data: DataConfig = DATA
    model: DuelConfig = field(default_factory=DuelConfig)
    stages: DuelStages = field(default_factory=DuelStages)
    sample: SampleOptions = field(default_factory=SampleOptions)


class Codec(nn.Module):
    def __init__(self, config: DuelConfig, channels: int):
        super().__init__()
        self.down, self.up = nn.Conv3d(channels, config.width, 1), nn.Conv3d(config.width, channels, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def encode(self, clip):
        return self.dropout(self.down(clip.transpose(1, 2) - self.center))

    def forward(self, clip):
        return self.up(self.encode(clip)).transpose(1, 2)


class Duel(System):
    name = "duel"

    def __init__(self, config, video, options):
        super().__init__()
        self.config, self.video, self.options = config, video, options
        self.autoencoder = Codec(config, video.channels)
        self.prior = nn.Conv3d(config.width, config.width, 1)

    def parts(self):
        return {"codec": self.autoencoder, "prior": self.prior}

    def plan(self, known, options):
        return [Window(tuple(range(len(known))), tuple(known))]

    def sample(self, frames, known, *, rng, options, carry=None):
        return torch.where(known[None, :, None, None, None], frames, self.autoencoder(frames)), None

    def stage(self, name, settings, assets):
        return {"codec": CodecStage, "prior": PriorStage}[name](self, settings)


class CodecStage(Stage):
    def __init__(self, system, settings):
        self.system, self.settings = system, settings
        self.clip_frames, self.min_frames = settings.clip_frames, settings.clip_frames
        self.critic = nn.Conv3d(system.video.channels, 1, 1)

    def groups(self):
        model = Group({"codec": self.system.autoencoder}, self.settings.optimiser)
        return {"model": model, "critic": Group({"critic": self.critic}, self.settings.optimiser)}

    def turn(self, step):
        return "critic" if step % 3 == 2 else "model"

    def start(self, clips, rng):
        self.system.autoencoder.center.copy_(clips.mean())

    def loss(self, examples, *, step, turn, rng):
        made = self.system.autoencoder(examples["clip"])
        noise = rng.normal(made.shape).to(made)
        judged = self.critic((made + 0.1 * noise).transpose(1, 2)).mean(dim=(1, 2, 3, 4))
        if turn == "critic":
            true = self.critic(examples["clip"].transpose(1, 2)).mean(dim=(1, 2, 3, 4))
            return Loss(((judged - 1) ** 2 + (true + 1) ** 2).mean())
        mse = ((made - examples["clip"]) ** 2).mean()
        return Loss(mse + 0.1 * judged.mean(), {"mse": mse.detach()})

    def after_step(self, step, rng):
        self.system.autoencoder.seen += 1
        self.system.autoencoder.center.add_(1e-3 * torch.randn((), generator=rng.shared).to(self.system.device))
        return {"center": self.system.autoencoder.center}

    def preview(self, clips, rng):
        return self.system.autoencoder(clips)


class PriorStage(Stage):
    needs = ("codec",)

    def __init__(self, system, settings):
        self.system, self.settings = system, settings
        self.clip_frames, self.min_frames = settings.clip_frames, settings.clip_frames

    def groups(self):
        return {"model": Group({"prior": self.system.prior}, self.settings.optimiser)}

    def examples(self, clip, valid, rng):
        return {"code": self.system.autoencoder.encode(clip)}

    def loss(self, examples, *, step, turn, rng):
        code = examples["code"]
        return Loss(((self.system.prior(code[:, :, :-1]) - code[:, :, 1:]) ** 2).mean())

    def preview(self, clips, rng):
        return self.system.autoencoder(clips)
