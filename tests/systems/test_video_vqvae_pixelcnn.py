"""The priors' network: what may see what, exactly; that probabilities sum to one; sizes; attention; precision."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from framecast.systems.video_vqvae.config import PriorConfig
from framecast.systems.video_vqvae.pixelcnn import GatedPixelCNN, offsets

TINY = PriorConfig(hidden=16, residual=32, layers=3, attention_every=2, heads=2)
TOP = {"past": 1, "vertical": "plane"}
BOTTOM = {"past": 0, "vertical": "full"}


def shaken(config=TINY, *, grid, codes=4, condition=3, **kind):
    """A network in float64, evaluation mode, all of whose numbers are random."""
    torch.manual_seed(0)
    network = GatedPixelCNN(config, grid=grid, codes=codes, condition=condition, **kind).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        network.head[1].bias += 1  # else all of a place's few units may be at rest
    return network


def drawn(network, *, rows=1, seed=0, condition=3):
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(network.codes, (rows, *network.grid), generator=rng)
    return codes, torch.randn(rows, condition, *network.grid, generator=rng, dtype=torch.float64)


def reach(network, answers, *, bases=3):
    """Boolean (place that is changed, place that answers otherwise), in raster order."""
    places = math.prod(network.grid)
    found = torch.zeros(places, places, dtype=torch.bool)
    with torch.no_grad():
        for seed in range(bases):
            codes, condition = drawn(network, seed=seed)
            changed = codes.flatten(1).repeat(places, 1)
            changed += torch.eye(places, dtype=torch.int64) * (1 + seed % (network.codes - 1))
            rows = (changed % network.codes).view(-1, *network.grid)
            before = answers(network, codes, condition)
            after = answers(network, rows, condition.expand(places, -1, -1, -1, -1))
            found |= (after != before).any(1).flatten(1)
    return found


def logits(network, codes, condition):
    return network(codes, condition)


def vertical(network, codes, condition):
    """The vertical stack before the last layer."""
    seen = []
    hook = network.layers[-1].register_forward_hook(lambda _, given, __: seen.append(given[0].movedim(-1, 1)))
    network(codes, condition)
    hook.remove()
    return seen[0]


def raster(grid):
    return list(product(*(range(size) for size in grid)))


def dilated(place, grid, layers, places):
    """Which codes the convolutions alone reach from a place, found by walking their taps backwards within the grid."""

    def step(start, taps):
        moved = {(t + dt, y + dy, x + dx) for t, y, x in start for dt, dy, dx in taps}
        return {at for at in moved if all(0 <= i < size for i, size in zip(at, grid))}

    v, h = set(), {place}  # places of the two stacks that the answer depends on
    new_v, new_h = v, h
    for _ in range(layers):
        new_v = step(new_v | new_h, places.vertical) - v  # L: H reads V's maps in the layer
        new_h = step(new_h, places.horizontal) - h
        v, h = v | new_v, h | new_h
    return step(v, places.first_vertical) | step(h, places.first_horizontal)


@pytest.mark.parametrize(
    "grid, kernel, kind",
    [((3, 4, 5), 3, TOP), ((3, 4, 5), 5, {"past": 2, "vertical": "plane"}), ((1, 6, 6), 5, BOTTOM)],
)
def test_logits_depend_on_exactly_the_earlier_codes(grid, kernel, kind):
    network = shaken(PriorConfig(**{**vars(TINY), "kernel": kernel}), grid=grid, **kind)
    places = math.prod(grid)
    assert torch.equal(reach(network, logits), torch.ones(places, places).triu(1).bool())


@pytest.mark.parametrize("grid, kernel, kind", [((3, 4, 5), 3, TOP), ((1, 6, 6), 5, BOTTOM)])
def test_vertical_stack_depends_on_nothing_of_its_own_row(grid, kernel, kind):
    network = shaken(PriorConfig(**{**vars(TINY), "kernel": kernel}), grid=grid, **kind)
    found = reach(network, vertical, bases=1)
    assert found.any()
    for (i, a), (j, b) in product(enumerate(raster(grid)), repeat=2):
        assert not found[i, j] or a[:2] < b[:2]


@pytest.mark.parametrize("kind", [TOP, {"past": 1, "vertical": "full"}, {"past": 0, "vertical": "plane"}])
def test_convolutions_alone_reach_what_their_taps_reach(kind):
    config = PriorConfig(**{**vars(TINY), "attention_every": 0})
    network = shaken(config, grid=(3, 4, 5), **kind)
    found = reach(network, logits)
    taps = offsets(3, **kind)
    for j, place in enumerate(raster(network.grid)):
        wanted = dilated(place, network.grid, config.layers, taps)
        assert [a for i, a in enumerate(raster(network.grid)) if found[i, j]] == sorted(wanted)


@pytest.mark.parametrize(
    "place, plane, full",
    [((0, 16, 16), 304, 528), ((2, 16, 16), 1020, 1712), ((2, 0, 0), 12, 160), ((2, 31, 31), 2441, 3071)],
)
def test_published_convolutions_leave_codes_to_attention(place, plane, full):
    for vertical, codes in (("plane", plane), ("full", full)):
        assert len(dilated(place, (3, 32, 32), 40, offsets(3, past=1, vertical=vertical))) == codes


def test_taps_are_those_of_the_paper():
    assert [len(taps) for taps in offsets(3, past=1, vertical="plane")] == [12, 13, 5, 5]
    assert [len(taps) for taps in offsets(5, past=0, vertical="full")] == [10, 12, 15, 3]


@pytest.mark.parametrize("grid, kind", [((3, 3, 4), TOP), ((1, 4, 4), BOTTOM)])
def test_condition_of_every_place_reaches_the_logits(grid, kind):
    network = shaken(grid=grid, **kind)
    codes, condition = drawn(network, rows=4)  # somewhere a place's last units may all be at rest
    condition.requires_grad_()
    network(codes, condition).square().sum().backward()
    assert (condition.grad.abs().sum((0, 1)) > 0).all()
    own = network(codes, condition) - network(codes, condition.detach() + torch.eye(3)[0].view(3, 1, 1, 1))
    assert (own.abs().amax((0, 1)) > 0).all()


@pytest.mark.parametrize("codes, grid, kind", [(2, (2, 2, 2), TOP), (4, (1, 2, 2), BOTTOM)])
def test_probabilities_of_all_sequences_sum_to_one(codes, grid, kind):
    network = shaken(grid=grid, codes=codes, **kind)
    every = torch.tensor(list(product(range(codes), repeat=math.prod(grid)))).view(-1, *grid)
    _, condition = drawn(network)
    with torch.no_grad():
        nats = F.cross_entropy(network(every, condition.expand(len(every), -1, -1, -1, -1)), every, reduction="none")
    assert torch.exp(-nats.flatten(1).sum(1)).sum().item() == pytest.approx(1, abs=1e-12)


def test_untrained_network_spends_the_uniform_bits():
    network = GatedPixelCNN(TINY, grid=(2, 3, 3), codes=32, condition=3, **TOP)
    codes, condition = drawn(network)
    nats = F.cross_entropy(network(codes, condition.float()), codes)
    assert nats.item() / math.log(2) == pytest.approx(5, abs=1e-6)


def test_attention_equals_an_explicit_strict_mask():
    network = shaken(grid=(2, 2, 3), **TOP)
    attention = network.attentions[0]
    h, embedded = torch.randn(2, 2, 2, 2, 3, 16, dtype=torch.float64).unbind()
    seen = torch.cat([h, network.coordinates.double().expand(2, -1, -1, -1, -1)], -1).flatten(1, 3)
    query = attention.query(seen)
    held = attention.key_value(torch.cat([seen, embedded.flatten(1, 3)], -1))
    key, value = torch.cat([attention.nothing.expand(2, 1, -1), held], 1).chunk(2, -1)
    q, k, v = (x.unflatten(-1, (2, 8)).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    allowed = torch.cat([torch.ones(12, 1), torch.ones(12, 12).tril(-1)], 1).bool()
    found = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v
    wanted = h + attention.out(found.transpose(1, 2).flatten(2)).view(h.shape)
    torch.testing.assert_close(attention(h, network.coordinates, embedded), wanted, rtol=0, atol=1e-12)


def test_gradients_are_finite_in_bfloat16_and_reach_every_weight():
    network = GatedPixelCNN(TINY, grid=(2, 3, 3), codes=8, condition=3, **TOP)
    torch.nn.init.normal_(network.head[-1].weight)
    codes, condition = drawn(network, rows=2)
    with torch.autocast("cpu", torch.bfloat16):
        answer = network(codes, condition.float())
    assert answer.dtype == torch.float32
    F.cross_entropy(answer, codes).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_checkpointing_changes_no_gradient():
    config = PriorConfig(**{**vars(TINY), "dropout": 0.5, "attention_dropout": 0.1})
    gradients = []
    for checkpointing in (False, True):
        network = shaken(config, grid=(2, 3, 3), **TOP).train()
        network.checkpointing = checkpointing
        codes, condition = drawn(network)
        torch.manual_seed(1)
        F.cross_entropy(network(codes, condition), codes).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.equal(*gradients)


def test_dropout_is_off_in_evaluation():
    network = shaken(PriorConfig(**{**vars(TINY), "dropout": 0.5, "attention_dropout": 0.5}), grid=(2, 3, 3), **TOP)
    given = drawn(network)
    assert torch.equal(network(*given), network(*given))
    network.train()
    assert not torch.equal(network(*given), network(*given))


@pytest.mark.parametrize(
    "config, kind, millions",
    [
        (PriorConfig(), {"grid": (3, 32, 32), "condition": 512, **TOP}, 334.4),
        (PriorConfig(layers=20, kernel=5), {"grid": (1, 64, 64), "condition": 1024, **BOTTOM}, 274.8),
    ],
)
def test_published_sizes_have_their_parameters(config, kind, millions):
    with torch.device("meta"):
        network = GatedPixelCNN(config, codes=512, **kind)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_logits_are_not_rounded_where_layers_are():
    torch.manual_seed(0)
    config = PriorConfig(hidden=8, residual=16, layers=2, attention_every=1, heads=2)
    network = GatedPixelCNN(config, grid=(1, 3, 3), codes=5, condition=3, **BOTTOM).eval()
    torch.nn.init.normal_(network.head[3].weight)
    codes, condition = drawn(network)
    with torch.autocast("cpu", torch.bfloat16):
        made = network(codes, condition.float())
    assert made.dtype == torch.float32 and not torch.equal(made, made.bfloat16().float())


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"heads": 3}, "3 heads"),
        ({"heads": 0}, "heads 0"),
        ({"attention_every": -1}, "attention_every -1"),
        ({"residual": 31}, "31"),
        ({"kernel": 4}, "4"),
        ({"layers": 0}, "0"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        GatedPixelCNN(PriorConfig(**{**vars(TINY), **settings}), grid=(1, 2, 2), codes=2, condition=1, **BOTTOM)


def test_codes_of_another_grid_are_refused():
    network = shaken(grid=(1, 3, 3), **BOTTOM)
    with pytest.raises(ValueError, match="1 x 3 x 3"):
        network(torch.zeros(1, 1, 3, 4, dtype=torch.int64), torch.zeros(1, 3, 1, 3, 4))
    with pytest.raises(ValueError, match=r"\(1, 3, 1, 3, 3\)"):
        network(torch.zeros(1, 1, 3, 3, dtype=torch.int64), torch.zeros(1, 2, 1, 3, 3))
