"""Fused and rearranged layers equal the plain ones, value and gradient."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from framecast.nn.attention import SelfAttention
from framecast.nn.blocks import ResBlock, norm_silu, pointwise, step_embedding
from tests.formula import fill, uniform


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("modulated", [True, False])
def test_norm_silu_equals_its_parts(layout, modulated):
    norm = fill(nn.GroupNorm(3, 12))
    x = (3 * uniform("x", (2, 12, 3, 5, 4)) + 0.7).contiguous(memory_format=layout).requires_grad_()
    modulation = uniform("m", (2, 24)).requires_grad_() if modulated else None
    weights = uniform("g", tuple(x.shape))
    wanted = norm(x)
    if modulated:
        scale, shift = modulation[..., None, None, None].chunk(2, dim=1)
        wanted = wanted * (1 + scale) + shift
    wanted = F.silu(wanted)
    leaves = [x, norm.weight, norm.bias, *([modulation] if modulated else [])]
    expected = torch.autograd.grad((wanted * weights).sum(), leaves)
    found = norm_silu(x, norm, modulation=modulation)
    assert relative(found, wanted) < 1e-6
    for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), leaves), expected):
        assert relative(ours, theirs) < 1e-5


def test_norm_silu_normalises_half_precision_in_float32():
    norm = fill(nn.GroupNorm(2, 8))
    x = 100 + uniform("x", (1, 8, 2, 4, 4))
    half = x.bfloat16().requires_grad_()
    found = norm_silu(half, norm)
    assert found.dtype == torch.bfloat16
    assert relative(found.float(), F.silu(norm(half.float()))) < 1e-2
    found.float().sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_equals_explicit_weights(heads):
    block = fill(SelfAttention(12, heads=heads, groups=4))
    x = uniform("x", (2, 12, 2, 3, 3))
    tokens = block.norm(x).flatten(2)
    # channel order of qkv: head by head, each q, k, v
    q, k, v = block.qkv(tokens).view(2, heads, 3, 12 // heads, -1).unbind(2)
    weights = torch.softmax(torch.einsum("bhdi,bhdj->bhij", q, k) * (12 // heads) ** -0.5, dim=-1)
    h = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 12, -1)
    assert relative(block(x), x + block.proj_out(h).view(x.shape)) < 1e-6


def test_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="12 channels cannot be shared by 5"):
        SelfAttention(12, heads=5, groups=4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_residual_block_starts_as_its_skip(dims, scale_shift):
    block = ResBlock(8, 12, embedding=16, groups=4, scale_shift=scale_shift, dims=dims)
    x = uniform("x", (2, 8, *(4, 6, 6)[-dims:]))
    assert relative(block(x, uniform("e", (2, 16))), block.skip_connection(x)) < 1e-6


def test_residual_block_depends_on_the_embedding_of_its_own_row():
    block = fill(ResBlock(8, 8, embedding=16, groups=4, scale_shift=False))
    x, e = uniform("x", (2, 8, 2, 4, 4)), uniform("e", (2, 16))
    changed = torch.cat([e[:1], e[1:] + 1])
    before, after = block(x, e), block(x, changed)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


ONE_GRAPH = """
import torch
from framecast.nn.blocks import ResBlock
block = ResBlock(4, 8, embedding=8, groups=2)
x = torch.randn(1, 4, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d)
print(torch._dynamo.explain(block)(x, torch.randn(1, 8)).graph_break_count)
"""


@pytest.mark.slow
@pytest.mark.parametrize("resample", [nn.AvgPool2d(2), nn.Upsample(scale_factor=2)])
def test_residual_block_resamples_in_front_of_its_first_convolution_and_its_skip(resample):
    block = fill(ResBlock(8, 8, embedding=6, groups=4, scale_shift=False, dims=2, resample=resample))
    x, active = uniform("x", (2, 8, 4, 6)), uniform("e", (2, 6))
    h = block.in_layers[2](resample(F.silu(block.in_layers[0](x)))) + block.emb_layers[1](active)[:, :, None, None]
    assert relative(block(x, active), resample(x) + block.out_layers(h)) < 1e-5


def test_layers_keep_float64():
    x = uniform("x", (2, 8, 5)).double().requires_grad_()
    block, attention = fill(ResBlock(8, 8, embedding=6, groups=4, dims=3)), fill(SelfAttention(8, heads=2, groups=4))
    assert attention.double()(x).dtype == torch.float64
    norm, modulation = fill(nn.GroupNorm(4, 8)).double(), uniform("m", (2, 16)).double()
    assert block.double()(uniform("y", (1, 8, 2, 4, 2)).double(), uniform("e", (1, 6)).double()).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: norm_silu(x, norm, modulation=modulation), (x,))


@pytest.mark.slow
def test_residual_block_is_one_graph_to_the_compiler():
    # a break cuts every block in pieces, each compiled anew for every width until the compiler gives up;
    # in a process of its own, because checked annotations break graphs
    done = subprocess.run([sys.executable, "-c", ONE_GRAPH], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr[-2000:]


def test_pointwise_is_a_convolution():
    conv = fill(nn.Conv3d(6, 10, 1))
    x = uniform("x", (2, 6, 3, 4, 4))
    assert relative(pointwise(x, conv), conv(x)) < 1e-6


def test_step_embedding_puts_cosines_first_and_pads_odd_widths():
    found = step_embedding(torch.tensor([2.0]), 5)
    wanted = torch.tensor([[2.0, 2.0e-2]])
    assert torch.allclose(found, torch.cat([wanted.cos(), wanted.sin(), torch.zeros(1, 1)], dim=1))
