"""Results side by side: what is refused, what is paired, what is drawn."""

import json
import shutil

import numpy as np
import pytest
import torch

from framecast.data.clip_file import read_clip
from framecast.evaluate.compare import compare, save_pictures, unlike
from framecast.evaluate.result_folder import distinct_names, read_result
from tests.evaluate.results import write_result


def results(tmp_path, *changes):
    return [read_result(write_result(tmp_path / str(i), **change)) for i, change in enumerate(changes)]


def test_differences_are_paired_by_window(tmp_path):
    a, b = results(tmp_path, {"model": "good", "error": 3.0}, {"model": "bad", "error": 9.0})
    told = compare([a, b])
    metric = told.cases[0].scores["crps_fair"]
    one, two = (r.windows("2 → 4", r.name).values["crps_fair"] for r in (a, b))
    by_flow = {}
    for window, value in one.items():
        by_flow.setdefault(window.split("@")[0], []).append(two[window] - value)
    expected = np.mean([np.mean(group) for group in by_flow.values()])
    assert told.names == ("good", "bad") and len(metric.values) == 2
    assert metric.minus_first[0].mean == pytest.approx(expected, rel=1e-9) and metric.minus_first[0].units == 3
    assert 0 < metric.minus_first[0].low <= metric.minus_first[0].mean <= metric.minus_first[0].high
    assert told.plain()["cases"][0]["scores"]["crps_fair"]["minus_first"]["bad"]["mean"] > 0


def test_pairs_are_found_by_name_whatever_the_order_of_lines(tmp_path):
    a, b = results(tmp_path, {"model": "a"}, {"model": "b", "error": 9.0})
    before = compare([a, b]).cases[0].scores["psnr"].minus_first[0]
    path = b.path / "windows.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]) + "\n")
    after = compare([a, b]).cases[0].scores["psnr"].minus_first[0]
    assert after.mean == pytest.approx(before.mean) and after.units == before.units


def test_a_window_without_a_value_is_left_out_of_pairs(tmp_path):
    a, b = results(tmp_path, {"model": "a"}, {"model": "b"})
    path = b.path / "windows.csv"
    told = path.read_text().splitlines()
    cells = told[1].split(",")
    assert cells[1] == "b"
    path.write_text("\n".join([told[0], ",".join([*cells[:4], "nan", "", cells[6]]), *told[2:]]) + "\n")
    scores = compare([a, b]).cases[0].scores
    window = cells[2]
    assert window not in b.windows("2 → 4", "b").values["crps"]
    assert scores["crps_fair"].minus_first[0].units == 3 and np.isfinite(scores["crps"].minus_first[0].mean)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": {"name": "smoke-bounce"}}, "was judged by smoke-lbm, other by smoke-bounce"),
        ({"settings": {"paired": {"how": "phases", "samples": 100}}}, "used paired.samples 4, other 100"),
        (
            {"deviations": ["2 samples instead of 8"]},
            r"other deviates .*\(2 samples instead of 8\), vortex-ramvid does",
        ),
        ({"windows": 4}, "used 6 windows, other 4"),
        ({"data_seed": 1}, "judged on other frames than other"),
    ],
)
def test_unlike_results_are_refused_with_both_values(tmp_path, change, says):
    pair = results(tmp_path, {}, {"model": "other", **change})
    with pytest.raises(ValueError, match=says) as refused:
        compare(pair)
    assert str(refused.value).startswith("cannot compare: ") and str(refused.value).count(". ") == 0


def test_weights_of_a_shared_metric_must_be_the_same(tmp_path):
    a, b = results(tmp_path, {}, {"model": "b"})
    a.told["weights"], b.told["weights"] = (
        {"i3d": {"eps": 1e-3, "sha256": "aa"}},
        {"i3d": {"eps": 1e-5, "sha256": "aa"}},
    )
    assert unlike(a, b, ("a", "b")) == "a used i3d weights of eps 0.001, b 1e-05"
    b.told["weights"] = {}
    assert unlike(a, b) == ""


def test_words_about_a_protocol_are_no_difference(tmp_path):
    a, b = results(tmp_path, {}, {"settings": {"about": "said otherwise", "source": "elsewhere"}})
    assert unlike(a, b) == ""


