# SPDX-License-Identifier: Apache-2.0
"""RVD's networks: a plain second form of them, states in and out, precision, settings they refuse."""

import shutil
from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F

from framecast.systems.rvd.config import RVDConfig
from framecast.systems.rvd.network import (
    ContextNetwork,
    ConvGRU,
    Denoiser,
    TransformNetwork,
    check_size,
    step_embedding,
    validate,
)
from tests.formula import fill, uniform
from tests.parity.walk import FORWARD, error
from tests.systems.plain_rvd import pair, shapes

SMALL = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), groups=4)
SHAPES = [  # settings, channels, height, width
    ({}, 3, 8, 16),
    ({"groups": 8, "multipliers": (1, 3, 1), "transform_multipliers": (1, 2)}, 1, 16, 8),
    ({"groups": 2, "width": 4, "multipliers": (1, 2), "transform_multipliers": (1, 2, 2, 4)}, 2, 24, 16),
    ({"groups": 8, "multipliers": (1, 2, 4, 8), "transform_multipliers": (1, 2, 2, 4)}, 3, 16, 24),  # as 64x64
    ({"multipliers": (1, 1, 2, 2, 4, 4), "transform_multipliers": (1, 2, 3, 4)}, 1, 64, 32),  # as 128x128
    ({"patch": 2}, 3, 8, 16),
]


def clip(channels, height, width, *, frames=3, rows=2):
    return uniform("clip", (rows, frames, channels, height, width))


def networks(config=SMALL, channels=1):
    """All three, with weights from the formula."""
    kinds = {"context": ContextNetwork, "transform": TransformNetwork, "denoiser": Denoiser}
    return {name: fill(kind(config, channels=channels)) for name, kind in kinds.items()}


def level_maps(config=SMALL, *, rows=2, height=8, width=8):
    """Something for the denoiser to be conditioned on."""
    return [
        uniform(f"level {i}", (rows, config.width * m, height >> i, width >> i))
        for i, m in enumerate(config.multipliers)
    ]


@pytest.mark.parametrize(("changes", "channels", "height", "width"), SHAPES, ids=str)
def test_networks_equal_their_plain_forms(changes, channels, height, width):
    config = replace(SMALL, **changes)
    system, plain = pair(config, channels=channels, height=height, width=width)
    video = clip(channels, height, width)
    with torch.no_grad():
        context = system.context_network(video)
        expected, transform = system.transform(video)
        for i, frame in enumerate(video.unbind(dim=1)):
            inside = F.pixel_unshuffle(frame, config.patch)
            wanted = plain.context(inside)
            assert len(wanted) == len(context)
            assert max(error(ours[:, i], theirs) for ours, theirs in zip(context, wanted)) < FORWARD
            assert error(expected[:, i], F.pixel_shuffle(plain.expected(inside), config.patch)) < FORWARD
            wanted = plain.states["transform_fn"]
            assert max(error(ours[:, i], theirs) for ours, theirs in zip(transform, wanted)) < FORWARD
        n = torch.tensor([0, 1599])
        last = [level[:, -1] for level in context]
        ours = system.denoiser(video[:, 0], n, system.denoiser.prepare(last))
        theirs = plain.denoised(F.pixel_unshuffle(video[:, 0], config.patch), n, last)
        assert error(ours, F.pixel_shuffle(theirs, config.patch)) < FORWARD


@pytest.mark.parametrize(
    ("width", "levels", "transform", "channels", "count"),
    [
        (48, [1, 2, 4, 8], [1, 2, 2, 4], 3, 37_611_414),
        (64, [1, 1, 2, 2, 4, 4], [1, 2, 3, 4], 1, 43_608_578),
    ],
)
def test_the_plain_form_has_the_published_number_of_parameters(width, levels, transform, channels, count):
    assert sum(map(prod, shapes(width, levels, transform, channels).values())) == count


