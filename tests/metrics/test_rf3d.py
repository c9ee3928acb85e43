"""What the fixed random filters see and do not see."""

from pathlib import Path

import pytest
import torch

from framecast.metrics import rf3d
from framecast.metrics.rf3d import NAME, PARTS, RF3D, scores


def clips(count: int, frames: int = 5, channels: int = 3, side: int = 64, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, frames, channels, side, side), generator=rng, dtype=torch.uint8)


@pytest.fixture(scope="module")
def network() -> RF3D:
    return RF3D()


def test_appearance_does_not_see_the_order_of_frames(network):
    x = clips(2)
    one, other = network.features(x), network.features(x[:, [3, 0, 4, 1, 2]])
    torch.testing.assert_close(one["appearance"], other["appearance"], rtol=1e-6, atol=1e-6)
    assert (one["motion"] - other["motion"]).abs().max() > 0.01


def test_motion_of_a_still_picture_does_not_depend_on_the_picture(network):
    still = clips(3)[:, :1].expand(-1, 5, -1, -1, -1)
    motion = network.features(still)["motion"]
    torch.testing.assert_close(motion, motion[:1].expand(3, -1), rtol=1e-6, atol=1e-7)


def test_half_of_the_first_filters_do_not_see_brightness(network):
    kernels = network.app[0].weight
    assert kernels[16:].sum((2, 3)).abs().max() < 1e-6 < kernels[:16].sum((2, 3)).abs().min()


def test_grey_clips_are_seen_as_rgb_of_equal_channels(network):
    grey = clips(2, channels=1)
    one, other = network.features(grey), network.features(grey.expand(-1, -1, 3, -1, -1))
    for part in PARTS:
        torch.testing.assert_close(one[part], other[part], rtol=1e-6, atol=1e-7)


def test_a_clip_has_the_same_features_beside_any_others(network, monkeypatch):
    x = clips(5, side=40)
    together = network.features(x)
    monkeypatch.setattr(rf3d, "_FRAMES", 5)
    monkeypatch.setattr(rf3d, "_PIXELS", 3 * 40 * 40 * 2)
    alone = network.features(x)
    for part in PARTS:
        assert alone[part].dtype == torch.float64
        torch.testing.assert_close(together[part], alone[part], rtol=1e-6, atol=1e-7)


def test_no_clip_has_no_features(network):
    assert {part: tuple(x.shape) for part, x in network.features(clips(0)).items()} == dict.fromkeys(PARTS, (0, 160))


def test_filters_are_never_trained_and_named_after_the_version():
    network = RF3D()
    assert not any(p.requires_grad for p in network.parameters())
    assert set(network.state_dict()) == {
        f"{n}.{i}.{p}" for n in ("app", "mot") for i in range(3) for p in ("weight", "bias")
    }
    assert network.key == NAME == "rf3d-v1"


def test_name_of_the_published_distance_is_not_used():
    said = Path(rf3d.__file__).read_text() + str(scores(*[{part: torch.randn(9, 160).double() for part in PARTS}] * 2))
    assert "fvd" not in said.lower()


def test_scores_are_zero_of_equal_sets_and_one_of_a_shift_by_the_deviation():
    rng = torch.Generator().manual_seed(0)
    real = {part: 5 * torch.randn(30, 160, generator=rng, dtype=torch.float64) + 7 for part in PARTS}
    same, moved = scores(real, real), scores(real, {part: x + x.std(0) for part, x in real.items()})
    for part in PARTS:
        assert same[part]["frechet"] == pytest.approx(0.0, abs=1e-12) and same[part]["coverage"] == 1.0
        assert moved[part]["frechet"] == pytest.approx(1.0, rel=1e-7)


def test_features_that_only_the_judged_clips_have_are_counted():
    rng = torch.Generator().manual_seed(0)
    real = {part: torch.rand(20, 160, generator=rng, dtype=torch.float64) for part in PARTS}
    fake = {part: torch.rand(20, 160, generator=rng, dtype=torch.float64) for part in PARTS}
    for x in (real["motion"], fake["motion"]):
        x[:, 7:9] = 0.25  # equal in both: no harm
    assert scores(real, fake)["motion"]["silent"] == 0 and scores(real, fake)["motion"]["frechet"] < 10
    fake["motion"][3, 7] += 0.01
    told = scores(real, fake)
    assert told["motion"]["silent"] == 1 and told["motion"]["frechet"] > 100
    assert told["appearance"]["silent"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [(clips(1, frames=1), "clips of 1 frame have none"), (clips(1, channels=2), "these have 2 channels")],
)
def test_clips_it_cannot_see_are_one_sentence(network, given, said):
    with pytest.raises(ValueError, match=said):
        network.features(given)


def test_too_few_clips_for_neighbours_are_one_sentence():
    few = {part: torch.randn(5, 160, dtype=torch.float64) for part in PARTS}
    with pytest.raises(ValueError, match="5 clips have no neighbour number 5; give 6 or more"):
        scores(few, few)
