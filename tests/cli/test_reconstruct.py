"""reconstruct: what it prints and writes, what it refuses, and what a model without its prior can do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import framecast
from framecast.checkpoint import PartInfo, build_system, save_model
from framecast.data.clip_file import read_clip
from framecast.evaluate import reconstructed
from framecast.experiment import VideoSpec, to_plain
from framecast.metrics import i3d_weights
from framecast.metrics.features import FeatureNetwork
from tests.cli.conftest import make_clip
from tests.tiny import pvdm, video_vqvae

VIDEO = VideoSpec(channels=1, height=8, width=8, clip_frames=4, fps=10.0)


@pytest.fixture(scope="session")
def halves(tmp_path_factory):
    """An untrained model that has both parts, one with its autoencoder alone, one with its denoiser alone."""
    experiment, folder = pvdm(), tmp_path_factory.mktemp("pvdm")
    torch.manual_seed(0)
    system = build_system("pvdm", to_plain(experiment.model), VIDEO, to_plain(experiment.sample))
    infos = {"autoencoder": PartInfo(stage="autoencoder", step=3), "denoiser": PartInfo(stage="diffusion", step=2)}
    kinds = {"both": list(infos), "coder": ["autoencoder"], "prior": ["denoiser"]}
    for name, parts in kinds.items():
        save_model(folder / name, system, parts={part: infos[part] for part in parts}, provenance={})
    return folder


def test_reconstruct_prints_and_writes_what_python_gives(cast, halves, clip, tmp_path):
    ran = cast("reconstruct", halves / "both", clip, "--json")
    assert ran.code == 0, ran.err
    (told,) = ran.json["results"]
    model = framecast.load(halves / "both", device="cpu")
    made = model.reconstruct(framecast.read(clip, like=model))
    assert {key: told[key] for key in made.figures} == made.figures
    # 4 frames of 8x8 pixels in planes of 2x2, 4x2 and 4x2 places with 4 channels
    assert told["ratio"] == told["ratio_bits"] == 256 / 80 and told["bits_per_frame"] == 160
    out = tmp_path / "out" / "push"
    names = {"reconstructed.mp4", "strip.png", "reconstructed.npz", "result.json"}
    assert {path.name for path in out.iterdir()} == names
    with np.load(out / "reconstructed.npz") as arrays:
        assert np.array_equal(arrays["frames"], made.video.numpy())
    assert json.loads((out / "result.json").read_text())["psnr_per_frame"] == made.figures["psnr_per_frame"]


def test_table_tells_quality_and_size(cast, halves, clip):
    ran = cast("reconstruct", halves / "both", clip)
    head, row = ran.out.splitlines()[:2]
    assert "PSNR dB" in head and "at 8 bits a value" in head and "bits a frame" in head
    assert "3.2:1" in row and "160.00" in row and "68.75 %" in row and "saved" in head


def test_planes_are_shown_beside_the_clip(cast, halves, clip, tmp_path):
    ran = cast("reconstruct", halves / "both", clip, "--planes", "xy,motion", "--out", "shown")
    assert ran.code == 0 and "xy only" in ran.out and "motion only" in ran.out
    names = {path.name for path in (tmp_path / "shown").iterdir()}
    assert {"only_xy.npz", "only_motion.npz"} < names
    cast("reconstruct", halves / "both", clip, "--out", "plain")
    wide, plain = (read_clip(tmp_path / at / "reconstructed.mp4").frames for at in ("shown", "plain"))
    assert wide.shape[0] == plain.shape[0] == 12 and wide.shape[3] > 1.8 * plain.shape[3]
    ran = cast("reconstruct", halves / "both", clip, "--planes", "xz")
    assert ran.code == 2 and "the code of both has no part 'xz'; it has xy, motion" in ran.err


def test_levels_of_codes_are_shown_and_their_use_is_told(cast, tmp_path, clip):
    experiment = video_vqvae()
    video = replace(VIDEO, clip_frames=8)
    torch.manual_seed(0)
    system = build_system("video_vqvae", to_plain(experiment.model), video, to_plain(experiment.sample))
    save_model(tmp_path / "coder", system, parts={"tokenizer": PartInfo(stage="tokenizer", step=1)}, provenance={})
    ran = cast("reconstruct", "coder", clip, "--levels", "top")
    assert ran.code == 0, ran.err
    head, row = ran.out.splitlines()[:2]
    for words in ("PSNR dB", "top only", "perplexity top", "perplexity bottom", "saved"):
        assert words in head
    # nothing is lost when whole numbers are written, so there is one PSNR
    assert "bits a value" not in head and "a code value is kept in 4 bits" in ran.out
    # for 12 frames two pieces of 2x2x2 and 4x4x4 codes of 4 bits, of 12 times 512 bits
    assert "48.00" in row and f"{100 * (1 - 2 * 72 * 4 / (12 * 512)):.2f} %" in row
    result = json.loads((tmp_path / "out" / "push" / "result.json").read_text())
    assert set(result["of_codes"]) == {"perplexity_top", "perplexity_bottom"} and set(result["psnr_only"]) == {"top"}
    assert (tmp_path / "out" / "push" / "only_top.npz").exists()


def test_a_trained_autoencoder_reconstructs_and_draws_nothing(cast, halves, clip):
    ran = cast("reconstruct", halves / "coder", clip, "--json")
    assert ran.code == 0 and ran.json["results"][0]["untrained"] == ["denoiser"]
    assert "note: coder has no trained denoiser yet" in ran.err
    both = cast("reconstruct", halves / "both", clip, "--json").json["results"][0]
    assert "untrained" not in both and both["psnr"] == ran.json["results"][0]["psnr"]
    for words in (("predict", halves / "coder", clip), ("generate", halves / "coder")):
        ran = cast(*words)
        assert (
            ran.code == 1 and "has no trained part denoiser; train it: framecast train … --stage diffusion" in ran.err
        )


def test_a_model_loaded_to_reconstruct_draws_nothing(halves, clip):
    model = framecast.load(halves / "coder", device="cpu", verb="reconstruct")
    whole = framecast.load(halves / "both", device="cpu")
    read = framecast.read(clip, like=model)
    assert torch.equal(model.reconstruct(read).video, whole.reconstruct(read).video)
    for ask in (lambda: model.generate(1), lambda: model.predict(read, 4, context=4)):
        with pytest.raises(ValueError, match="no trained part denoiser; train it: framecast train … --stage diffusion"):
            ask()
    with pytest.raises(ValueError, match="no trained part denoiser"):
        framecast.load(halves / "coder", device="cpu")


def test_a_model_without_a_trained_autoencoder_is_refused(cast, halves, clip, tmp_path):
    ran = cast("reconstruct", halves / "prior", clip)
    assert ran.code == 1 and "no trained part autoencoder; train it: framecast train … --stage autoencoder" in ran.err
    assert not (tmp_path / "out").exists()


def test_all_clips_are_looked_at_before_the_first_is_worked_on(cast, halves, clip, tmp_path):
    short = make_clip(tmp_path / "short.npz", frames=3)
    wrong = {"missing.npz": "missing.npz: there is no such file", short: "short.npz: 3 frames, but both encodes 4 at"}
    for other, says in wrong.items():
        ran = cast("reconstruct", halves / "both", clip, other)
        assert ran.code == 1 and says in ran.err and not (tmp_path / "out").exists()


def test_results_of_several_clips_lie_side_by_side(cast, halves, tmp_path):
    paths = [make_clip(tmp_path / f"{name}.npz", frames=n) for name, n in (("a", 4), ("b", 9))]
    ran = cast("reconstruct", halves / "both", *paths, "--out", "mine", "--json")
    assert [r["pieces"] for r in ran.json["results"]] == [1, 3]
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["a", "b"]
    ran = cast("reconstruct", halves / "both", paths[0], "--out", "mine/a")
    assert ran.code == 1 and "nothing in it is overwritten" in ran.err


# ---- all clips together


def test_too_few_windows_have_no_distance(cast, halves, clip):
    ran = cast("reconstruct", halves / "both", clip)
    assert "rf3d-v1 is not computed: 3 of the 64 windows of 4 frames that it takes at least" in ran.out
    assert "R-FVD" not in ran.out


def test_without_i3d_the_distance_is_not_called_r_fvd(cast, halves, clip, monkeypatch):
    monkeypatch.setattr(reconstructed, "FEWEST", 3)
    ran = cast("reconstruct", halves / "both", clip)
    assert "3 windows of 4 frames" in ran.out and "rf3d-v1 appearance" in ran.out and "rf3d-v1 motion" in ran.out
    assert "rf3d-v1 is no R-FVD" in ran.out


class Means(torch.nn.Module):
    """Two features of a clip: the mean of its first frame, and of its last."""

    def forward(self, clips):
        return clips.float().mean((2, 3, 4))[:, [0, -1]]


def test_with_i3d_the_distance_is_between_windows_of_both(cast, halves, tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "push.npz", frames=14)
    network = FeatureNetwork("i3d", "f" * 64, {}, (4, None), 2, Means())
    asked = {}
    monkeypatch.setattr(i3d_weights, "load_i3d", lambda path, eps=None: asked.update(path=path, eps=eps) or network)
    monkeypatch.setattr(reconstructed, "FEWEST", 3)
    ran = cast("reconstruct", halves / "both", clip, "--i3d", "weights.pt", "--i3d-eps", "0.001", "--json")
    assert str(asked["path"]) == "weights.pt" and asked["eps"] == 0.001
    told = ran.json["together"]["r-fvd"]
    assert told["label"] == "R-FVD" and told["n_real"] == told["n_fake"] == 3  # of frames 0-3, 4-7, 8-11
    real = read_clip(clip).frames
    with np.load(tmp_path / "out" / "push" / "reconstructed.npz") as arrays:
        made = torch.from_numpy(arrays["frames"])
    rows = [torch.stack([Means()(x[i : i + 4][None])[0] for i in (0, 4, 8)]).double().numpy() for x in (real, made)]
    gap, (a, b) = np.square(rows[0].mean(0) - rows[1].mean(0)).sum(), (np.cov(x.T) for x in rows)
    both = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    assert told["value"] == pytest.approx(gap + np.trace(a) + np.trace(b) - 2 * both, rel=1e-3)


def test_windows_too_short_for_i3d_are_told(cast, halves, clip, monkeypatch):
    network = FeatureNetwork("i3d", "f" * 64, {}, (9, None), 2, Means())
    monkeypatch.setattr(i3d_weights, "load_i3d", lambda path, eps=None: network)
    ran = cast("reconstruct", halves / "both", clip, "--i3d", "weights.pt")
    assert ran.code == 0 and "R-FVD is not computed: windows of 4 frames are too short" in ran.out
    ran = cast("reconstruct", halves / "both", clip, "--i3d-eps", "0.001")
    assert ran.code == 2 and "--i3d-eps goes with --i3d FILE" in ran.err


# ---- protocols of reconstruction


def test_protocols_of_reconstruction_take_a_trained_autoencoder_and_say_so(cast, halves, tmp_path):
    for i in range(3):
        (tmp_path / "sky" / "test").mkdir(parents=True, exist_ok=True)
        make_clip(tmp_path / "sky" / "test" / f"{i}.npz", frames=16 + i)
    words = ("--protocol", "pvdm-recon-sky-test", "--data", "sky", "--json")
    ran = cast("evaluate", halves / "coder", *words, "--out", "mine")
    assert ran.code == 0, ran.err
    result = json.loads((tmp_path / "mine" / "result.json").read_text())
    assert result["model"]["untrained"] == ["denoiser"]
    assert "psnr_clip" in result["cases"][0]["forecasts"][0]["scores"]
    ran = cast("evaluate", halves / "coder", "--protocol", "smoke-lbm", "--data", "sky")
    assert ran.code == 1 and "no trained part denoiser" in ran.err
