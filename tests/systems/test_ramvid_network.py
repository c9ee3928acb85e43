"""RaMViD's network: counts, a plain second form of it, clip lengths, settings it refuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from framecast.systems.ramvid.config import RaMViDConfig
from framecast.systems.ramvid.network import UNet3D, blocks_to_channels, channels_to_blocks, time_lengths
from tests.formula import fill, uniform

SMALL = RaMViDConfig(width=8, multipliers=(1, 2), res_blocks=1, attention=(2,), heads=2, groups=4)

COUNTS = [  # ramvid: official builder
    ({}, 3, 235_071_875),
    ({"res_blocks": 3}, 3, 308_343_427),
    ({"scale_shift": False}, 3, 231_263_363),
    ({"res_blocks": 3, "scale_shift": False}, 3, 303_221_635),
    ({"learned_variance": True}, 3, 235_082_246),
    ({}, 1, 235_058_049),
    ({"width": 64}, 3, 58_799_299),
    ({"width": 32}, 3, 14_715_491),
]


@pytest.mark.parametrize(("changes", "channels", "count"), COUNTS)
def test_parameter_counts_are_the_published_ones(changes, channels, count):
    with torch.device("meta"):
        network = UNet3D(RaMViDConfig(**changes), channels=channels)
    assert sum(p.numel() for p in network.parameters()) == count


def plain(network: UNet3D, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """The network once more, from its weights by official name: explicit attention, plain layers, axes B C T H W."""
    c, w = network.config, dict(network.state_dict())
    frames = [c.time_frames]
    while len(frames) < len(c.multipliers):
        frames.append(frames[-1] // 2)

    def conv(x, name, **kwargs):
        return F.conv3d(x, w[f"{name}.weight"], w[f"{name}.bias"], **kwargs)

    def norm(x, name):
        return F.group_norm(x, c.groups, w[f"{name}.weight"], w[f"{name}.bias"])

    def residual(x, name):
        e = F.linear(F.silu(emb), w[f"{name}.emb_layers.1.weight"], w[f"{name}.emb_layers.1.bias"])[
            ..., None, None, None
        ]
        h = conv(F.silu(norm(x, f"{name}.in_layers.0")), f"{name}.in_layers.2", padding=1)
        if c.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm(h, f"{name}.out_layers.0") * (1 + scale) + shift
        else:
            h = norm(h + e, f"{name}.out_layers.0")
        h = conv(F.silu(h), f"{name}.out_layers.3", padding=1)
        return h + (conv(x, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in w else x)

    def attend(x, name, heads):
        rows, channels = x.shape[:2]
        tokens = norm(x, f"{name}.norm").flatten(2)
        qkv = F.conv1d(tokens, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"]).view(
            rows * heads, 3, channels // heads, -1
        )
        weights = torch.softmax(qkv[:, 0].mT @ qkv[:, 1] / (channels / heads) ** 0.5, dim=-1)
        h = (qkv[:, 2] @ weights.mT).reshape(rows, channels, -1)
        return x + F.conv1d(h, w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"]).view(x.shape)

    def block(x, name, heads, up_frames):
        if f"{name}.0.op.weight" in w:
            level = sum(f"input_blocks.{i}.0.op.weight" in w for i in range(int(name.split(".")[1]) + 1))
            stride = 2 if c.time_frames and frames[level] else 1
            return conv(x, f"{name}.0.op", stride=(stride, 2, 2), padding=1)
        x = residual(x, f"{name}.0")
        if f"{name}.1.qkv.weight" in w:
            x = attend(x, f"{name}.1", heads)
        for child in (1, 2):
            if f"{name}.{child}.conv.weight" in w:
                size = (up_frames or x.shape[2], 2 * x.shape[3], 2 * x.shape[4])
                x = conv(F.interpolate(x, size, mode="nearest"), f"{name}.{child}.conv", padding=1)
        return x

    angles = t[:, None] * 10_000.0 ** (-torch.arange(c.width // 2) / (c.width // 2))
    emb = F.linear(torch.cat([angles.cos(), angles.sin()], 1), w["time_embed.0.weight"], w["time_embed.0.bias"])
    emb = F.linear(F.silu(emb), w["time_embed.2.weight"], w["time_embed.2.bias"])
    if labels is not None:
        emb = emb + w["label_emb.weight"][labels]
    stack = [conv(x, "input_blocks.0.0", padding=1)]
    for i in range(1, len(c.multipliers) * (c.res_blocks + 1)):
        stack.append(block(stack[-1], f"input_blocks.{i}", c.heads, 0))
    x = residual(attend(residual(stack[-1], "middle_block.0"), "middle_block.1", c.heads), "middle_block.2")
    for i in range(len(stack)):
        level = len(c.multipliers) - 1 - i // (c.res_blocks + 1)
        up_frames = frames[level - 1] if c.time_frames else 0
        x = block(torch.cat([x, stack.pop()], 1), f"output_blocks.{i}", c.heads_up or c.heads, up_frames)
    return conv(F.silu(norm(x, "out.0")), "out.2", padding=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_shift": False, "res_blocks": 2, "attention": (1, 2)},
        {"multipliers": (1, 2, 3), "attention": (1, 4), "heads": 4, "heads_up": 2},
        {"multipliers": (1, 1, 2, 2), "attention": (), "time_frames": 4},
        {"multipliers": (1, 2), "time_frames": 5},
        {"multipliers": (1, 1, 1, 1), "attention": (8,), "time_frames": 2},
        {"classes": 3, "learned_variance": True},
    ],
    ids=str,
)
def test_network_equals_its_plain_form(changes):
    config = replace(SMALL, **changes)
    network = fill(UNet3D(config, channels=2))
    video = uniform("x", (2, config.time_frames or 3, 2, 8, 16))
    t, labels = torch.tensor([3.0, 777.5]), torch.tensor([2, 0]) if config.classes else None
    with torch.no_grad():
        found = network(video, t, labels)
        wanted = plain(network, video.transpose(1, 2), t, labels).transpose(1, 2)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() / wanted.abs().max() < 1e-5


def test_patches_round_trip():
    video = uniform("x", (2, 3, 4, 6, 9))
    inside = blocks_to_channels(video, 3)
    assert inside.shape == (2, 36, 3, 2, 3)
    assert torch.equal(channels_to_blocks(inside, 3), video)


def test_patched_network_keeps_noise_and_variance_apart():
    network = fill(UNet3D(replace(SMALL, patch=2, learned_variance=True), channels=3))
    with torch.no_grad():
        network.out[2].weight[12:].zero_()  # the variance's half of 3 * 2^2 channels each
        network.out[2].bias[12:].zero_()
        noise, variance = network(uniform("x", (1, 2, 3, 8, 8)), torch.zeros(1)).chunk(2, dim=2)
    assert noise.shape == (1, 2, 3, 8, 8)
    assert bool((variance == 0).all()) and bool((noise != 0).all())


def test_checkpointing_gives_equal_gradients():
    video, t = uniform("x", (1, 3, 1, 8, 8)), torch.tensor([5.0])
    gradients = []
    for checkpointing in (False, True):
        network = fill(UNet3D(SMALL, channels=1)).train()
        network.checkpointing = checkpointing
        network(video, t).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_clips_of_other_lengths_fit_where_time_is_not_resampled():
    network = UNet3D(SMALL, channels=1)
    assert [network(torch.zeros(1, n, 1, 8, 8), torch.zeros(1)).shape[1] for n in (1, 3, 6)] == [1, 3, 6]


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_time_lengths_are_those_the_way_up_asks_for(levels):
    for frames in range(1, 41):
        up = [frames >> level for level in range(levels)]  # halved, rounded down
        down = [frames]
        for level in range(1, levels):
            down.append(-(-down[-1] // 2) if up[level] else down[-1])
        fits = all(d == (u or down[i]) for i, (d, u) in enumerate(zip(down[:-1], up[:-1])))
        if fits:
            assert time_lengths(frames, levels=levels) == down
        else:
            with pytest.raises(ValueError, match="cannot halve evenly"):
                time_lengths(frames, levels=levels)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 10}, "width 10 is not a multiple of the 4 groups"),
        ({"attention": (3,)}, "attention names the down-sampling factor 3"),
        ({"heads": 3}, "3 attention heads do not divide the 16 channels of level 1"),
        ({"heads_up": 5}, "5 attention heads do not divide"),
        ({"multipliers": ()}, "multipliers are"),
        ({"res_blocks": 0}, "res_blocks is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"multipliers": (1, 1, 1, 1), "time_frames": 6}, "time_frames is 6, which 4 levels cannot halve evenly"),
        ({"patch": 0}, "patch is 0"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        UNet3D(replace(SMALL, **changes), channels=1)


@pytest.mark.parametrize(
    ("shape", "changes", "sentence"),
    [
        ((1, 3, 2, 8, 8), {}, "has 2 channels, this network was made for 1"),
        ((1, 3, 1, 8, 9), {}, "multiples of 2"),
        ((1, 3, 1, 8, 10), {"patch": 2}, "multiples of 4"),
        ((1, 3, 1, 8, 8), {"time_frames": 4}, "takes exactly 4"),
    ],
)
def test_clips_that_do_not_fit_are_refused_in_a_sentence(shape, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        UNet3D(replace(SMALL, **changes), channels=1)(torch.zeros(shape), torch.zeros(1))
