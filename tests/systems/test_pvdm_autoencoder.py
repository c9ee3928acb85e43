"""PVDM's autoencoder and discriminators: a plain second form, free sizes, gradients, processes, what is refused."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from framecast.systems.pvdm import transformer
from framecast.systems.pvdm.adversary import BatchNorm, Discriminator, chosen_frames, deception, feature_matching, hinge
from framecast.systems.pvdm.autoencoder import PLANES, Autoencoder, Planes, check_size, split_flat, validate
from framecast.systems.pvdm.config import AutoencoderConfig
from framecast.systems.pvdm.weights_autoencoder import (
    autoencoder_weights,
    discriminator_weights,
    infer_autoencoder,
    official_name,
    official_tables,
)
from tests.formula import fill, uniform
from tests.parity.walk import FORWARD, GRADIENT, error

ROOT = Path(__file__).parents[2]
SMALL = AutoencoderConfig(
    width=12,
    patch=4,
    depth=2,
    heads=2,
    head_width=8,
    expansion=2,
    plane_depth=2,
    plane_heads=3,
    plane_head_width=5,
    plane_hidden=7,
)
SHAPES = [  # settings, channels, size, frames
    ({}, 3, (16, 16), 8),
    ({"latent_channels": 3}, 1, (8, 20), 5),
    ({"patch": 2, "depth": 1, "plane_depth": 1, "head_width": 12}, 2, (6, 4), 3),
    ({"heads": 1, "plane_depth": 3}, 1, (4, 12), 1),
]


def build(changes=None, channels=3, size=(16, 16), frames=8):
    network = fill(Autoencoder(replace(SMALL, **(changes or {})), channels=channels, size=size, frames=frames))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(0.6)  # nothing saturates, so that rounding is not magnified
    return network


def clips(channels=3, size=(16, 16), frames=8, rows=2):
    return uniform("clip", (rows, frames, channels, *size))


class Plain:
    """The same network line by line, one sequence at a time, in float64."""

    def __init__(self, network):
        self.config, self.grid, self.frames = network.config, network.grid, network.frames
        self.w = {name: p.detach().double().requires_grad_() for name, p in network.named_parameters()}

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.norm.weight"], self.w[f"{name}.norm.bias"], 1e-5)

    def attention(self, x, name, *, heads, angles=None):
        """One sequence (n, d); rotates where there are angles (n, head width)."""
        q, k, v = self.linear(self.norm(x, name), f"{name}.to_qkv").chunk(3, dim=-1)
        out = []
        for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):
            a = a * a.shape[-1] ** -0.5
            if angles is not None:
                a, b = self.turned(a, angles), self.turned(b, angles)
            out.append((a @ b.T).softmax(-1) @ c)
        return x + self.linear(torch.cat(out, -1), f"{name}.to_out")

    def turned(self, x, angles):
        even, odd = x[:, 0::2], x[:, 1::2]
        rest = torch.stack([-odd, even], dim=-1).flatten(1)
        return x * angles.cos() + rest * angles.sin()

    def trunk(self, x, name):
        """(T, H, W, d) of one clip."""
        c, (height, width) = self.config, self.grid
        f = [10_000 ** (-2 * j / c.head_width) for j in range(c.head_width // 2)]
        time = torch.tensor([[t * a for a in f + f] for t in range(self.frames)]).double()
        n = c.head_width // 4
        scales = [5 ** (j / max(n - 1, 1)) for j in range(n)]
        space = [
            [math.pi * s * y for y in (self.at(i, height), self.at(j, width)) for s in scales for _ in range(2)]
            for i in range(height)
            for j in range(width)
        ]
        space = torch.tensor(space).double()
        for layer in range(c.depth):
            at = f"{name}.layers.{layer}"
            lines = [self.attention(x[:, i, j], f"{at}.time", heads=c.heads, angles=time) for i, j in self.places()]
            x = torch.stack(lines, dim=1).unflatten(1, self.grid)
            frames = [self.attention(each.flatten(0, 1), f"{at}.space", heads=c.heads, angles=space) for each in x]
            x = torch.stack(frames).unflatten(1, self.grid)
            a, b = self.linear(self.norm(x, f"{at}.feed"), f"{at}.feed.into").chunk(2, dim=-1)
            x = x + self.linear(a * b * (1 + torch.erf(b / 2**0.5)) / 2, f"{at}.feed.out")
        return x

    def at(self, i, n):
        return -1 + 2 * i / (n - 1) if n > 1 else -1.0

    def places(self):
        return [(i, j) for i in range(self.grid[0]) for j in range(self.grid[1])]

    def read_out(self, line, plane):
        x = torch.cat([line, self.w[f"project.{plane}.token"][0]]) + self.w[f"project.{plane}.positions"][:, 0]
        for layer in range(self.config.plane_depth):
            at = f"project.{plane}.layers.{layer}"
            x = self.attention(x, f"{at}.attention", heads=self.config.plane_heads)
            inner = F.gelu(self.linear(self.norm(x, f"{at}.feed"), f"{at}.feed.into"))
            x = x + self.linear(inner, f"{at}.feed.out")
        return self.linear(x[0], f"project.{plane}.to_latent").tanh()

    def encode(self, clip):
        """One clip (T, C, H, W) to planes, channels last."""
        p, (height, width) = self.config.patch, self.grid
        patches = [
            [[frame[:, p * i : p * i + p, p * j : p * j + p].permute(1, 2, 0).flatten() for j in range(width)]
             for i in range(height)]
            for frame in clip.double()
        ]  # fmt: skip
        x = torch.stack([torch.stack([torch.stack(row) for row in frame]) for frame in patches])
        x = self.trunk(self.linear(x, "embed"), "encoder")
        times = range(self.frames)
        xy = [[self.read_out(x[:, i, j], "xy") for j in range(width)] for i in range(height)]
        yt = [[self.read_out(x[t, :, j], "yt") for j in range(width)] for t in times]
        xt = [[self.read_out(x[t, i, :], "xt") for i in range(height)] for t in times]
        return {name: torch.stack([torch.stack(r) for r in v]) for name, v in zip(PLANES, (xy, yt, xt))}

    def decode(self, planes):
        """Planes of one clip, channels last, to (T, C, H, W)."""
        xy, yt, xt = (self.linear(planes[name], f"spread.{name}") for name in PLANES)
        x = self.trunk(xy[None] + yt[:, None, :] + xt[:, :, None], "decoder")
        weight, bias = self.w["to_pixels.weight"], self.w["to_pixels.bias"]
        out = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, bias, stride=self.config.patch)
        return 2 / (1 + (-out).exp()) - 1


@pytest.mark.parametrize(("changes", "channels", "size", "frames"), SHAPES, ids=str)
def test_autoencoder_and_gradients_equal_the_plain_form(changes, channels, size, frames):
    network = build(changes, channels, size, frames)
    plain = Plain(network)
    video = clips(channels, size, frames, rows=2 if frames < 5 else 1)
    planes = network.encode(video)
    decoded = network.decode(planes)
    theirs = [plain.encode(clip) for clip in video]
    for name in PLANES:
        wanted = torch.stack([one[name] for one in theirs]).movedim(-1, 1)
        assert error(getattr(planes, name), wanted) < FORWARD
    wanted = torch.stack([plain.decode(one) for one in theirs])
    assert error(decoded, wanted) < FORWARD

    weights = uniform("weights", tuple(video.shape))
    (decoded * weights).sum().backward()
    (wanted * weights).sum().backward()
    for name, p in network.named_parameters():
        assert error(p.grad, plain.w[name].grad) < GRADIENT, name


def test_clips_of_a_batch_are_coded_alone():
    network, video = build(size=(8, 12)), clips(size=(8, 12), rows=3)
    with torch.no_grad():
        together = network.encode(video)
        alone = torch.cat([network.encode(clip[None]).flat() for clip in video])
        assert error(together.flat(), alone) < 1e-6
        frames = torch.cat([network.decode(network.split(latent[None])) for latent in alone])
        assert error(network.decode(together), frames) < 1e-6


@pytest.mark.parametrize("tokens", [1, 9, 50])
def test_parts_of_any_length_give_the_same_values_and_gradients(monkeypatch, tokens):
    network, video = build(size=(8, 12)), clips(size=(8, 12))

    def made():
        network.zero_grad()
        decoded = network.decode(network.encode(video))
        decoded.square().sum().backward()
        return decoded, [p.grad.clone() for p in network.parameters()]

    whole, gradients = made()
    monkeypatch.setattr(transformer, "TOKENS_AT_ONCE", tokens)
    parts, others = made()
    assert error(parts, whole) < 1e-6
    assert max(error(ours, theirs) for ours, theirs in zip(others, gradients)) < 1e-5


def test_checkpointing_changes_no_gradient():
    network, video = build(size=(8, 8)), clips(size=(8, 8))
    found = []
    for again in (False, True):
        network.checkpointing = again
        assert network.checkpointing is again
        network.zero_grad()
        network.decode(network.encode(video)).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_uneven_turns_are_turns_where_angles_of_a_pair_are_equal():
    angles = uniform("angles", (5, 3)).repeat_interleave(2, dim=-1) * 3
    x = uniform("x", (5, 6))
    turn = torch.polar(torch.ones(5, 3), angles[:, ::2].contiguous())
    ours = transformer.turned(x, turn)
    assert error(transformer.turned_unevenly(x, angles.cos(), angles.sin()), ours) < 1e-6
    torch.testing.assert_close(ours.norm(dim=1), x.norm(dim=1))


def test_half_precision_stays_close():
    network, video = build(size=(8, 8)), clips(size=(8, 8))
    with torch.no_grad():
        exact = network.decode(network.encode(video))
        with torch.autocast("cpu", torch.bfloat16):
            decoded = network.decode(network.encode(video))
        halved = build(size=(8, 8)).bfloat16()
        rounded = halved.decode(halved.encode(video.bfloat16()))
    assert decoded.dtype == torch.float32 and error(decoded, exact) < 0.05
    assert error(rounded, exact) < 0.1


def test_flat_latent_holds_the_planes_in_order():
    shapes = {"xy": (2, 3), "yt": (5, 3), "xt": (5, 2)}
    planes = Planes(**{name: uniform(name, (2, 4, *shape)) for name, shape in shapes.items()})
    flat = planes.flat()
    assert flat.shape == (2, 4, 6 + 15 + 10)
    assert flat[1, 2, 1 * 3 + 2] == planes.xy[1, 2, 1, 2]
    assert flat[1, 2, 6 + 4 * 3 + 1] == planes.yt[1, 2, 4, 1]
    assert flat[1, 2, 21 + 3 * 2 + 1] == planes.xt[1, 2, 3, 1]
    again = split_flat(flat, frames=5, grid=(2, 3))
    assert all(torch.equal(getattr(again, name), getattr(planes, name)) for name in PLANES)
    with pytest.raises(ValueError, match=r"31 places.*6 frames"):
        split_flat(flat, frames=6, grid=(2, 3))


def test_published_counts_on_no_memory():
    with torch.device("meta"):
        built = [Autoencoder(AutoencoderConfig(), channels=3, size=(256, 256), frames=16)]
        built += [Discriminator(channels=3, dims=2), Discriminator(channels=3, dims=3)]
    counts = [sum(p.numel() for p in network.parameters()) for network in built]
    assert counts == [62_064_399, 2_766_529, 11_057_857]


@pytest.mark.parametrize(
    ("changes", "size", "frames", "said"),
    [
        ({"depth": 0}, (8, 8), 4, "depth is 0"),
        ({"head_width": 6}, (8, 8), 4, "head_width is 6"),
        ({}, (8, 10), 4, "frames are 10x8 pixels.*multiples of 4; try 8x8"),
        ({}, (0, 8), 4, "frames are 8x0 pixels.*try 8x4"),
        ({}, (8, 8), 0, "clip of 0 frames"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, size, frames, said):
    config = replace(SMALL, **changes)
    with pytest.raises(ValueError, match=said):
        validate(config)
        check_size(config, size, frames=frames)
    with pytest.raises(ValueError, match=said):
        Autoencoder(config, channels=1, size=size, frames=frames)


@pytest.mark.parametrize("shape", [(1, 7, 3, 16, 16), (1, 8, 1, 16, 16), (1, 8, 3, 16, 12)])
def test_clips_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="was made for 8 frames of 3 channels and 16x16 pixels"):
        build().encode(torch.zeros(shape))


# ---- official weights


def official_state(network):
    """The network's weights as an official file holds them."""
    found = {"coords": torch.linspace(-1, 1, network.frames)[:, None], **official_tables(network.config)}
    for name, tensor in network.state_dict().items():
        linear = name.endswith(".to_latent.weight") or (name.startswith("spread.") and tensor.ndim == 2)
        shaped = tensor[:, :, None, None] if linear else tensor
        found[official_name(name)] = shaped.transpose(0, 1) if name.endswith(".positions") else shaped
    return found


