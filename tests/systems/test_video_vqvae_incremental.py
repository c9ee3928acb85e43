"""Drawing codes with caches: equal to a forward pass per code, to any batch, from any prefix, at one pass's work."""

from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from framecast.systems.video_vqvae.cache import Cache, Choice
from framecast.systems.video_vqvae.config import PriorConfig
from framecast.systems.video_vqvae.incremental import TorchRows, draw, draw_plainly, fastest
from framecast.systems.video_vqvae.pixelcnn import GatedPixelCNN

IN_PLACE = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # which the counter does not know
TINY = PriorConfig(hidden=16, residual=32, layers=3, attention_every=2, heads=2)
KINDS = [  # settings, grid, what the convolutions read
    ({}, (3, 3, 4), {"past": 1, "vertical": "plane"}),
    ({"kernel": 5, "vertical_residual": False}, (3, 2, 3), {"past": 2, "vertical": "full"}),
    ({"kernel": 5, "layers": 4}, (1, 4, 5), {"past": 0, "vertical": "full"}),
    ({"attention_every": 0}, (2, 3, 3), {"past": 1, "vertical": "plane"}),
]


def made(settings=None, grid=(2, 3, 3), kind=None, *, dtype=torch.float64, rows=3, codes=7):
    """A network whose logits are far apart, a condition and uniform numbers."""
    torch.manual_seed(0)
    config = PriorConfig(**{**vars(TINY), **(settings or {})})
    kind = kind or {"past": 1, "vertical": "plane"}
    network = GatedPixelCNN(config, grid=grid, codes=codes, condition=3, **kind).to(dtype).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    condition = torch.randn(rows, 3, *grid, dtype=dtype)
    return network, condition, torch.rand(rows, *grid)


