"""predict, infill, interpolate, generate and reconstruct on a tiny RaMViD."""

import json

import numpy as np
import pytest
import torch

import framecast
from framecast.data.clip_file import read_clip
from tests.cli.conftest import make_clip


def test_predict_writes_everything_it_promises(cast, model_folder, clip, tmp_path):
    ran = cast("predict", model_folder, clip, "--horizon", 6, "--samples", 2, "--steps", 2)
    assert ran.code == 0, ran.err
    out = tmp_path / "out" / "push"
    names = {path.name for path in out.iterdir()}
    assert names == {"sample_00.mp4", "sample_01.mp4", "samples.npz", "strip.png", "result.json"}
    with np.load(out / "samples.npz") as arrays:
        samples = torch.from_numpy(arrays["frames"])
    source = read_clip(clip).frames
    assert samples.shape == (2, 8, 1, 8, 8)
    assert torch.equal(samples[:, :2], source[:2].expand(2, -1, -1, -1, -1))
    record = json.loads((out / "result.json").read_text())
    assert record["known_frames"] == [0, 1] and record["sample"]["steps"] == 2 and record["seed"] == 0
    assert record["sha256"] and record["fps"] == 10.0
    assert "CRPS" in ran.out and "persistence" in ran.out


def test_predict_agrees_with_python(cast, model_folder, clip, tmp_path):
    cast("predict", model_folder, clip, "--horizon", 3, "--samples", 2, "--seed", 5, "--batch", 1)
    model = framecast.load(model_folder, device="cpu")
    future = model.predict(framecast.read(clip, like=model)[:2], 3, samples=2, seed=5, batch=1)
    with np.load(tmp_path / "out" / "push" / "samples.npz") as arrays:
        assert np.array_equal(arrays["frames"], future.video.numpy())


def test_predict_scores_only_where_the_clip_goes_on(cast, model_folder, tmp_path):
    short = make_clip(tmp_path / "short.npz", frames=4)
    assert cast("predict", model_folder, short, "--horizon", 4, "--json").json["results"][0]["scores"]["frames"] == [
        2,
        3,
    ]
    ends = make_clip(tmp_path / "ends.npz", frames=2)
    assert cast("predict", model_folder, ends, "--horizon", 4, "--json").json["results"][0]["scores"] is None


def test_json_is_one_object_and_nothing_else(cast, model_folder, clip):
    ran = cast("predict", model_folder, clip, "--json", "--quiet")
    result = ran.json["results"][0]
    assert result["out"] == "out/push" and result["task"] == "predict"
    assert len(ran.out.splitlines()) == 1 and ran.err == ""


def test_results_are_never_overwritten(cast, model_folder, clip, tmp_path):
    outs = [cast("generate", model_folder, "-n", 1, "--json").json["results"][0]["out"] for _ in range(2)]
    assert outs == ["out/tiny", "out/tiny-2"]
    before = sorted((tmp_path / "out" / "tiny").iterdir())
    ran = cast("predict", model_folder, clip, "--out", "out/tiny")
    assert ran.code == 1 and "use --out out/tiny-3" in ran.err
    assert sorted((tmp_path / "out" / "tiny").iterdir()) == before


def test_several_clips_get_a_folder_each(cast, model_folder, clip, tmp_path):
    other = make_clip(tmp_path / "pull.npz", frames=9)
    assert cast("predict", model_folder, clip, other, "--out", "both", "--format", "npz").code == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"push", "pull"}
    assert not list((tmp_path / "both").rglob("*.mp4"))


def test_dry_run_tells_windows_and_cost_and_writes_nothing(cast, model_folder, clip, tmp_path):
    ran = cast("predict", model_folder, clip, "--horizon", 8, "--steps", 7, "--samples", 9, "--dry-run", "--json")
    told = ran.json["results"][0]
    assert told["windows"] == [[2, 4], [5, 7], [8, 9]]  # the last ends with the video and reaches further back
    assert told["network_calls"] == 7 * 3 * 2
    assert not (tmp_path / "out").exists()


