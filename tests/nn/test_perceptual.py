"""LPIPS: a distance, with gradients, frozen figures of formula weights, and files that are refused."""

import hashlib
import importlib.util

import pytest
import torch

from framecast.metrics.hash_fill import uniform
from framecast.nn import perceptual
from framecast.nn.perceptual import LPIPS, load_lpips
from tests.nn.formula_lpips import WIDTHS, backbone, write_files

# made by this code after it agreed with the reference implementation to 1e-15: distances of the pictures below
FIGURES = {"alex": [0.0, 0.849343987, 1.150151812], "vgg": [0.0, 0.669794529, 0.860700478]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    for net in ("alex", "vgg"):
        write_files(folder, net)
    return folder


@pytest.fixture(scope="module")
def alex(files):
    return load_lpips("alex", files / "alex.pth", files / "alex-lin.pth")


def pictures(count, channels, height, width):
    shape = (count, channels, height, width)
    values = uniform(f"pictures {shape}", count * channels * height * width).reshape(shape)
    return torch.from_numpy((127.5 * (values + 1)).astype("uint8"))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distances_of_formula_weights_stay_as_they_were_proved(files, net):
    network = load_lpips(net, files / f"{net}.pth", files / f"{net}-lin.pth")
    a = pictures(3, 3, 48, 40)
    b = torch.stack([a[0], a[1].flip(-1), 255 - a[2]])
    assert network.distance(a, b).tolist() == pytest.approx(FIGURES[net], rel=1e-5)


def test_distance_is_symmetric_and_zero_for_equal_pictures(alex):
    a, b = pictures(6, 3, 40, 36).chunk(2)
    torch.testing.assert_close(alex.distance(a, b), alex.distance(b, a), rtol=1e-6, atol=0)
    assert (alex.distance(a, b) > 0).all()
    assert alex.distance(a, a).tolist() == [0, 0, 0]


def test_grey_pictures_are_repeated(alex):
    a, b = pictures(4, 1, 33, 40).chunk(2)
    assert torch.equal(alex.distance(a, b), alex.distance(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))


def test_one_truth_serves_many_samples_and_batches_change_nothing(alex, monkeypatch):
    samples, truth = pictures(7, 1, 32, 32), pictures(2, 1, 32, 32)[:1]
    one_by_one = torch.cat([alex.distance(s[None], truth) for s in samples])
    monkeypatch.setattr(perceptual, "_AT_ONCE", 3 * 32 * 32)
    torch.testing.assert_close(alex.distance(samples, truth), one_by_one, rtol=1e-5, atol=0)
    repeated = truth.expand(7, -1, -1, -1)
    torch.testing.assert_close(alex.distance(samples, repeated), one_by_one, rtol=1e-5, atol=0)


def test_no_pictures_have_no_distances(alex):
    nothing = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    assert alex.distance(nothing, nothing).shape == (0,)


def test_bytes_are_brought_to_minus_one_to_one(alex):
    a, b = pictures(4, 3, 32, 32).chunk(2)
    expected = alex(a.float() / 127.5 - 1, b.float() / 127.5 - 1)
    torch.testing.assert_close(alex.distance(a, b), expected.double(), rtol=1e-6, atol=0)


def test_gradient_points_to_the_truth_and_leaves_the_weights_alone(alex):
    truth = pictures(1, 3, 32, 32) / 127.5 - 1
    made = (truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    before = alex(made, truth)
    before.sum().backward()
    step = made - 1e-2 * made.grad / made.grad.norm()
    assert alex(step, truth).item() < before.item()
    assert all(p.grad is None and not p.requires_grad for p in alex.parameters())


def test_gradient_is_finite_where_features_vanish(alex):
    made = torch.full((1, 3, 32, 32), -0.03).requires_grad_()
    alex(made, torch.full((1, 3, 32, 32), -0.03)).sum().backward()
    assert made.grad.isfinite().all()


def test_weights_and_lin_decide_the_key(files, alex):
    other = load_lpips("alex", files / "alex.pth", files / "alex-lin.pth")
    assert other.key == alex.key
    assert alex.sha256 == hashlib.sha256((files / "alex.pth").read_bytes()).hexdigest()
    assert alex.about["file"] == "not one of torchvision's"
    published = load_lpips("alex", files / "alex.pth")
    assert published.key != alex.key
    assert published.sha256 == alex.sha256


def test_published_lin_is_the_default(files, alex):
    pytest.importorskip("torchmetrics")
    published = load_lpips("alex", files / "alex.pth")
    assert [published.get_buffer(f"lin{k}").shape[0] for k in range(5)] == WIDTHS["alex"]
    assert all((published.get_buffer(f"lin{k}") >= 0).all() for k in range(5))
    assert published.about["lin"].startswith("df73285e35b22355")  # sha256 of the published file for AlexNet


# ---- refusals


def test_without_weights_there_is_no_distance():
    with pytest.raises(ValueError, match="without a file of weights means nothing"):
        LPIPS("alex").distance(pictures(1, 3, 32, 32), pictures(1, 3, 32, 32))


def test_pictures_that_leave_no_features_are_refused(alex):
    with pytest.raises(ValueError, match=r"\(alex\) needs pictures of 31 x 31 pixels at least; these are 64 x 30"):
        alex.distance(pictures(1, 3, 64, 30), pictures(1, 3, 64, 30))


@pytest.mark.parametrize(("net", "side"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_pictures_have_features(net, side):
    network = LPIPS(net)
    assert network.shortest == side
    assert network.features_of(torch.zeros(1, 3, side, side))[-1].shape[-2:] == (1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        network.features_of(torch.zeros(1, 3, side - 1, side))


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), "8-bit pictures of 1 or 3 channels"),
        (pictures(1, 2, 32, 32), pictures(1, 2, 32, 32), "8-bit pictures of 1 or 3 channels; these are .* with 2"),
        (pictures(3, 3, 32, 32), pictures(2, 3, 32, 32), "cannot be compared"),
        (pictures(2, 3, 32, 32), pictures(2, 1, 32, 32), "cannot be compared"),
    ],
)
def test_other_than_pictures_is_refused(alex, unchecked, a, b, sentence):
    with pytest.raises(ValueError, match=sentence):
        alex.distance(a, b)


def test_a_swapped_backbone_is_named(files):
    with pytest.raises(
        ValueError, match=r"alex.pth holds AlexNet, .+ asks for LPIPS with VGG-16: give VGG-16's file, such as vgg16"
    ):
        load_lpips("vgg", files / "alex.pth")


def change(state, net):
    """Files that look like a backbone and are not."""
    name = "features.0.weight"
    return {
        "missing": {k: v for k, v in state.items() if k != "features.8.bias"},
        "shape": {**state, name: state[name][:, :1]},
        "extra": {**state, "features.12.weight": torch.zeros(3)},
        "not a number": {**state, name: state[name] * float("nan")},
        "nothing": {},
    }[net]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", "does not hold torchvision's AlexNet: features.8.bias is missing"),
        ("shape", r"features.0.weight has shape \(64, 1, 11, 11\), expected \(64, 3, 11, 11\)"),
        ("extra", "features.12.weight is not in that network"),
        ("not a number", "features.0.weight holds values that are not numbers"),
        ("nothing", "empty"),
    ],
)
def test_another_network_is_refused_by_its_first_difference(tmp_path, how, sentence):
    torch.save(change(backbone("alex"), how), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=sentence):
        load_lpips("alex", tmp_path / "w.pth")


def test_a_web_page_is_refused(tmp_path):
    (tmp_path / "alexnet-owt-7be5be79.pth").write_text("<!DOCTYPE html><html><body>not found</body></html>")
    with pytest.raises(ValueError, match="is a web page"):
        load_lpips("alex", tmp_path / "alexnet-owt-7be5be79.pth")


def test_lin_weights_of_another_net_are_refused(files):
    with pytest.raises(ValueError, match=r"does not hold lin1.model.1.weight of 192 values: it is not LPIPS's file"):
        load_lpips("alex", files / "alex.pth", files / "vgg-lin.pth")


def test_torchmetrics_that_is_missing_or_changed_is_told(files, monkeypatch, tmp_path):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install framecast\[metrics\]"):
        load_lpips("alex", files / "alex.pth")
    spec = importlib.util.spec_from_file_location("torchmetrics", tmp_path / "__init__.py")
    monkeypatch.setattr(perceptual, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="is not the published file of LPIPS"):
        load_lpips("alex", files / "alex.pth")


def test_an_unknown_net_is_refused(unchecked):
    with pytest.raises(ValueError, match="net is 'squeeze'; LPIPS can be of alex or vgg"):
        LPIPS("squeeze")
