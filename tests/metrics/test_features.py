"""The frame around feature networks: batches, keys, and clips that are refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from framecast.metrics.features import FeatureNetwork, strict_float32


class Toy(nn.Module):
    """Mean colour of a clip; remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, clips):
        self.seen.append(tuple(clips.shape))
        return clips.float().mean((1, 3, 4))


def network(**fields):
    given = {"name": "toy", "sha256": "ab", "about": {"eps": 1e-5}, "frames": (9, None), "width": 3, "network": Toy()}
    return FeatureNetwork(**{**given, **fields})


def clips(count, frames=16, channels=3, size=4):
    shape = (count, frames, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_features_are_those_of_each_clip_whatever_the_batches():
    toy, given, told = network(), clips(11), []
    made = toy.features(given, progress=told.append)
    assert made.dtype == torch.float64 and made.shape == (11, 3)
    assert torch.allclose(made, given.double().mean((1, 3, 4)), atol=1e-4)
    assert [shape[0] for shape in toy.network.seen] == [4, 4, 3] and told == [4, 8, 11]


def test_long_clips_are_taken_one_by_one():
    toy = network()
    toy.features(clips(2, frames=128))
    assert toy.network.seen == [(1, 128, 3, 4, 4)] * 2


def test_grey_clips_are_repeated_three_times():
    grey = clips(2, channels=1)
    toy = network()
    assert torch.equal(toy.features(grey), toy.features(grey.repeat(1, 1, 3, 1, 1)))


def test_no_clips_give_no_features():
    assert network().features(clips(0)).shape == (0, 3)


def test_key_changes_with_what_determines_the_features():
    keys = {
        network().key,
        network(about={"eps": 1e-3}).key,
        network(about={"eps": 1e-5, "resize": "tf1"}).key,
        network(sha256="cd").key,
        network(name="other").key,
    }
    assert len(keys) == 5 and all(len(key) == 16 for key in keys)
    assert network().to("cpu").key == network(network=Toy()).key == network().key


@pytest.mark.parametrize(
    ("given", "frames", "said"),
    [
        (clips(1).float(), (9, None), "toy takes 8-bit clips .* these are float32"),
        (clips(1)[0], (9, None), r"these are uint8 of shape \(16, 3, 4, 4\)"),
        (clips(1, channels=2), (9, None), "of 1 or 3 channels"),
        (clips(1, frames=8), (9, None), "clips of 9 frames or more; these have 8"),
        (clips(1, frames=15), (16, 16), "exactly 16 frames; these have 15"),
        (clips(1, frames=17), (None, 16), "at most 16 frames; these have 17"),
    ],
)
def test_other_clips_are_refused(given, frames, said):
    with pytest.raises(ValueError, match=said):
        network(frames=frames).features(given)


def test_answers_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"answers with shape \(2, 3\) to 2 clips, expected \(2, 400\)"):
        network(width=400).features(clips(2))


def test_values_that_are_no_numbers_are_refused():
    class Broken(nn.Module):
        def forward(self, clips):
            return torch.full((len(clips), 3), torch.nan)

    with pytest.raises(ValueError, match="not numbers: its file is damaged"):
        replace(network(), network=Broken()).features(clips(1))


def test_settings_of_the_gpu_are_put_back():
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), strict_float32():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 is before