def test_long_horizon_is_announced(cast, model_folder, clip):
    assert "10 frames in 3 windows of 5" in cast("predict", model_folder, clip, "--horizon", 8).err


def test_every_change_to_the_clip_is_told(cast, model_folder, tmp_path):
    path = make_clip(tmp_path / "big.npz", channels=3, size=(12, 16), fps=20.0, frames=20)
    ran = cast("predict", model_folder, path)
    assert ran.code == 1 and "add --gray" in ran.err
    ran = cast("predict", model_folder, path, "--gray")
    assert ran.code == 0
    for word in ("20 to 10 frames per second", "grey", "16x12 to 8x8 pixels"):
        assert word in ran.err


def test_start_moves_the_context(cast, model_folder, clip, tmp_path):
    cast("predict", model_folder, clip, "--start", 3, "--context", 3, "--format", "npz")
    with np.load(tmp_path / "out" / "push" / "samples.npz") as arrays:
        assert np.array_equal(arrays["frames"][0, :3], read_clip(clip).frames[3:6].numpy())


def test_context_longer_than_the_clip_is_refused(cast, model_folder, tmp_path):
    path = make_clip(tmp_path / "short.npz", frames=3)
    ran = cast("predict", model_folder, path, "--context", 4)
    assert ran.code == 1 and "3 frames, the context needs 4" in ran.err


def test_sampling_settings_reach_the_model(cast, model_folder, clip, tmp_path):
    ran = cast(
        "predict", model_folder, clip, "--sampler", "ddpm", "--sample.resample=2", "--sample.clip", "false", "--json"
    )
    options = ran.json["results"][0]["sample"]
    assert (options["sampler"], options["resample"], options["clip"]) == ("ddpm", 2, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sample.stps", "4"], "sample.stps is not a setting. Did you mean sample.steps?"),
        (["--sample.eta", "much"], "sample.eta is 'much', which is not a number"),
        (["--sampler", "ddmp"], "it can be ddpm, ddim, dpmpp_2m"),
    ],
)
def test_wrong_sampling_setting_exits_2(cast, model_folder, clip, words, said):
    ran = cast("predict", model_folder, clip, *words)
    assert ran.code == 2 and said in ran.err


def test_infill_keeps_known_frames(cast, model_folder, clip, tmp_path):
    ran = cast("infill", model_folder, clip, "--known", "0-1,6-7", "--samples", 2, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["results"][0]["known_frames"] == [0, 1, 6, 7]
    with np.load(tmp_path / "out" / "push" / "samples.npz") as arrays:
        assert np.array_equal(arrays["frames"][1, [0, 1, 6, 7]], read_clip(clip).frames[[0, 1, 6, 7]].numpy())


def test_interpolate_raises_the_rate_and_keeps_the_duration(cast, model_folder, tmp_path):
    path = make_clip(tmp_path / "slow.npz", frames=6, fps=5.0)
    ran = cast("interpolate", model_folder, path, "--factor", 2)
    assert ran.code == 0, ran.err
    with np.load(tmp_path / "out" / "slow" / "samples.npz") as arrays:
        assert arrays["frames"].shape[1] == 11 and float(arrays["fps"]) == 10.0
        assert np.array_equal(arrays["frames"][0, ::2], read_clip(path).frames.numpy())


def test_interpolate_notes_a_rate_the_model_never_saw(cast, model_folder, clip):
    told = cast("interpolate", model_folder, clip).err
    assert "20 fps, the model was trained at 10 fps; --fps 5 would give it its own" in told


def test_generate_draws_different_clips(cast, model_folder, tmp_path):
    assert cast("generate", model_folder, "-n", 3, "--frames", 7).code == 0
    with np.load(tmp_path / "out" / "tiny" / "samples.npz") as arrays:
        frames = arrays["frames"]
    assert frames.shape == (3, 7, 1, 8, 8)
    assert not np.array_equal(frames[0], frames[1])


def test_what_the_model_lacks_is_a_sentence(cast, model_folder, clip):
    ran = cast("reconstruct", model_folder, clip)
    assert ran.code == 1
    assert "tiny (ramvid) cannot reconstruct" in ran.err
