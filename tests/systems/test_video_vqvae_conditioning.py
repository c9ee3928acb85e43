"""What Video VQ-VAE's priors are told: which codes reach which features, and one slice alone as within the clip."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from framecast.systems.video_vqvae.conditioning import BottomCondition, TopCondition
from framecast.systems.video_vqvae.config import BottomPriorConfig, TopPriorConfig

K = 6
TOP = TopPriorConfig(embedding=4, condition_hidden=8, condition_residual=4, condition_layers=2)
BOTTOM = BottomPriorConfig(embedding=4, condition_hidden=6, condition_residual=5, condition_layers=2)
REACH = {2: (0, 1, 2), 3: (0, 1, 2, 3), 4: (0, 1, 2, 3), 5: (1, 2, 3), 6: (1, 2, 3), 7: (2, 3)}  # slice: top steps


def build(kind, config, **sizes):
    """In float64, with biases and tables away from zero."""
    torch.manual_seed(0)
    network = kind(config, codes=K, **sizes).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def bottom(**changes):
    sizes = {"top": True, "slices": 8} | {k: changes.pop(k) for k in ("top", "slices") if k in changes}
    return build(BottomCondition, replace(BOTTOM, **changes), **sizes)


def codes(*shape):
    return torch.randint(K, shape, generator=torch.Generator().manual_seed(1))


def changed(codes, place):
    other = codes.clone()
    other[place] = (other[place] + 1) % K
    return other


def window(slices, n, *, length=4):
    """Slices n - length to n - 1 of every row, `K` before the first."""
    return F.pad(slices, (0, 0, 0, 0, length, 0), value=K)[:, n : n + length]


@torch.no_grad()
def test_every_given_code_reaches_the_top_prior():
    read, top, low = build(TopCondition, TOP, steps=3), codes(1, 1, 2, 3), codes(1, 2, 4, 6)
    base = read(top, low)
    assert base.shape == (1, 8, 3, 2, 3) and not torch.equal(base[:, :, 0], base[:, :, 1])
    for given, call in ((top, lambda x: read(x, low)), (low, lambda x: read(top, x))):
        for place in torch.ones_like(given).nonzero().tolist():
            assert not torch.equal(call(changed(given, tuple(place))), base), place


@torch.no_grad()
@pytest.mark.parametrize("n", REACH)
def test_a_slice_sees_the_top_steps_within_reach_and_no_others(n):
    read, top, past = bottom(), codes(1, 4, 2, 3), window(codes(1, 8, 4, 6), n)
    base = read(top, past, torch.tensor([n]))
    moved = [not torch.equal(read(changed(top, (0, t, 1, 1)), past, torch.tensor([n])), base) for t in range(4)]
    assert tuple(t for t in range(4) if moved[t]) == REACH[n]


@torch.no_grad()
def test_all_codes_of_the_window_and_the_slices_number_matter():
    read, top, past = bottom(), codes(1, 4, 2, 3), codes(1, 4, 4, 6)
    n = torch.tensor([5])
    base = read(top, past, n)
    for t in range(4):
        assert not torch.equal(read(top, changed(past, (0, t, 2, 3)), n), base)
    assert not torch.equal(read(top, torch.full_like(past, K), n), base)
    assert not torch.equal(read(top, past, n - 1), base)
    one, other = (bottom(top=False, slice_embedding=told) for told in (True, False))
    assert not torch.equal(one(None, past, n - 1), one(None, past, n))
    assert torch.equal(other(None, past, n - 1), other(None, past, n))


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_slice_alone_equals_it_within_the_clip(steps):
    read, n = bottom(slices=2 * steps), torch.arange(2 * steps)
    top = codes(1, steps, 2, 3).expand(2 * steps, -1, -1, -1)
    whole = read.top_features(top)
    torch.testing.assert_close(read.top_slice(top, n), whole[0].movedim(1, 0), rtol=0, atol=1e-12)
    past = codes(2 * steps, 4, 4, 6)
    torch.testing.assert_close(read(top, past, n), read.joined(whole, past, n), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 16])
def test_past_slices_are_padded_as_if_all_taps_were_computed(length):
    read, past = bottom(window=length, condition_layers=0, top=False, slice_embedding=False), codes(2, length, 4, 6)
    x = read.past(past).movedim(-1, 1)
    for place, conv in enumerate(read.halve):
        steps = x.shape[2]
        total = max((-(-steps // 2) - 1) * 2 + 4 - steps, 0)
        x = F.relu(x) if place else x
        x = F.conv3d(F.pad(x, (1, 1, 1, 1, total // 2, total - total // 2)), conv.weight, conv.bias, stride=(2, 1, 1))
    expected = F.relu(read.join(x.squeeze(2)))
    torch.testing.assert_close(read(None, past, torch.tensor([3, 4])), expected, rtol=0, atol=1e-12)


def test_every_parameter_learns_from_every_slice_also_when_recomputed():
    torch.manual_seed(0)
    top, n = codes(2, 4, 2, 3), torch.tensor([2, 3])
    past = torch.cat([window(codes(1, 8, 4, 6), k) for k in (2, 3)])
    found = []
    for again in (False, True):
        read = bottom()
        read.checkpointing = again
        read(top, past, n).square().sum().backward()
        found.append([p.grad for p in read.parameters()])
    assert all(a is not None and a.abs().sum() > 0 and torch.equal(a, b) for a, b in zip(*found))
    read = build(TopCondition, TOP, steps=3)
    read.checkpointing = True
    read(codes(1, 1, 2, 3), codes(1, 2, 4, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in read.parameters())


def test_tables_start_from_codebooks_of_their_width():
    upper, lower = torch.randn(K, 4), 5 * torch.randn(K, 4)
    for read in (build(TopCondition, TOP, steps=3), bottom(), bottom(top=False)):
        low = read.bottom if isinstance(read, TopCondition) else read.past
        before = low.weight[K:].clone()
        read.start_from(upper, lower)
        pairs = [(low, lower)] if read.top is None else [(read.top, upper), (low, lower)]
        for table, codebook in pairs:
            torch.testing.assert_close(table.weight[:K] * codebook.pow(2).mean().sqrt(), codebook.double())
        assert torch.equal(low.weight[K:], before)
        read.start_from(torch.randn(K, 3), torch.randn(K, 3))  # other widths leave them
        torch.testing.assert_close(low.weight[:K] * lower.pow(2).mean().sqrt(), lower.double())


def test_published_sizes_have_the_stated_parameters():
    def count(network):
        return sum(p.numel() for p in network.parameters())

    with torch.device("meta"):
        top = TopCondition(TopPriorConfig(), codes=512, steps=3)
        low = BottomCondition(BottomPriorConfig(), codes=512, top=True, slices=8)
    assert count(top) == 13_241_664 + 2 * 512 * 64 + 3 * 512  # 13.2 M, tables and a bias per step
    past, upper = 36 * 1024 * (64 + 3 * 1024) + 4 * 1024, 36 * 1024 * 64 + (48 + 27) * 1024**2 + 3 * 1024
    stack = 2 * 1024**2 + 1024 + 20 * (10 * 1024**2 + 2 * 1024)
    assert count(low) == past + upper + stack + (513 + 512) * 64 + 8 * 1024 == 408_543_296


def test_windows_that_never_become_one_slice_are_refused():
    with pytest.raises(ValueError, match="window is 17"):
        BottomCondition(replace(BOTTOM, window=17), codes=K, top=True, slices=8)
