"""PVDM's latent denoiser: a plain second form of it, its planes and condition, guidance, what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from framecast.diffusion.process import x_0_from_eps
from framecast.diffusion.schedule import scaled_linear
from framecast.systems.pvdm.config import DenoiserConfig
from framecast.systems.pvdm.denoiser import (
    Denoiser,
    check_planes,
    denoise,
    fold,
    plane_sizes,
    stacked,
    unfold,
    validate,
)
from framecast.systems.pvdm.weights_denoiser import infer, official_name, read_denoiser
from tests.formula import fill, uniform
from tests.parity.walk import error

SMALL = DenoiserConfig(width=8, multipliers=(1, 2), res_blocks=1, attention=(1,), heads=2, groups=4)
SHAPES = [  # settings, channels of the latent, h, w, S
    ({}, 4, 4, 4, 2),
    ({}, 4, 6, 4, 2),  # no two planes alike
    ({}, 3, 8, 4, 8),  # xy and yt alike
    ({"conditional": False}, 4, 4, 4, 4),  # all alike
    ({"multipliers": (1, 2, 4, 4), "res_blocks": 2, "attention": (1, 2, 4)}, 4, 16, 16, 8),  # as published
    ({"multipliers": (1, 1, 3), "attention": (2, 4), "heads": 4}, 2, 8, 12, 4),
    ({"multipliers": (1, 2), "attention": (2,), "head_width": 4}, 4, 4, 4, 6),
    ({"scale_shift": False, "resample": "convolution", "res_blocks": 3}, 4, 4, 6, 2),
    ({"multipliers": (2, 1), "attention": ()}, 1, 2, 4, 6),
    ({"multipliers": (1,), "conditional": False}, 4, 3, 5, 1),
]


def length(planes):
    return sum(rows * columns for rows, columns in plane_sizes(planes))


def made(config=SMALL, *, channels=4, planes=(4, 4, 2)):
    """A network with weights from the formula."""
    return fill(Denoiser(config, channels=channels, planes=planes)).eval()


def given(*, rows=3, channels=4, planes=(4, 4, 2)):
    """A noisy latent, levels, a condition."""
    z, condition = (uniform(name, (rows, channels, length(planes))) for name in ("z", "condition"))
    return z, torch.tensor([0, 500, 999, 3, 70])[:rows], condition


class Plain:
    """The network once more, as its description has it: three planes one by one, whole softmaxes, official names."""

    def __init__(self, weights: dict[str, Tensor], config: DenoiserConfig):
        self.weights, self.config = weights, config

    def layer(self, name: str, x: Tensor, **options) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return {2: F.linear, 3: F.conv1d, 4: F.conv2d}[weight.ndim](x, weight, bias, **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, self.config.groups, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def residual(self, name: str, x: Tensor, step: Tensor, resized=lambda x: x) -> Tensor:
        h = resized(F.silu(self.norm(f"{name}.in_layers.0", x)))
        h = self.layer(f"{name}.in_layers.2", h, padding=1)
        told = self.layer(f"{name}.emb_layers.1", F.silu(step))[:, :, None, None]
        if self.config.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + told)
        h = self.layer(f"{name}.out_layers.3", F.silu(h), padding=1)
        x = resized(x)
        return h + (self.layer(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.weights else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        """Of (B, C, N)."""
        rows, channels, count = x.shape
        width = self.config.head_width or channels // self.config.heads
        qkv = self.layer(f"{name}.qkv", self.norm(f"{name}.norm", x)).reshape(rows, -1, 3, width, count)
        q, k, v = (qkv * x.new_tensor([width**-0.25, width**-0.25, 1])[:, None, None]).unbind(dim=2)
        weights = torch.einsum("bhci,bhcj->bhij", q, k).softmax(dim=3)
        h = torch.einsum("bhij,bhcj->bhci", weights, v).reshape(x.shape)
        return x + self.layer(f"{name}.proj_out", h)

    def across(self, name: str, planes: list[Tensor]) -> list[Tensor]:
        tokens = self.attention(name, torch.cat([plane.flatten(2) for plane in planes], dim=2))
        cut = tokens.split([plane[0, 0].numel() for plane in planes], dim=2)
        return [part.reshape(plane.shape) for part, plane in zip(cut, planes)]

    def block(self, name: str, x: Tensor, step: Tensor, resized=None) -> Tensor:
        """Everything under `name.0`, `name.1`, ...; the last one resizes, where there is something that resizes."""
        count = len({key[len(name) + 1 :].split(".")[0] for key in self.weights if key.startswith(f"{name}.")})
        for i in range(count):
            here, last = f"{name}.{i}", resized if i + 1 == count else None
            if f"{here}.qkv.weight" in self.weights:
                x = self.attention(here, x.flatten(2)).reshape(x.shape)
            elif f"{here}.op.weight" in self.weights:
                x = self.layer(f"{here}.op", x, stride=2, padding=1)
            elif f"{here}.conv.weight" in self.weights:
                x = self.layer(f"{here}.conv", twice(x), padding=1)
            else:
                x = self.residual(here, x, step, last or (lambda x: x))
        return x

    def __call__(self, z: Tensor, t: Tensor, condition: Tensor | None, planes) -> Tensor:
        config = self.config
        half = config.width // 2
        angles = t.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)  # theirs are float32 too
        step = self.layer("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1).to(z))
        step = self.layer("time_embed.2", F.silu(step))
        if config.conditional:
            z = torch.cat([z, torch.zeros_like(z) if condition is None else condition], dim=1)
        sizes = plane_sizes(planes)
        cut = z.split([rows * columns for rows, columns in sizes], dim=2)
        x = [self.layer("input_blocks.0.0", part.unflatten(2, size), padding=1) for part, size in zip(cut, sizes)]
        stack, per_level = [x], config.res_blocks + 1
        for i in range(1, per_level * len(config.multipliers)):
            resized = (lambda x: F.avg_pool2d(x, 2)) if i % per_level == 0 else None
            x = [self.block(f"input_blocks.{i}", plane, step, resized) for plane in x]
            x = self.across(f"input_attns.{i}", x)
            stack.append(x)
        x = self.across("mid_attn", [self.block("middle_block", plane, step) for plane in x])
        for i in range(len(stack)):
            x = [torch.cat(pair, dim=1) for pair in zip(x, stack.pop())]
            resized = twice if (i + 1) % per_level == 0 and stack else None
            x = self.across(
                f"output_attns.{i}", [self.block(f"output_blocks.{i}", plane, step, resized) for plane in x]
            )
        x = [self.layer("out.2", F.silu(self.norm("out.0", plane)), padding=1) for plane in x]
        return torch.cat([plane.flatten(2) for plane in x], dim=2)


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def official(network: Denoiser) -> dict[str, Tensor]:
    return {official_name(name): value.contiguous() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("changes", "channels", "h", "w", "s"), SHAPES, ids=str)
@torch.no_grad()
def test_network_equals_its_plain_form(changes, channels, h, w, s):
    config, planes = replace(SMALL, **changes), (h, w, s)
    network = made(config, channels=channels, planes=planes).double()
    z, t, condition = given(channels=channels, planes=planes)
    for told in [None, condition.double()] if config.conditional else [None]:
        theirs = Plain(official(network), config)(z.double(), t, told, planes)
        assert error(network(z.double(), t, told), theirs) < 1e-10


@pytest.mark.parametrize(("changes", "channels", "h", "w", "s"), SHAPES, ids=str)
def test_settings_are_told_by_official_weights(changes, channels, h, w, s):
    config = replace(SMALL, **changes)
    network = made(config, channels=channels, planes=(h, w, s))
    state = {f"diffusion_model.{name}": value.half() for name, value in official(network).items()}
    state["diffusion_model.zeros"] = torch.zeros(1, channels, length((h, w, s)))
    blank = DenoiserConfig(heads=config.heads, head_width=config.head_width, groups=4)
    assert infer(state, base=blank, where="file") == (config, channels)
    network.load_state_dict(read_denoiser(state, network, where="file"))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}


def test_weights_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"file has no tensor time_embed\.0\.weight: these are not the weights"):
        infer({"conv.weight": torch.zeros(1)}, base=SMALL, where="file")


@torch.no_grad()
def test_no_condition_is_a_condition_of_zeros():
    network, (z, t, condition) = made(), given()
    assert torch.equal(network(z, t), network(z, t, torch.zeros_like(z)))
    assert not torch.allclose(network(z, t), network(z, t, condition), atol=1e-3)


@torch.no_grad()
def test_every_plane_sees_every_other():
    planes = (4, 6, 2)
    network, (z, t, _) = made(planes=planes), given(planes=planes)
    sizes = [rows * columns for rows, columns in plane_sizes(planes)]
    before = network(z, t).split(sizes, dim=2)
    for i, part in enumerate(z.split(sizes, dim=2)):
        changed = z.clone()
        changed.split(sizes, dim=2)[i].copy_(2 * part)
        after = network(changed, t).split(sizes, dim=2)
        assert all(not torch.allclose(one, two, atol=1e-3) for one, two in zip(before, after))


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other():
    network, (z, t, condition) = made(), given()
    together = network(z, t, condition)
    for i in range(len(z)):
        alone = network(z[i : i + 1], t[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("planes", [(4, 4, 2), (4, 6, 2), (8, 4, 8), (4, 4, 4), (4, 8, 8)])
def test_folded_tokens_are_images_in_order_and_unfold_again(planes):
    tokens, stacks = uniform("tokens", (3, length(planes), 5)), stacked(planes)
    images = fold([tokens], stacks)
    assert torch.equal(unfold(images, stacks), tokens)
    singles = [image for stack, one in zip(stacks, images) for image in one.unflatten(0, (3, stack.planes)).unbind(1)]
    cut = tokens.transpose(1, 2).split([rows * columns for rows, columns in plane_sizes(planes)], dim=2)
    wanted = [part.unflatten(2, size) for part, size in zip(cut, plane_sizes(planes))]
    assert all(torch.equal(one, two) for one, two in zip(singles, wanted, strict=True))
    assert len({tuple(image.shape[2:]) for image in images}) == len(images)
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in images)


@torch.no_grad()
def test_an_untrained_network_predicts_no_noise():
    z, t, condition = given()
    assert not Denoiser(SMALL, channels=4, planes=(4, 4, 2))(z, t, condition).any()


def gradients(*, checkpointing):
    network, (z, t, condition) = made(), given()
    network.train().checkpointing = checkpointing
    network(z, t, condition).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters()}


def test_checkpointing_gives_equal_gradients():
    plain, again = gradients(checkpointing=False), gradients(checkpointing=True)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert all(bool(g.any()) for g in plain.values())


@torch.no_grad()
def test_noise_stays_in_single_precision_under_autocast():
    network, (z, t, condition) = made(), given()
    exact = network(z, t, condition)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(z, t, condition)
    assert rough.dtype == torch.float32 and 0 < error(rough, exact) < 0.1


# ---- what samplers ask


class Counted(torch.nn.Module):
    """A denoiser that remembers how many rows each call had."""

    def __init__(self, network: Denoiser):
        super().__init__()
        self.network, self.rows = network, []

    def forward(self, z, t, condition=None):
        self.rows.append(len(z))
        return self.network(z, t, condition)


@torch.no_grad()
def test_guidance_leads_away_from_what_is_said_without_a_condition():
    schedule, network, (z, _, condition) = scaled_linear(1000), Counted(made()), given()
    found = denoise(network, schedule, condition, guidance=0.5)(z, 400)
    t = torch.full((3,), 400)
    wanted = 1.5 * network.network(z, t, condition) - 0.5 * network.network(z, t)
    torch.testing.assert_close(found.eps, wanted, atol=1e-5, rtol=1e-4)
    assert network.rows == [6]


@torch.no_grad()
def test_without_guidance_or_condition_the_network_runs_once():
    schedule, network, (z, _, condition) = scaled_linear(1000), Counted(made()), given()
    told = denoise(network, schedule, condition)(z, 400).eps
    untold = denoise(network, schedule, guidance=2.0)(z, 400).eps
    t = torch.full((3,), 400)
    assert torch.equal(told, network.network(z, t, condition)) and torch.equal(untold, network.network(z, t))
    assert network.rows == [3, 3]


@torch.no_grad()
def test_clamped_latent_leaves_the_noise_of_the_network():
    schedule, network, (z, _, condition) = scaled_linear(1000), made(), given()
    free = denoise(network, schedule, condition, bound=None)(z, 900)
    held = denoise(network, schedule, condition)(z, 900)
    assert torch.equal(free.eps, held.eps) and torch.equal(held.x_0, free.x_0.clamp(-1, 1))
    assert free.x_0.abs().max() > 1 and torch.equal(free.x_0, x_0_from_eps(schedule, z, 900, free.eps))


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"width": 10}, "width 10 is not a multiple of the 4 groups"),
        ({"multipliers": ()}, r"multipliers are \(\); give one factor"),
        ({"multipliers": (1, 0)}, r"multipliers are \(1, 0\)"),
        ({"res_blocks": 0}, "res_blocks is 0"),
        ({"heads": 3}, "3 attention heads do not divide the 8 channels"),
        ({"head_width": 3}, "head_width 3 does not divide the 8 channels"),
        ({"head_width": -1}, "head_width is -1; it must be 0 or more"),
        ({"attention": (4,)}, "down-sampling factor 4, but 2 levels have the factors 1, 2"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"resample": "pool"}, "resample is 'pool'; it must be 'residual' or 'convolution'"),
        ({"noise_levels": 0}, "noise_levels is 0"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate(replace(SMALL, **changes))


@pytest.mark.parametrize("planes", [(4, 4, 3), (5, 4, 2), (4, 0, 2)])
def test_planes_that_cannot_be_halved_are_refused_in_a_sentence(planes):
    with pytest.raises(ValueError, match="2 levels need positions and frames that are multiples of 2"):
        check_planes(SMALL, planes)


def test_latents_of_another_size_are_refused_in_a_sentence():
    network, (z, t, condition) = made(), given()
    with pytest.raises(
        ValueError, match=r"4 channels and length 31, but .* 4 channels and length 32, .* 4x4 .* 2 frames"
    ):
        network(z[:, :, 1:], t)
    with pytest.raises(ValueError, match="2 channels and length 32"):
        network(z[:, :2], t)
    with pytest.raises(ValueError, match=r"condition has shape \(2, 4, 32\)"):
        network(z, t, condition[:2])
    with pytest.raises(ValueError, match="without a condition"):
        made(replace(SMALL, conditional=False))(z, t, condition)
