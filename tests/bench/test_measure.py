"""Counting operations, clock and matmul rate."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from framecast.bench.measure import Timed, matmul_rate, operations
from framecast.draws import draws
from framecast.experiment import VideoSpec
from framecast.systems.ramvid.config import RaMViDConfig
from framecast.systems.ramvid.network import UNet3D
from framecast.systems.rvd.config import ForecastStageConfig, RVDConfig
from framecast.systems.rvd.rvd import RVD as RVDSystem

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


# ---- RVD


RVD = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), noise_levels=50)
STEPS = 4  # frames of a clip; the first two are context
POSITIONS = (SIDE**2, (SIDE // 2) ** 2)  # of both levels


def flat(before, after, positions):
    return 9 * linear(before, after, positions)


def res(before, after, positions, *, embedded=False):
    skip = linear(before, after, positions) if before != after else 0
    return flat(before, after, positions) + flat(after, after, positions) + skip + embedded * linear(8, after, 1)


def linear_attention(channels, positions):
    """Keys by values of all pairs of heads, then the output layer, and only then the queries."""
    inward, outward = linear(channels, 3 * 64, positions), linear(64, channels, positions)
    return inward + linear(64, 64, positions) + linear(64, channels, 64) + outward


def read_form(frames):
    """The way down of a recurrent network, from no state: the hidden half has nothing to do at the first frame."""
    full, half = POSITIONS
    every = res(1, 8, full) + flat(8, 24, full) + flat(8, 8, half) + res(8, 16, half) + flat(16, 48, half)
    return frames * every + (frames - 1) * (flat(8, 24, full) + flat(16, 48, half))


def up_form():
    """What the transform network does on its way up, for one frame."""
    return res(16, 8, POSITIONS[1]) + 16 * linear(8, 8, POSITIONS[1]) + flat(8, 1, POSITIONS[0])


def prepared_form():
    """What the denoiser makes of the context once per frame: halves of the second blocks and of their skips."""
    return sum(10 * linear(c, c, positions) for c, positions in zip((8, 16), POSITIONS))


def denoiser_form():
    """One evaluation, prepared context aside."""
    full, half = POSITIONS
    time = linear(8, 32, 1) + linear(32, 8, 1)
    down = res(1, 8, full, embedded=True) + second_form(8, full) + linear_attention(8, full) + flat(8, 8, half)
    bottom = res(8, 16, half, embedded=True) + second_form(16, half) + linear_attention(16, half)
    middle = 2 * res(16, 16, half, embedded=True) + linear_attention(16, half)
    up = res(32, 8, half, embedded=True) + res(8, 8, half, embedded=True) + linear_attention(8, half)
    return time + down + bottom + middle + up + 16 * linear(8, 8, half) + flat(8, 8, full) + linear(8, 1, full)


def second_form(channels, positions):
    own_half = 10 * linear(channels, channels, positions)
    return own_half + flat(channels, channels, positions) + linear(8, channels, 1)


@pytest.fixture
def rvd():
    torch.manual_seed(0)
    return RVDSystem(RVD, VideoSpec(channels=1, height=SIDE, width=SIDE, clip_frames=STEPS))


def test_operations_of_recurrent_networks_equal_the_closed_form(rvd):
    frames = torch.randn(2, 3, 1, SIDE, SIDE)
    with torch.no_grad():
        assert operations(lambda: rvd.context_network(frames)) == 2 * read_form(3)
        assert operations(lambda: rvd.transform(frames)) == 2 * (read_form(3) + 3 * up_form())


def test_operations_of_the_denoiser_equal_the_closed_form(rvd):
    context = [torch.randn(3, 8, SIDE, SIDE), torch.randn(3, 16, SIDE // 2, SIDE // 2)]
    y, n = torch.randn(3, 1, SIDE, SIDE), torch.full((3,), 7)
    with torch.no_grad():
        assert operations(lambda: rvd.denoiser.prepare(context)) == 3 * prepared_form()
        given = rvd.denoiser.prepare(context)
        assert operations(lambda: rvd.denoiser(y, n, given)) == 3 * denoiser_form()


def test_operations_of_an_rvd_training_step_are_thrice_the_forward_pass_without_gradients_of_inputs(rvd):
    stage = rvd.stage("forecast", ForecastStageConfig(clip_frames=STEPS), None)
    clip = {"clip": torch.randn(1, STEPS, 1, SIDE, SIDE), "valid": torch.ones(1, STEPS, dtype=torch.bool)}

    def loss():
        return stage.loss(clip, step=0, turn="forecast", rng=draws(0, [0])).total

    read, drawn = STEPS - 1, STEPS - 2
    forward = 2 * read_form(read) + drawn * (up_form() + prepared_form() + denoiser_form())
    inputs = 2 * read * 10 * linear(1, 8, POSITIONS[0]) + drawn * linear(8, 32, 1)  # frames and noise levels
    with torch.no_grad():
        assert operations(loss) == forward
    assert operations(lambda: loss().backward()) == 3 * forward - inputs


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