def test_the_same_model_with_other_seeds_goes_by_its_seeds(tmp_path):
    pair = results(tmp_path, {}, {"seed": 7})
    assert compare(pair).names == ("vortex-ramvid, seed 0", "vortex-ramvid, seed 7")


def test_names_tell_settings_apart_then_folders_then_numbers(tmp_path):
    fast = {"sample": {"sampler": "ddim", "steps": 5}}
    assert distinct_names(results(tmp_path / "a", {}, fast, {"model": "other"})) == [
        "vortex-ramvid, steps 10", "vortex-ramvid, steps 5", "other",
    ]  # fmt: skip
    twice = results(tmp_path / "b", {}, {})
    assert distinct_names(twice) == ["vortex-ramvid, 0", "vortex-ramvid, 1"]
    assert distinct_names([twice[0], twice[0]]) == ["vortex-ramvid, no. 1", "vortex-ramvid, no. 2"]


def test_a_metric_of_one_result_alone_is_noted_not_compared(tmp_path):
    a, b = results(tmp_path, {}, {"model": "b"})
    del b.told["cases"][0]["forecasts"][0]["scores"]["psnr"]
    told = compare([a, b])
    assert "psnr" not in told.cases[0].scores and "psnr is only in vortex-ramvid" in told.notes
    assert set(told.cases[0].sets) == {"rf3d_motion"}


def test_without_windows_the_means_are_still_beside_each_other(tmp_path):
    told = compare(results(tmp_path, {}, {"model": "b", "leave_out": ["windows"]}))
    assert told.cases[0].scores["crps"].minus_first == () and len(told.cases[0].scores["crps"].values) == 2
    assert any("b has no windows.csv" in note for note in told.notes)


def test_pictures_hold_a_row_per_model_and_a_line_per_window(tmp_path):
    pair = results(tmp_path, {"model": "a", "cases": 2}, {"model": "b", "cases": 2})
    files = save_pictures(pair, compare(pair), tmp_path)
    assert [file.name for file in files] == ["side-by-side.mp4", "strip.png", "side-by-side-2.mp4", "strip-2.png"]
    video = read_clip(files[0]).frames
    height, width = video.shape[-2:]
    assert len(video) == 6 and width > 3 * 128 and height > 3 * 128  # truth, a and b; three windows


def test_results_that_keep_no_frames_get_no_pictures(tmp_path):
    pair = results(tmp_path, {}, {"model": "b", "leave_out": ["shown"]})
    assert save_pictures(pair, compare(pair), tmp_path / "out") == []


def test_shown_windows_give_back_what_was_stored(tmp_path):
    (result,) = results(tmp_path, {"channels": 3})
    window = result.shown("2 → 4")[0]
    truth, samples = window.truth(), window.samples("vortex-ramvid")
    assert len(samples) == 4 and samples[0].fps == 10.0 and window.mask(6) == [True, True, False, False, False, False]
    assert torch.equal(samples[3].frames[:2], truth.frames[:2])
    (window.folder / "truth.npz").write_bytes(b"spoiled")
    assert window.truth() is None and window.samples("nobody") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "holds no result.json"),
        ("{", "is not JSON"),
        (json.dumps({"model": "m", "task": "predict"}), "has no protocol, so it is not the result of an evaluation"),
        (json.dumps({"protocol": "smoke-lbm"}), "format 1, .* run framecast evaluate again"),
        (json.dumps({"protocol": "smoke-lbm", "format_version": 9}), "needs a newer framecast"),
        (json.dumps({"protocol": "smoke-lbm", "format_version": 2}), "lacks deviations, settings"),
    ],
)
def test_what_is_no_result_is_refused_in_a_sentence(tmp_path, text, says):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_result(tmp_path)


def test_a_result_is_also_read_by_its_file(tmp_path):
    folder = write_result(tmp_path / "a")
    assert read_result(folder / "result.json").shown("2 → 4") and read_result(folder).name == "vortex-ramvid"
    shutil.rmtree(folder / "shown")
    assert read_result(folder).shown("2 → 4") == []


def test_one_result_is_no_comparison(tmp_path):
    with pytest.raises(ValueError, match="at least two"):
        compare(results(tmp_path, {}))