def test_states_carried_over_equal_all_frames_at_once():
    made, video = networks(), clip(1, 8, 8, frames=5)
    with torch.no_grad():
        context, (expected, transform) = made["context"](video), made["transform"](video)
        first, (_, before) = made["context"](video[:, :2]), made["transform"](video[:, :2])
        later = made["context"](video[:, 2:], [level[:, -1] for level in first])
        told, after = made["transform"](video[:, 2:], [level[:, -1] for level in before])
    for whole, rest in [*zip(context, later), *zip(transform, after), (expected, told)]:
        torch.testing.assert_close(rest, whole[:, 2:], atol=1e-6, rtol=1e-5)


def test_frames_that_are_not_asked_for_are_read_all_the_same():
    network, video = networks()["transform"], clip(1, 8, 8)
    with torch.no_grad():
        (whole, states), (late, same) = network(video), network(video, first=2)
    assert all(torch.equal(a, b) for a, b in zip(states, same, strict=True))
    torch.testing.assert_close(late, whole[:, 2:], atol=1e-6, rtol=1e-5)


def test_a_state_of_zeros_is_no_state():
    gru, x = fill(ConvGRU(4)), uniform("x", (6, 4, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(gru(x, torch.zeros(2, 4, 8, 8), 3), gru(x, None, 3), atol=1e-6, rtol=1e-5)


def test_networks_keep_nothing_of_what_they_read():
    made, video = networks(), clip(1, 8, 8)
    with torch.no_grad():
        for name in ("context", "transform"):
            buffers = [*made[name].buffers()]
            first, again = made[name](video), made[name](video)
            flat = [x for result in (first, again) for x in (result if name == "context" else [result[0]])]
            assert all(torch.equal(a, b) for a, b in zip(flat[: len(flat) // 2], flat[len(flat) // 2 :]))
            assert not buffers


def test_state_after_a_frame_does_not_depend_on_later_frames():
    made, video = networks(), clip(1, 8, 8, frames=4)
    other = video.clone()
    other[:, 2:] += 0.3
    with torch.no_grad():
        for one, two in zip(made["context"](video), made["context"](other)):
            assert torch.equal(one[:, :2], two[:, :2]) and not torch.equal(one[:, 2], two[:, 2])
        one, two = made["transform"](video)[0], made["transform"](other)[0]
        assert torch.equal(one[:, :2], two[:, :2]) and not torch.equal(one[:, 2], two[:, 2])


def test_every_context_map_and_the_level_of_noise_change_what_is_denoised():
    denoiser, y, maps = networks()["denoiser"], uniform("y", (2, 1, 8, 8)), level_maps()
    n = torch.tensor([3, 40])
    with torch.no_grad():
        plain = denoiser(y, n, denoiser.prepare(maps))
        for level in range(len(maps)):
            changed = [2 * some if i == level else some for i, some in enumerate(maps)]
            assert not torch.allclose(denoiser(y, n, denoiser.prepare(changed)), plain, atol=1e-3)
        assert not torch.allclose(denoiser(y, n + 1, denoiser.prepare(maps)), plain, atol=1e-4)


def test_rows_of_a_batch_do_not_see_each_other():
    denoiser, y, maps = networks()["denoiser"], uniform("y", (3, 1, 8, 8)), level_maps(rows=3)
    n = torch.tensor([3, 700, 1500])
    with torch.no_grad():
        together = denoiser(y, n, denoiser.prepare(maps))
        for i in range(3):
            alone = denoiser(y[i : i + 1], n[i : i + 1], denoiser.prepare([some[i : i + 1] for some in maps]))
            torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-4)


def test_step_embedding_has_sines_first_and_reaches_the_lowest_frequency():
    found = step_embedding(torch.tensor([0, 1599]), 8)
    assert found[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    wanted = [1599 * 10_000 ** (-k / 3) for k in range(4)]
    assert found[1, :4].tolist() == pytest.approx(torch.tensor(wanted).sin().tolist(), abs=1e-4)
    assert found[1, 4:].tolist() == pytest.approx(torch.tensor(wanted).cos().tolist(), abs=1e-4)


def gradients(*, checkpointing):
    """Of something that passes through all three networks."""
    made, video = networks(), clip(1, 8, 8)
    for network in made.values():
        network.train().checkpointing = checkpointing
    context, (expected, _) = made["context"](video), made["transform"](video)
    prepared = made["denoiser"].prepare([level.flatten(0, 1) for level in context])
    output = made["denoiser"](expected.flatten(0, 1), torch.arange(6) * 200, prepared)
    output.square().mean().backward()
    return {f"{part}.{n}": p.grad for part, network in made.items() for n, p in network.named_parameters()}


def test_checkpointing_gives_equal_gradients():
    plain, again = gradients(checkpointing=False), gradients(checkpointing=True)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert all(bool(g.any()) for g in plain.values())


def test_states_stay_in_single_precision_under_autocast():
    made, video = networks(), clip(1, 8, 8, frames=6)
    maps = level_maps()
    n, y = torch.tensor([3, 700]), video[:, 0]
    with torch.no_grad():
        exact = [*made["context"](video), made["transform"](video)[0]]
        exact.append(made["denoiser"](y, n, made["denoiser"].prepare(maps)))
        with torch.autocast("cpu", torch.bfloat16):
            rough = [*made["context"](video), made["transform"](video)[0]]
            rough.append(made["denoiser"](y, n, made["denoiser"].prepare(maps)))
            states = [*rough[: len(SMALL.multipliers)], *made["transform"](video)[1]]
    assert {some.dtype for some in [*states, *rough]} == {torch.float32}
    for one, two in zip(rough, exact, strict=True):
        assert 0 < error(one, two) < 0.05


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="compiling needs a C++ compiler")
def test_compiled_networks_compute_the_same():
    made, video, maps = networks(), clip(1, 8, 8), level_maps()
    n = torch.tensor([3, 700])

    def run(networks):
        context, (expected, transform) = networks["context"](video), networks["transform"](video)
        prepared = made["denoiser"].prepare(maps)
        return [*context, *transform, expected, networks["denoiser"](video[:, 0], n, prepared)]

    with torch.no_grad():
        plain = run(made)
        compiled = run({name: torch.compile(network) for name, network in made.items()})
    assert max(error(one, two) for one, two in zip(compiled, plain, strict=True)) < FORWARD


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"multipliers": (2, 1)}, r"multipliers is \[2, 1\]; it must hold whole numbers from 1 on and begin with 1"),
        ({"transform_multipliers": (1, 0)}, r"transform_multipliers is \[1, 0\]"),
        ({"multipliers": ()}, r"multipliers is \[\]"),
        ({"multipliers": (1,)}, "needs at least 2 levels"),
        ({"width": 7}, "width is 7; it must be an even number of 4 or more"),
        ({"width": 10}, "width is 10, which is no multiple of groups, 4"),
        ({"patch": 0}, "patch is 0"),
        ({"sigma": 0.0}, "sigma is 0; it must be above 0"),
        ({"sigma": float("inf")}, "sigma is inf"),
        ({"prediction": "none", "sigma": 2.0}, "sigma is 2, but without a prediction the residual is the frame"),
        ({"prediction": "previous", "residual": "none"}, "nothing is left to learn"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate(replace(SMALL, **changes))


@pytest.mark.parametrize(
    ("changes", "size", "sentence"),
    [
        ({}, (8, 9), "frames are 9×8, but sides must be multiples of 2 for 2 levels; try 8×8"),
        ({"patch": 2}, (8, 6), "multiples of 4 for 2 levels and patches of 2; try 8×8"),
        ({"multipliers": (1, 1, 2, 2, 4, 4)}, (64, 48), "multiples of 32 for 6 levels; try 64×64"),
        ({"transform_multipliers": (1, 2, 2)}, (6, 8), "multiples of 4 for 3 levels; try 8×8"),
        ({"transform_multipliers": (1, 2, 2)}, (0, 8), "try 8×4"),
    ],
)
def test_frames_that_cannot_be_halved_are_refused_in_a_sentence(changes, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_size(replace(SMALL, **changes), size)


def test_only_the_networks_there_are_limit_the_size():
    check_size(replace(SMALL, transform_multipliers=(1, 2, 2, 4), prediction="none"), (2, 2))
    check_size(replace(SMALL, multipliers=(1, 2, 4, 8), residual="none"), (2, 2))
