# SPDX-License-Identifier: Apache-2.0
"""Files as the official RVD code writes them, made from our own networks."""

import torch
from torch import Tensor

from framecast.diffusion.schedule import named
from framecast.systems.rvd.config import RVDConfig
from framecast.systems.rvd.network import ContextNetwork, Denoiser, TransformNetwork
from framecast.systems.rvd.weights import official_name, tables
from tests.formula import fill


def networks(config: RVDConfig, channels: int) -> dict[str, torch.nn.Module]:
    found = {"context": ContextNetwork(config, channels=channels), "denoiser": Denoiser(config, channels=channels)}
    if config.prediction == "network":
        found["transform"] = TransformNetwork(config, channels=channels)
    return {name: fill(part) for name, part in found.items()}


def official_state(config: RVDConfig, channels: int) -> dict[str, Tensor]:
    """Weights by official name, in official shapes, and the tables of the schedule in float32."""
    state = {name: table.float() for name, table in tables(named("cosine", config.noise_levels)).items()}
    for part, network in networks(config, channels).items():
        for ours, tensor in network.state_dict().items():
            name = official_name(f"{part}.{ours}")
            if ".fn." in name and name.endswith((".g", ".b")):
                tensor = tensor[None, :, None, None]
            elif ".fn.fn." in name and name.endswith("weight"):
                tensor = tensor[:, :, None, None]
            state[name] = tensor.clone()
    return state


def official_file(state: dict[str, Tensor], *, step: int = 996_000) -> dict:
    """The content of an official checkpoint; averaged weights are half the others, so that one sees which were read."""
    ema = {name: tensor / 2 if "_fn." in name else tensor for name, tensor in state.items()}
    return {"step": step, "model": state, "ema": ema}
