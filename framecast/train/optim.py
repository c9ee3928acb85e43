# SPDX-License-Identifier: Apache-2.0
"""What learns: one group of a stage with its optimiser, and the learning rate as a function of the step alone.

The loss of a group is wrapped in a module, so that the averaging of gradients over processes sees every weight it uses.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framecast.checkpoint import fill
from framecast.draws import Draws
from framecast.experiment import OptimiserConfig
from framecast.system import Group, Stage

LONG_RUN = 10_000  # optimiser steps from which compiling (a minute or two) pays


def learning_rate(config: OptimiserConfig, step: int, *, max_steps: int) -> float:
    """The rate of optimiser step `step` (from 0): height × warm-up × schedule.

    With s the step, W = warmup_steps, D = decay_steps (max_steps if 0), u = min(s / D, 1) and d = `decay`:
    warm-up is min(1, (s + 1) / W); the schedules are 1 (constant), 1 - (1 - d) u (linear),
    d + (1 - d) (1 + cos(pi u)) / 2 (cosine), 1 / (1 + d s) (time_based) and, with F = decay_from (D if 0), step:
    1 before F, from there on d^(1 + floor((s - F) / D)), but never less than `floor`.

    Example:
        >>> learning_rate(OptimiserConfig(lr=1.0, schedule="linear"), 25, max_steps=100)
        0.75
    """
    length = config.decay_steps or max_steps
    done, dropped = min(step / length, 1.0), step - (config.decay_from or length)
    shapes = {
        "constant": lambda: 1.0,
        "linear": lambda: 1.0 - (1.0 - config.decay) * done,
        "cosine": lambda: config.decay + (1.0 - config.decay) * (1.0 + math.cos(math.pi * done)) / 2.0,
        "step": lambda: 1.0 if dropped < 0 else max(config.floor, config.decay ** (1 + dropped // length)),
        "time_based": lambda: 1.0 / (1.0 + config.decay * step),
    }
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.lr * warmup * shapes[config.schedule]()


class Objective(nn.Module):
    """The loss of one group as a module that owns the group's weights."""

    def __init__(self, stage: Stage, modules: Mapping[str, nn.Module]):
        super().__init__()
        self.stage = stage
        self.learning = nn.ModuleDict(modules)

    def forward(
        self, examples: dict[str, Tensor], step: int, turn: str, rng: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The stage's loss and its terms."""
        loss = self.stage.loss(examples, step=step, turn=turn, rng=rng)
        return loss.total, loss.terms


class Learner:
    """A group, its optimiser and the number of updates it has made.

    Before training `objective` and `optimiser` are replaced by what Fabric makes of them.
    """

    def __init__(self, stage: Stage, group: Group):
        self.modules = dict(group.modules)
        self.config = group.optimiser
        self.updates = 0
        self.objective: Any = Objective(stage, self.modules)
        self.weights = {f"{m}.{name}": p for m, module in self.modules.items() for name, p in module.named_parameters()}
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.config.name]
        self.plain_optimiser: torch.optim.Optimizer = kind(
            self.weights.values(),
            lr=self.config.lr,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self.optimiser: Any = self.plain_optimiser

    def take_turn(self, others: Mapping[str, Learner], step: int, *, max_steps: int) -> float:
        """Let this group learn and all `others` stand still; returns the learning rate."""
        for other in others.values():
            for module in other.modules.values():
                module.requires_grad_(other is self)
        rate = learning_rate(self.config, step, max_steps=max_steps)
        for settings in self.plain_optimiser.param_groups:
            settings["lr"] = rate
        return rate

    def clip(self) -> Tensor:
        """Shorten the gradient of each module to `clip_norm`; returns the norm of all of them before."""
        most = self.config.clip_norm or math.inf
        norms = [nn.utils.clip_grad_norm_(module.parameters(), most) for module in self.modules.values()]
        device = next(iter(self.weights.values())).device  # a module without gradients answers on the CPU
        return torch.stack([norm.to(device) for norm in norms]).norm()

    def update(self) -> None:
        """One optimiser step; gradients are gone afterwards."""
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and what the optimiser remembers, by name."""
        kept = {f"weights/{m}/{name}": t for m, mod in self.modules.items() for name, t in mod.state_dict().items()}
        for name, weight in self.weights.items():
            for slot, value in self.plain_optimiser.state.get(weight, {}).items():
                kept[f"optimiser/{name}/{slot}"] = value
        return kept

    def load(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: tensors of other names or shapes.
        """
        for m, module in self.modules.items():
            head = f"weights/{m}/"
            mine = {name.removeprefix(head): t for name, t in tensors.items() if name.startswith(head)}
            fill(module, mine, where=where)
        state: dict[int, dict[str, Tensor]] = {}
        for index, (name, weight) in enumerate(self.weights.items()):
            head = f"optimiser/{name}/"
            slots = {key.removeprefix(head): t for key, t in tensors.items() if key.startswith(head)}
            if slots:
                # fused steps walk through memory: moments must lie there as their weight does (channels last, say)
                state[index] = {key: _lying_as(weight, t) for key, t in slots.items()}
        groups = self.plain_optimiser.state_dict()["param_groups"]
        self.plain_optimiser.load_state_dict({"state": state, "param_groups": groups})


def _lying_as(weight: Tensor, value: Tensor) -> Tensor:
    """The value in the weight's memory format; a count of steps, which has another shape, as it is."""
    return torch.empty_like(weight, dtype=value.dtype).copy_(value) if value.shape == weight.shape else value


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call, if there is one."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def compilable(module: nn.Module) -> bool:
    """Whether compiling a module does anything: it has a forward pass of its own, not other methods alone.

    Example:
        >>> compilable(nn.Linear(1, 1)), compilable(nn.ModuleDict())
        (True, False)
    """
    return type(module).forward is not nn.Module.forward


def compiles(choice: Literal["auto", "on", "off"], *, device: torch.device, max_steps: int) -> bool:
    """Whether to compile the networks; depends on the settings and the machine only, so a resumed run decides alike.

    Raises:
        ValueError: `on`, but what compiling needs is not here.
    """
    able = compiler() is not None and (device.type != "cuda" or find_spec("triton") is not None)
    if choice == "on" and not able:
        raise ValueError("compile is on, but no C++ compiler was found; install g++ or clang, or set compile to off.")
    return choice == "on" or (choice == "auto" and able and device.type != "mps" and max_steps >= LONG_RUN)
