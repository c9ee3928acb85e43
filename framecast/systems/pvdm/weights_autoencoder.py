# SPDX-License-Identifier: Apache-2.0
"""Weights of the official PVDM autoencoder and discriminators (revision 793172f) by our names.

The official files are state dicts, `model_*.pth` of stage 1 and the `discriminator_2d`, `discriminator_3d` in its
`loss_last.pth`. Names and shapes tell all settings of the autoencoder but the number of heads of its projections.
Tables that the official code stores and ours computes must agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from framecast.foreign import check_names, shape_of
from framecast.systems.pvdm.adversary import Discriminator
from framecast.systems.pvdm.autoencoder import PLANES, Autoencoder
from framecast.systems.pvdm.config import AutoencoderConfig
from framecast.systems.pvdm.transformer import space_scales, time_scales

UNREAD = "coords"  # in official files, without a use
PERCEPTUAL = "perceptual_loss."
ROUNDING = 1e-5  # relative difference of tables, computed in float32 there as here

_PARTS = {"time": "0", "space": "1", "attention": "0"}  # of a layer; feed is the last
_INSIDE = {"norm": "norm", "to_qkv": "fn.to_qkv", "to_out": "fn.to_out.0", "into": "fn.net.0", "out": "fn.net.3"}
_WHOLE = {"embed": "encoder.to_patch_embedding", "to_pixels": "to_pixel.1"}


def official_name(ours: str) -> str:
    """What a weight of our autoencoder is called in official files.

    Example:
        >>> official_name("encoder.layers.3.feed.into.weight")
        'encoder.layers.3.2.fn.net.0.weight'
        >>> official_name("project.xy.positions")
        'xy_pos_embedding'
    """
    owner, _, leaf = ours.rpartition(".")
    if owner in _WHOLE:
        return f"{_WHOLE[owner]}.{leaf}"
    network, *middle = owner.split(".")
    if network == "spread":
        return f"post_{middle[0]}.{leaf}"
    if network == "project":
        plane, *middle = middle
        if not middle:
            return f"{plane}_{'pos_embedding' if leaf == 'positions' else leaf}"
        if middle == ["to_latent"]:
            return f"pre_{plane}.{leaf}"
        network = f"{plane}_quant_attn"
    _, layer, part, inside = middle
    place = _PARTS.get(part, "1" if network.endswith("_quant_attn") else "2")
    return f"{network}.layers.{layer}.{place}.{_INSIDE[inside]}.{leaf}"


def infer_autoencoder(
    state: Mapping[str, Tensor], *, base: AutoencoderConfig, where: str
) -> tuple[AutoencoderConfig, int, tuple[int, int], int]:
    """Settings, channels, size and frames that names and shapes tell; only the heads of the projections are `base`'s.

    Args:
        state: tensors by official name; their values do not matter.
        base: where the rest comes from.
        where: the file, for messages.

    Raises:
        ValueError: names that no PVDM autoencoder has, or shapes that none can have.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(state, name, axes=axes, network="a PVDM autoencoder", where=where)

    def depth(layers: str) -> int:
        return next(n for n in count() if not any(name.startswith(f"{layers}.{n}.") for name in state))

    width, channels, patch, _ = shape("to_pixel.1.weight", 4)
    head_width = 2 * shape("encoder.frame_rot_emb.inv_freqs", 1)[0]
    inside = shape("encoder.layers.0.0.fn.to_qkv.weight", 2)[0] // 3
    plane_inside = shape("xy_quant_attn.layers.0.0.fn.to_qkv.weight", 2)[0] // 3
    config = replace(
        base,
        width=width,
        latent_channels=shape("post_xy.weight", 4)[1],
        patch=patch,
        depth=depth("encoder.layers"),
        heads=inside // head_width,
        head_width=head_width,
        expansion=shape("encoder.layers.0.2.fn.net.3.weight", 2)[1] // width,
        plane_depth=depth("xy_quant_attn.layers"),
        plane_head_width=plane_inside // base.plane_heads,
        plane_hidden=shape("xy_quant_attn.layers.0.1.fn.net.0.weight", 2)[0],
    )
    frames, height, width = (shape(f"{plane}_pos_embedding", 3)[1] - 1 for plane in PLANES)
    return config, channels, (height * patch, width * patch), frames


def autoencoder_weights(state: Mapping[str, Tensor], network: Autoencoder, *, where: str) -> dict[str, Tensor]:
    """What loads into the network, float32 and of its shapes, every tensor of `state` accounted for.

    Args:
        state: tensors by official name.
        network: built for them; its values do not matter.
        where: the file, for messages.

    Raises:
        ValueError: a name too few or too many, another shape (the first is named), or other tables.
    """
    ours = network.state_dict()
    shapes = {official_name(name): _official_shape(name, tensor) for name, tensor in ours.items()}
    tables = official_tables(network.config)
    state = {name: tensor for name, tensor in state.items() if name != UNREAD}
    check_names(state, shapes | {name: tuple(table.shape) for name, table in tables.items()}, where=where)
    for name, table in tables.items():
        if not torch.allclose(state[name].double(), table.double(), rtol=ROUNDING, atol=0):
            raise ValueError(
                f"{where}: {name} is another table than the official one, so its weights mean other things."
            )
    return {name: state[official_name(name)].float().reshape(tensor.shape) for name, tensor in ours.items()}


def discriminator_weights(
    state: Mapping[str, Tensor], networks: Mapping[str, Discriminator], *, where: str
) -> dict[str, dict[str, Tensor]]:
    """What loads into the discriminators, every tensor of `state` accounted for.

    Args:
        state: tensors by official name; those of the perceptual loss beside them are passed over.
        networks: by official name, `discriminator_2d` and `discriminator_3d`.
        where: the file, for messages.

    Raises:
        ValueError: a name too few or too many, or another shape; the first is named.
    """
    found = {name: tensor for name, tensor in state.items() if not name.startswith(PERCEPTUAL)}
    ours = {key: network.state_dict() for key, network in networks.items()}
    official = {(key, name): f"{key}.model{name.removeprefix('stages.')}" for key, own in ours.items() for name in own}
    check_names(found, {official[at]: tuple(ours[at[0]][at[1]].shape) for at in official}, where=where)
    return {key: {name: found[official[key, name]] for name in own} for key, own in ours.items()}


def _official_shape(ours: str, tensor: Tensor) -> tuple[int, ...]:
    if ours.endswith(".positions"):
        return (1, len(tensor), tensor.shape[2])
    linear = ours.endswith(".to_latent.weight") or re.fullmatch(r"spread\.\w+\.weight", ours)
    return (*tensor.shape, 1, 1) if linear else tuple(tensor.shape)  # 1x1 convolutions there


def official_tables(config: AutoencoderConfig) -> dict[str, Tensor]:
    """What official files hold beside the weights and our network computes."""
    scales = {"frame_rot_emb.inv_freqs": time_scales, "image_rot_emb.scales": space_scales}
    return {f"{trunk}.{name}": of(config.head_width) for trunk in ("encoder", "decoder") for name, of in scales.items()}
