# SPDX-License-Identifier: Apache-2.0
"""Weights of the official PVDM denoiser (revision 793172f) by our names, and the settings that they tell.

Official names may begin with `diffusion_model.` (what wraps the network in training) and hold the buffer `zeros`, the
condition of a clip without one, which our network makes itself. Heads and groups do not show in names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from framecast.foreign import check_names, shape_of
from framecast.systems.pvdm.config import DenoiserConfig
from framecast.systems.pvdm.denoiser import Denoiser

WRAPPER, ZEROS = "diffusion_model.", "zeros"


def official_name(name: str) -> str:
    """What one of our tensors is called in the official code, without its wrapper.

    Example:
        >>> official_name("downs.0.layers.1.qkv.weight"), official_name("middle.across.norm.bias")
        ('input_blocks.1.1.qkv.weight', 'mid_attn.norm.bias')
    """
    part, _, rest = name.partition(".")
    place, _, tail = rest.partition(".")
    if part in ("time", "head"):
        return f"{'time_embed' if part == 'time' else 'out'}.{rest}"
    if part == "stem":
        return f"input_blocks.0.0.{rest}"
    if part == "middle":
        return f"mid_attn.{tail}" if place == "across" else f"middle_block.{tail}"
    side, number = ("input", int(place) + 1) if part == "downs" else ("output", int(place))  # the stem is their first
    kind, _, tail = tail.partition(".")
    return f"{side}_{'attns' if kind == 'across' else 'blocks'}.{number}.{tail}"


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without wrapper and buffer."""
    return {name.removeprefix(WRAPPER): value for name, value in state.items() if name.removeprefix(WRAPPER) != ZEROS}


def read_denoiser(state: Mapping[str, Tensor], network: Denoiser, *, where: str) -> dict[str, Tensor]:
    """What loads into the network, from weights by official name.

    Args:
        state: as the official code writes it.
        network: built with the settings of the weights (`infer`); its own weights do not matter.
        where: the file, for messages.

    Raises:
        ValueError: a tensor too many, too few, or of another shape; the first one is named.
    """
    state, ours = unwrapped(state), network.state_dict()
    check_names(state, {official_name(name): tuple(value.shape) for name, value in ours.items()}, where=where)
    return {name: state[official_name(name)].to(torch.float32) for name in ours}


def infer(state: Mapping[str, Tensor], *, base: DenoiserConfig, where: str) -> tuple[DenoiserConfig, int]:
    """The settings that names and shapes tell, the rest as in `base`; and the channels of the latent.

    Args:
        state: weights by official name; their values do not matter.
        base: where heads, groups and the diffusion process come from.
        where: the file, for messages.

    Raises:
        ValueError: names that no such denoiser has.
    """
    state = unwrapped(state)

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(state, name, axes=axes, network="a PVDM denoiser", where=where)

    width, channels = shape("time_embed.0.weight", 2)[1], shape("out.2.weight", 4)[0]
    # all but the last level end their way up with what doubles the planes: a later residual block or a convolution
    doubled = {
        found[1] for name in state if (found := re.match(r"output_blocks\.(\d+)\.[1-9]\.(in_layers|conv)", name))
    }
    levels, blocks = 1 + len(doubled), len({n.split(".")[1] for n in state if n.startswith("output_blocks.")})
    per_level = blocks // levels  # residual blocks, and on the way down the halving, which the last level lacks
    first = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    out = shape("input_blocks.1.0.out_layers.0.weight", 1)[0]
    convolves = any(name.startswith("input_blocks.") and name.endswith(".0.op.weight") for name in state)
    resample: Literal["residual", "convolution"] = "convolution" if convolves else "residual"
    config = replace(
        base,
        width=width,
        multipliers=tuple(shape(f"{name}.0.out_layers.0.weight", 1)[0] // width for name in first),
        res_blocks=per_level - 1,
        attention=tuple(2**level for level, name in enumerate(first) if f"{name}.1.qkv.weight" in state),
        scale_shift=shape("input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * out,
        resample=resample if levels > 1 else base.resample,
        conditional=shape("input_blocks.0.0.weight", 4)[1] == 2 * channels,
    )
    return config, channels