def test_official_weights_come_back_with_their_settings():
    network = build({"latent_channels": 3}, channels=1, size=(8, 20), frames=5)
    state = official_state(network)
    read = infer_autoencoder(state, base=AutoencoderConfig(plane_heads=SMALL.plane_heads), where="file")
    assert read == (network.config, 1, (8, 20), 5)
    loaded = autoencoder_weights({name: t.half() if t.ndim > 1 else t for name, t in state.items()}, network, where="")
    assert all(t.dtype == torch.float32 for t in loaded.values())
    exact = autoencoder_weights(state, network, where="file")
    assert exact.keys() == network.state_dict().keys()
    assert all(torch.equal(exact[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("decoder.layers.1.0.norm.bias"), r"no tensor decoder\.layers\.1\.0\.norm\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update(post_yt=torch.zeros(1)), "post_yt"),
        (lambda s: s.update({"pre_xt.weight": torch.zeros(4, 12)}), r"pre_xt\.weight has shape"),
        (lambda s: s["decoder.frame_rot_emb.inv_freqs"].mul_(1.01), r"decoder\.frame_rot_emb\.inv_freqs is another"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, said):
    network = build()
    state = {name: tensor.clone() for name, tensor in official_state(network).items()}
    change(state)
    with pytest.raises(ValueError, match=said):
        autoencoder_weights(state, network, where="file")


def test_files_of_another_model_are_refused():
    with pytest.raises(ValueError, match="not the weights of a PVDM autoencoder"):
        infer_autoencoder({"a": torch.zeros(1)}, base=SMALL, where="file")


def test_official_discriminators_are_read_beside_the_perceptual_network():
    networks = {f"discriminator_{dims}d": fill(Discriminator(channels=1, dims=dims, width=2)) for dims in (2, 3)}
    state = {
        f"{key}.{name.replace('stages.', 'model')}": tensor
        for key, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    read = discriminator_weights({**state, "perceptual_loss.net": torch.zeros(1)}, networks, where="file")
    for key, network in networks.items():
        assert all(torch.equal(read[key][name], tensor) for name, tensor in network.state_dict().items())
    state.pop("discriminator_3d.model1.1.running_var")
    with pytest.raises(ValueError, match=r"discriminator_3d\.model1\.1\.running_var"):
        discriminator_weights(state, networks, where="file")


# ---- discriminators and losses


def test_discriminator_starts_as_published():
    network = Discriminator(channels=3, dims=2, width=32)
    conv, norm = network.stages[2][0], network.stages[2][1]
    assert abs(conv.weight.std().item() - 0.02) < 1e-3
    assert abs(norm.weight.mean().item() - 1) < 0.01 and 0.01 < norm.weight.std() < 0.03
    assert not norm.bias.any()
    kinds = [[type(layer) for layer in stage] for stage in network.stages]
    middle = [nn.Conv2d, BatchNorm, nn.LeakyReLU]
    assert kinds == [[nn.Conv2d, nn.LeakyReLU], middle, middle, middle, [nn.Conv2d]]


def test_widths_of_a_discriminator_end_at_512():
    with torch.device("meta"):
        network = Discriminator(channels=1, dims=2, width=256, halvings=4)
    assert [stage[0].out_channels for stage in network.stages] == [256, 512, 512, 512, 512, 1]
    assert [stage[0].stride[0] for stage in network.stages] == [2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("dims", [2, 3])
def test_tensors_of_another_kind_are_refused(dims):
    network = Discriminator(channels=1, dims=dims, width=2)
    with pytest.raises(ValueError, match="was given to a discriminator of"):
        network(torch.zeros(1, *[1] * (3 - dims), 1, 8, 8))


def test_hinge_forgives_what_is_clearly_right():
    real, fake = torch.tensor([1.5, 0.5], requires_grad=True), torch.tensor([-2.0, 1.0], requires_grad=True)
    loss = hinge(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert real.grad.tolist() == [0.0, -0.25] and fake.grad.tolist() == [0.0, 0.25]
    assert deception(torch.tensor([1.0, 3.0])).item() == -2.0


def test_feature_matching_adds_levels_and_teaches_the_made_side_only():
    real = [torch.zeros(2, 2, requires_grad=True), torch.zeros(4, requires_grad=True), torch.zeros(1)]
    fake = [torch.full((2, 2), 2.0, requires_grad=True), torch.full((4,), -3.0, requires_grad=True), torch.ones(1)]
    loss = feature_matching(real, fake)
    loss.backward()
    assert loss.item() == 5.0
    assert real[0].grad is None and fake[1].grad.tolist() == [-0.25] * 4


def test_each_clip_gives_the_frame_chosen_for_it():
    video = torch.arange(6.0).view(2, 3, 1, 1, 1).expand(2, 3, 1, 2, 2)
    assert chosen_frames(video, torch.tensor([2, 0]))[:, 0, 0, 0].tolist() == [2.0, 3.0]


RANK = """
import json, sys
import torch
from torch import distributed
from tests.systems.test_pvdm_autoencoder import normalised, share

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.save(normalised(share()[rank]), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def share():
    """Rows of two processes, not equally many, far from 0, and what the loss weighs them with."""
    x, weights = 3 + uniform("rows", (5, 3, 2, 4)), uniform("weights", (5, 3, 2, 4))
    return [(x[:2], weights[:2]), (x[2:], weights[2:])]


def normalised(rows):
    """Output, gradient of the rows, sums that make the gradient of the weights, and what is remembered."""
    norm = fill(BatchNorm(3))
    x = rows[0].clone().requires_grad_()
    out = norm(x)
    (out * rows[1]).sum().backward()
    kept = [norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    return [out.detach(), x.grad, *kept]


def test_batch_norm_of_two_processes_is_that_of_one(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(tmp_path / "rank.py")]
    running = [
        subprocess.Popen([*words, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = normalised([torch.cat(parts) for parts in zip(*share())])
    for place in (0, 1):  # rows
        assert error(torch.cat([first[place], second[place]]), whole[place]) < 1e-5
    for place in (2, 3):  # each process has the gradient of its own rows
        assert error(first[place] + second[place], whole[place]) < 1e-5
    for place in (4, 5):
        assert torch.equal(first[place], second[place])
        assert error(first[place], whole[place]) < 1e-6
