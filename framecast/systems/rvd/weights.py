# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoint files of the official RVD code (revision 309fbe0) and proves that they fit the networks.

Such a file is a dict of `step`, `model` and `ema`, the latter two state dicts with the twelve tables of the schedule
beside the weights. Width, levels, channels, noise levels and whether a transform network is there follow from names and
shapes; target, sigma and groups do not show and come from an experiment. Nothing in a file is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framecast.diffusion.schedule import Schedule, named
from framecast.foreign import Checkpoint, Kind, check_channels, check_names, read_file, shape_of, weights_by_name
from framecast.systems.rvd.config import RVDConfig, RVDExperiment
from framecast.systems.rvd.network import ContextNetwork, Denoiser, TransformNetwork, validate

FILES = "a resnet-*.pt file of the official code"
ROUNDING = 16  # units in the last place by which a table may differ from ours

_HEADS = [  # official name, ours; # is the number of a level
    ("denoise_fn.time_mlp.1", "denoiser.time.0"),
    ("denoise_fn.time_mlp.3", "denoiser.time.2"),
    ("denoise_fn.downs.#.0", "denoiser.downs.#.first"),
    ("denoise_fn.downs.#.1", "denoiser.downs.#.second"),
    ("denoise_fn.downs.#.2", "denoiser.downs.#.attention"),
    ("denoise_fn.downs.#.3.conv", "denoiser.downs.#.down"),
    ("denoise_fn.mid_block1", "denoiser.middle_1"),
    ("denoise_fn.mid_attn", "denoiser.middle_attention"),
    ("denoise_fn.mid_block2", "denoiser.middle_2"),
    ("denoise_fn.ups.#.0", "denoiser.ups.#.first"),
    ("denoise_fn.ups.#.1", "denoiser.ups.#.second"),
    ("denoise_fn.ups.#.2", "denoiser.ups.#.attention"),
    ("denoise_fn.ups.#.3.conv", "denoiser.ups.#.up"),
    ("denoise_fn.final_conv.0.block.0", "denoiser.last.conv"),
    ("denoise_fn.final_conv.0.block.1", "denoiser.last.norm"),
    ("denoise_fn.final_conv.1", "denoiser.head"),
    ("history_fn.downs.#.0", "context.levels.#.block"),
    ("history_fn.downs.#.1.conv_gates.0", "context.levels.#.gru.gates"),
    ("history_fn.downs.#.1.conv_cans.0", "context.levels.#.gru.candidate"),
    ("history_fn.downs.#.2.conv", "context.levels.#.down"),
    ("transform_fn.downs.#.0", "transform.levels.#.block"),
    ("transform_fn.downs.#.1.conv_gates.0", "transform.levels.#.gru.gates"),
    ("transform_fn.downs.#.1.conv_cans.0", "transform.levels.#.gru.candidate"),
    ("transform_fn.downs.#.2.conv", "transform.levels.#.down"),
    ("transform_fn.ups.#.0", "transform.ups.#.block"),
    ("transform_fn.ups.#.1.conv", "transform.ups.#.up"),
    ("transform_fn.mu", "transform.head"),
]
_TAILS = [  # within a residual block or an attention
    ("block1.block.0", "block_1.conv"),
    ("block1.block.1", "block_1.norm"),
    ("block2.block.0", "block_2.conv"),
    ("block2.block.1", "block_2.norm"),
    ("res_conv", "skip"),
    ("mlp.1", "step"),
    ("fn.fn.to_qkv", "to_qkv"),
    ("fn.fn.to_out", "to_out"),
    ("fn.norm.g", "norm.weight"),
    ("fn.norm.b", "norm.bias"),
]


def read_checkpoint(path: Path, *, experiment: RVDExperiment, weights: Kind | None = None) -> Checkpoint:
    """What an official checkpoint file holds: settings, weights by part, steps.

    Args:
        path: a `.pt` file.
        experiment: supplies what a file cannot tell: target, sigma, groups, and the channels of the clips; without a
            transform network also whether the frame before is the prediction. A preset such as `rvd/bair64`.
        weights: which of the two sets to take; None: raw ones, with which the official code is tested.

    Returns:
        Settings in which everything the file tells has replaced the experiment's, and weights that load into the
        networks built from them.

    Raises:
        ValueError: not such a file, weights that do not fit (the first difference is named), or another schedule.
    """
    path = Path(path)
    where = str(path)
    content = read_file(path, meant=FILES)
    step = _step(content, where=where)
    state, kind = weights_by_name(content, weights=weights, first="raw", where=where, meant=FILES)
    config, channels = infer(state, base=experiment.model, where=where)
    check_channels(channels, wanted=experiment.data.channels, where=where)
    verify(state, config, channels=channels, where=where)
    check_tables(state, config, where=where)
    parts = {
        part: {
            name: state[official_name(f"{part}.{name}")].to(torch.float32).reshape(tensor.shape)
            for name, tensor in network.state_dict().items()
        }
        for part, network in _networks(config, channels=channels).items()
    }
    return Checkpoint(config=config, parts=parts, stage="forecast", step=step, weights=kind or weights or "raw")


