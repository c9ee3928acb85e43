"""Counting operations, clock and matmul rate."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from framecast.bench.measure import Timed, matmul_rate, operations
from framecast.systems.ramvid.config import RaMViDConfig
from framecast.systems.ramvid.network import UNet3D

CPU = torch.device("cpu")
CONFIG = RaMViDConfig(width=8, multipliers=(1, 2), res_blocks=1, attention=(2,), heads=2, groups=4)
FRAMES, SIDE = 5, 8


def linear(before, after, positions):
    return 2 * before * after * positions


def conv(before, after, positions):
    return 27 * linear(before, after, positions)


def block(before, after, positions):
    skip = linear(before, after, positions) if before != after else 0
    return conv(before, after, positions) + conv(after, after, positions) + linear(32, 2 * after, 1) + skip


def attention(channels, positions):
    return linear(channels, 4 * channels, positions) + 2 * 2 * channels * positions**2


def closed_form():
    """The tiny network layer by layer, for one clip."""
    full, half = FRAMES * SIDE**2, FRAMES * (SIDE // 2) ** 2
    embedding = linear(8, 32, 1) + linear(32, 32, 1)
    down = conv(1, 8, full) + block(8, 8, full) + conv(8, 8, half) + block(8, 16, half) + attention(16, half)
    middle = 2 * block(16, 16, half) + attention(16, half)
    deep = block(16 + 16, 16, half) + block(16 + 8, 16, half) + 2 * attention(16, half) + conv(16, 16, full)
    up = deep + block(16 + 8, 8, full) + block(8 + 8, 8, full)
    return embedding + down + middle + up + conv(8, 1, full)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet3D(CONFIG, channels=1)


def clip(rows=1):
    return torch.randn(rows, FRAMES, 1, SIDE, SIDE), torch.full((rows,), 7.0)


def test_operations_of_a_forward_pass_equal_the_closed_form(network):
    with torch.no_grad():
        assert operations(lambda: network(*clip())) == closed_form()
        assert operations(lambda: network(*clip(3))) == 3 * closed_form()


def test_operations_of_a_backward_pass_are_twice_the_forward_pass_without_the_gradient_of_the_input(network):
    inputs = conv(1, 8, FRAMES * SIDE**2) + linear(8, 32, 1)  # of the first convolution and of the step embedding
    counted = operations(lambda: network(*clip()).sum().backward())
    assert counted == 3 * closed_form() - inputs


def test_operations_of_checkpointed_blocks_hold_their_second_forward_pass(network):
    network.checkpointing = True
    counted = operations(lambda: network(*clip()).sum().backward())
    assert 3 * closed_form() < counted < 4 * closed_form()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_of_attention_do_not_depend_on_its_kernel(dtype):
    q, k, v = (torch.randn(2, 3, 20, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    expected = 3 * 2 * (2 * 20 * 20 * 8) * (2 * 3)
    assert operations(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()) == expected
    mask = torch.zeros(20, 20, dtype=dtype)
    assert operations(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()) == expected


def test_sums_by_products_with_ones_count_nothing():
    ones, x = torch.ones(2, 1, 30), torch.randn(2, 30, 4)
    assert operations(lambda: torch.bmm(ones, x)) == 0
    assert operations(lambda: torch.bmm(torch.randn(2, 5, 30), x)) == 2 * 2 * 5 * 30 * 4


def test_matmul_rate_names_its_size():
    found = matmul_rate(CPU, torch.float32, sizes=(64, 128))
    assert found["size"] in (64, 128) and found["kind"] == "float32"
    assert 1e7 < found["rate"] < 1e15


def test_times_are_told_as_median_and_spread():
    assert Timed((3.0, 1.0, 2.0)).plain() == {"seconds": 2.0, "spread": [1.0, 3.0], "repeats": 3}


def test_yardstick_is_the_network_it_says():
    from framecast.bench.network import yardstick

    network = yardstick().model
    expected = dataclasses.replace(RaMViDConfig(), width=32, multipliers=(1, 2, 3, 4), res_blocks=2, attention=(4, 8))
    assert network == expected