@pytest.mark.parametrize("settings, grid, kind", KINDS)
def test_cached_logits_are_those_of_one_forward_pass(settings, grid, kind):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        network, condition, uniforms = made(settings, grid, kind, dtype=dtype)
        drawn = draw(network, condition, uniforms, keep_logits=True)
        with torch.no_grad():
            wanted = network(drawn.codes, condition)
        assert (drawn.logits - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("settings, grid, kind", KINDS)
def test_codes_are_those_of_a_forward_pass_per_code(settings, grid, kind):
    network, condition, uniforms = made(settings, grid, kind, rows=2)
    choice = {"temperature": 0.8, "top_k": 5, "top_p": 0.9}
    cached, plain = (f(network, condition, uniforms, **choice, keep_logits=True) for f in (draw, draw_plainly))
    assert torch.equal(cached.codes, plain.codes)
    assert len(cached.codes.unique()) > 2
    torch.testing.assert_close(cached.logits, plain.logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings, grid, kind", KINDS)
def test_compiled_rows_give_what_torch_gives(settings, grid, kind):
    compiled = pytest.importorskip("framecast.systems.video_vqvae.compiled", reason="numba is not installed")
    network, condition, uniforms = made(settings, grid, kind, dtype=torch.float32, codes=9)
    rows = [kind(network, Cache(network, condition)) for kind in (TorchRows, compiled.CompiledRows)]
    for choice in (Choice(), Choice(0.7, 6, 0.8)):
        for t, y in product(range(grid[0]), range(grid[1])):
            codes = torch.full((2, 3, grid[2]), 8)
            with torch.no_grad():
                for row, into in zip(rows, codes):
                    row.draw(t, y, codes=into, uniforms=uniforms[:, t, y], given=t % 2, choice=choice)
            assert torch.equal(*codes)
            assert (rows[0].logits - rows[1].logits).abs().max() <= 1e-5 * rows[0].logits.abs().max()


def test_compiled_rows_are_taken_for_small_work_in_float32(monkeypatch):
    compiled = pytest.importorskip("framecast.systems.video_vqvae.compiled", reason="numba is not installed")
    network, condition, _ = made(dtype=torch.float32)
    weights = sum(parameter.numel() for parameter in network.parameters())
    monkeypatch.setattr("framecast.systems.video_vqvae.incremental.SMALL", 2 * weights / 3)  # three layers, two videos
    assert isinstance(fastest(network, Cache(network, condition[:2])), compiled.CompiledRows)
    assert isinstance(fastest(network, Cache(network, condition)), TorchRows)
    assert isinstance(fastest(network.double(), Cache(network, condition[:1].double())), TorchRows)


def test_codes_are_drawn_without_numba(monkeypatch):
    monkeypatch.setattr("framecast.systems.video_vqvae.incremental.find_spec", lambda _: None)
    network, condition, uniforms = made(dtype=torch.float32)
    assert isinstance(fastest(network, Cache(network, condition)), TorchRows)
    assert draw(network, condition, uniforms).codes.shape == uniforms.shape


def test_batch_gives_what_its_rows_give_alone():
    network, condition, uniforms = made()
    alone = [draw(network, condition[i : i + 1], uniforms[i : i + 1]).codes for i in range(3)]
    assert torch.equal(draw(network, condition, uniforms).codes, torch.cat(alone))


@pytest.mark.parametrize("start", [1, 7, 18])
def test_given_codes_are_kept_and_the_others_follow_from_them(start):
    network, condition, uniforms = made()
    drawn = draw(network, condition, uniforms).codes
    given = drawn.clone()
    given.flatten(1)[:, start:] = 99  # is not looked at
    assert torch.equal(draw(network, condition, uniforms, given=given, start=start).codes, drawn)
    given.flatten(1)[:, 0] = (drawn.flatten(1)[:, 0] + 1) % 7
    changed = draw(network, condition, uniforms, given=given, start=start).codes
    assert torch.equal(changed, draw_plainly(network, condition, uniforms, given=given, start=start).codes)
    assert torch.equal(changed.flatten(1)[:, :start], given.flatten(1)[:, :start])


@pytest.mark.parametrize("settings, grid, kind", KINDS[1:3])
def test_all_codes_cost_no_more_than_one_forward_pass(settings, grid, kind, monkeypatch):
    monkeypatch.setattr("framecast.systems.video_vqvae.cache.PLACES_AT_ONCE", 5)
    network, condition, uniforms = made(settings, grid, kind)
    counts = []
    for run in (lambda: draw(network, condition, uniforms), lambda: network(uniforms.long(), condition)):
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter, torch.no_grad():
            run()
        counts.append(sum(counter.get_flop_counts()["Global"].values()))
    cached, whole = counts
    # less, since taps before the first step or above the first row need no product: that is most of so small a grid
    assert 0.4 * whole < cached <= whole


def test_dropout_is_off_while_codes_are_drawn():
    network, condition, uniforms = made()
    wanted = draw_plainly(network, condition, uniforms).codes
    network.train()
    assert torch.equal(draw(network, condition, uniforms).codes, wanted)
    assert torch.equal(draw_plainly(network, condition, uniforms).codes, wanted)
    assert network.training


def test_code_is_where_summed_probabilities_pass_the_uniform_number():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.0999, 0.101, 0.299, 0.301, 0.99999])
    assert Choice()(logits, uniforms).tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    "choice, shares",
    [
        (Choice(top_k=2), [0, 0, 3 / 7, 4 / 7]),
        (Choice(top_k=9), [0.1, 0.2, 0.3, 0.4]),
        (Choice(top_p=0.65), [0, 0, 3 / 7, 4 / 7]),
        (Choice(top_p=0.75), [0, 2 / 9, 3 / 9, 4 / 9]),
        (Choice(top_k=2, top_p=0.5), [0, 0, 0, 1]),
        (Choice(temperature=0.5), [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (Choice(temperature=1e-3), [0, 0, 0, 1]),
    ],
)
def test_choice_draws_from_the_wanted_codes(choice, shares):
    uniforms = (torch.arange(3000) + 0.5) / 3000
    drawn = choice(torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(3000, -1), uniforms)
    torch.testing.assert_close(drawn.bincount(minlength=4) / 3000, torch.tensor(shares).float(), rtol=0, atol=4e-4)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"start": 3}, "nothing is given"),
        ({"start": 19, "given": torch.zeros(3, 2, 3, 3, dtype=torch.int64)}, "at most 18"),
    ],
)
def test_impossible_wishes_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        draw(*made(), **settings)