def infer(state: Mapping[str, Tensor], *, base: RVDConfig, where: str) -> tuple[RVDConfig, int]:
    """The settings that names and shapes tell, the rest as in `base`; and the channels of the clips.

    Args:
        state: weights by official name; their values do not matter.
        base: where the rest comes from.
        where: the file, for messages.

    Raises:
        ValueError: names that no RVD model has, or settings that none can have.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(state, name, axes=axes, network="an RVD model", where=where)

    def multipliers(network: str) -> tuple[int, ...]:
        first = "{}.downs.{}.0.block1.block.0.weight".format
        levels = next(level for level in count(1) if first(network, level) not in state)
        return tuple(shape(first(network, level), 4)[0] // width for level in range(levels))

    width = shape("denoise_fn.time_mlp.3.weight", 2)[0]
    expects = any(name.startswith("transform_fn.") for name in state)
    prediction: Literal["network", "previous", "none"] = "network" if expects else "none"
    if not expects and base.prediction == "previous":
        prediction = "previous"  # SimpleRVD and VD have the same weights
    config = replace(
        base,
        width=width,
        multipliers=multipliers("history_fn"),
        transform_multipliers=multipliers("transform_fn") if expects else base.transform_multipliers,
        prediction=prediction,
        residual="diffusion",
        target="eps" if base.target == "v" else base.target,  # OFFICIAL: knows no v
        sigma=1.0 if prediction == "none" else base.sigma,
        patch=1,
        schedule="cosine",
        noise_levels=shape("betas", 1)[0],
    )
    try:
        validate(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return config, shape("history_fn.downs.0.0.block1.block.0.weight", 4)[1]


def verify(state: Mapping[str, Tensor], config: RVDConfig, *, channels: int, where: str) -> None:
    """Raise ValueError, naming the first difference, unless names and shapes are exactly the official model's."""
    wanted: dict[str, tuple[int, ...]] = {name: (config.noise_levels,) for name in tables(named("cosine", 2))}
    for part, network in _networks(config, channels=channels).items():
        for name, tensor in network.state_dict().items():
            wanted[official_name(f"{part}.{name}")] = _official_shape(name, tuple(tensor.shape))
    check_names(state, wanted, where=where)


def check_tables(state: Mapping[str, Tensor], config: RVDConfig, *, where: str) -> None:
    """Raise ValueError unless the tables in a file are those of our schedule, as far as their type can tell."""
    for name, ours in tables(named(config.schedule, config.noise_levels)).items():
        theirs = state[name]
        limits = torch.finfo(theirs.dtype if theirs.is_floating_point() else torch.float32)
        gap = (theirs.double() - ours).abs()
        if not bool((gap <= ROUNDING * limits.eps * ours.abs() + limits.tiny).all()):
            worst = int(gap.nan_to_num(torch.inf).argmax())
            raise ValueError(
                f"{where}: {name} is {theirs[worst].item():g} at noise level {worst}, where the {config.schedule} "
                f"schedule of {config.noise_levels} levels has {ours[worst].item():g}: another schedule, or a damaged "
                "file."
            )


def tables(schedule: Schedule) -> dict[str, Tensor]:
    """The buffers of an official checkpoint by name, in float64."""
    clean = schedule.alpha_bar
    return {
        "betas": schedule.beta,
        "alphas_cumprod": clean,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "sqrt_alphas_cumprod": clean.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - clean).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - clean).log(),
        "sqrt_recip_alphas_cumprod": (1 / clean).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / clean - 1).sqrt(),
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": schedule.posterior_x_0,
        "posterior_mean_coef2": schedule.posterior_x_t,
    }


def our_name(official: str) -> str:
    """`<part>.<parameter>` of an official parameter name; a name that no model has stays as it is.

    Example:
        >>> our_name("denoise_fn.ups.1.2.fn.norm.g")
        'denoiser.ups.1.attention.norm.weight'
    """
    return _rewritten(official, _HEADS, _TAILS)


def official_name(ours: str) -> str:
    """The official name of `<part>.<parameter>`.

    Example:
        >>> official_name("transform.levels.0.block.skip.bias")
        'transform_fn.downs.0.0.res_conv.bias'
    """
    return _rewritten(ours, *([(to, of) for of, to in pairs] for pairs in (_HEADS, _TAILS)))


def _rewritten(name: str, heads: Sequence[tuple[str, str]], tails: Sequence[tuple[str, str]]) -> str:
    for head, other_head in heads:
        found = re.match(head.replace(".", r"\.").replace("#", r"(\d+)") + r"\.", name)
        if found:
            rest = name[found.end() :]
            for tail, other_tail in tails:
                if f"{rest}.".startswith(f"{tail}."):
                    rest = other_tail + rest[len(tail) :]
                    break
            return f"{other_head.replace('#', ''.join(found.groups()))}.{rest}"
    return name


def _official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """OFFICIAL: attention is made of 1x1 convolutions and of norms over channels of a map."""
    if name.endswith(("to_qkv.weight", "to_out.weight")):
        return (*shape, 1, 1)
    if name.endswith(("attention.norm.weight", "attention.norm.bias")):
        return (1, *shape, 1, 1)
    return shape


def _networks(config: RVDConfig, *, channels: int) -> dict[str, nn.Module]:
    """The networks of these settings without memory for weights, in the order of RVD's parts."""
    with torch.device("meta"):
        found: dict[str, nn.Module] = {"context": ContextNetwork(config, channels=channels)}
        if config.prediction == "network":
            found["transform"] = TransformNetwork(config, channels=channels)
        return {**found, "denoiser": Denoiser(config, channels=channels)}


def _step(content: Any, *, where: str) -> int | None:
    """The step that a file tells; None: it tells none."""
    step = content.get("step") if isinstance(content, Mapping) else None
    if isinstance(step, Tensor) and step.numel() == 1:
        step = step.item()
    if step is not None and (not isinstance(step, int) or isinstance(step, bool) or step < 0):
        raise ValueError(f"{where}: step is {step!r:.80}, where the official code keeps a whole number.")
    return step
