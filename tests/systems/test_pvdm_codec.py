"""PVDM's codec: bytes of latents, what planes carry by themselves."""

import pytest
import torch

from framecast.systems.pvdm.autoencoder import Autoencoder
from framecast.systems.pvdm.codec import PlanesCodec
from framecast.systems.pvdm.config import AutoencoderConfig

CONFIG = AutoencoderConfig(
    width=16, patch=4, depth=1, heads=2, head_width=8, expansion=2,
    plane_depth=1, plane_heads=2, plane_head_width=8, plane_hidden=16,
)  # fmt: skip


@pytest.fixture
def codec():
    torch.manual_seed(0)
    network = Autoencoder(CONFIG, channels=3, size=(8, 12), frames=4)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return PlanesCodec(network.eval().requires_grad_(False))


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_code_decodes_as_the_autoencoder_does(codec, video):
    network = codec.autoencoder
    assert torch.equal(codec.decode(codec.encode(video)), network.decode(network.encode(video)))


def test_stored_values_are_the_nearest_of_256(codec, video):
    code = codec.encode(video)
    stored = codec.stored(code)
    again = {name: plane.float() * (2 / 255) - 1 for name, plane in stored.items()}
    for name, plane in code.items():
        assert stored[name].dtype == torch.uint8 and plane.std() > 0.05
        assert (again[name] - plane).abs().max() <= 1 / 255 + 1e-6
    torch.testing.assert_close(codec.decode(stored), codec.decode(again))


def test_ends_of_the_range_are_kept_exactly(codec):
    ends = {name: torch.tensor([[[[-1.0, 1.0]]]]) for name in ("xy", "yt", "xt")}
    assert codec.stored(ends)["xy"].flatten().tolist() == [0, 255]


def test_bits_are_bytes_of_all_planes(codec, video):
    # planes of 2x3, 4x3 and 4x2 places, 4 channels each
    assert codec.bits(codec.encode(video)) == 8 * 4 * (6 + 12 + 8)


@pytest.mark.parametrize("size, frames, ratio", [((256, 256), 16, 384), ((32, 32), 16, 12.8 * 3)])
def test_published_size_has_the_published_ratio(size, frames, ratio):
    config = AutoencoderConfig() if size[0] == 256 else AutoencoderConfig(patch=4)
    with torch.device("meta"):
        network = Autoencoder(config, channels=3, size=size, frames=frames)
    values = config.latent_channels * network.places
    assert frames * 3 * size[0] * size[1] / values == pytest.approx(ratio)


def test_xy_alone_holds_the_planes_of_time_still(codec, video):
    code = codec.encode(video)
    left = codec.only(code, "xy")
    assert torch.equal(left["xy"], code["xy"])
    for name in ("yt", "xt"):
        assert left[name].shape == code[name].shape
        torch.testing.assert_close(left[name], code[name].mean(2, keepdim=True).expand_as(code[name]))


def test_motion_alone_holds_the_plane_of_places_flat(codec, video):
    code = codec.encode(video)
    left = codec.only(code, "motion")
    assert torch.equal(left["yt"], code["yt"]) and torch.equal(left["xt"], code["xt"])
    assert left["xy"].shape == code["xy"].shape
    torch.testing.assert_close(left["xy"], code["xy"].mean((2, 3), keepdim=True).expand_as(code["xy"]))


def test_another_set_of_planes_is_refused(codec, video):
    with pytest.raises(ValueError, match="'yx' is no set of planes; choose of xy, motion"):
        codec.only(codec.encode(video), "yx")


def test_a_clip_of_another_length_is_refused(codec, video):
    with pytest.raises(ValueError, match="3 frames of 3 channels"):
        codec.encode(video[:, :3])
