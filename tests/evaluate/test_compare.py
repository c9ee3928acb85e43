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


def test_what_a_model_does_otherwise_is_shown_and_refuses_nothing(tmp_path):
    fast, none = ["steps 2 instead of 1000", "rounded"], ["the protocol states steps 1000, which this model lacks"]
    told = compare(
        results(
            tmp_path,
            {"deviations": ["6 windows instead of 128"], "model_deviations": fast},
            {"model": "still", "deviations": ["6 windows instead of 128"], "model_deviations": none},
            {"model": "whole", "deviations": ["6 windows instead of 128"]},
        )
    )
    assert told.of_models == (tuple(fast), tuple(none), ()) and told.deviations == ("6 windows instead of 128",)
    assert told.protocol == "smoke-lbm-partial" and told.plain()["model_deviations"]["still"] == none
    told = compare(results(tmp_path / "other", {"model": "whole"}, {"model": "still", "model_deviations": none}))
    assert told.protocol == "smoke-lbm-partial"  # of either


def test_a_result_that_does_not_tell_models_deviations_apart_has_none(tmp_path):
    a, b = results(tmp_path, {}, {"model": "b", "deviations": ["steps 2 instead of 1000"]})
    del b.told["model_deviations"]
    assert "b deviates from the protocol (steps 2 instead of 1000), a does not" in unlike(a, b, ("a", "b"))


def test_other_real_clips_are_refused_where_both_tell_them(tmp_path):
    a, b, silent = results(tmp_path, {"real": "a" * 64}, {"model": "b", "real": "b" * 64}, {"model": "c"})
    assert unlike(a, b) == (
        "the first was judged beside other real clips than the second (2-4: aaaaaaaaaaaa…, bbbbbbbbbbbb…)"
    )
    assert unlike(a, silent) == unlike(silent, b) == ""
    b.told["data"]["sets"]["2-4"].update(real_sha256="a" * 64, real=1)
    assert unlike(b, a) == "the first used sets of 1 real clip (2-4), the second 512"
    b.told["data"]["sets"]["2-4"].update(real=None, judged=None)
    assert unlike(b, a) == ""


def test_results_of_sets_alone_have_no_windows_to_miss(tmp_path):
    pair = results(tmp_path, {"leave_out": ["windows"]}, {"model": "b", "leave_out": ["windows"]})
    for result in pair:
        del result.told["cases"][0]["forecasts"][0]["scores"]
    told = compare(pair)
    assert told.notes == () and told.cases[0].scores == {} and set(told.cases[0].sets) == {"rf3d_motion"}


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


def test_a_figure_that_only_one_result_was_asked_for_refuses_nothing(tmp_path):
    a, b = results(tmp_path, {}, {"model": "b", "settings": {"metrics": ["crps", "rf3d", "rf3d*"]}})
    sets = b.told["cases"][0]["forecasts"][0]["sets"]
    sets |= {"rf3d-v1* motion": sets["rf3d_motion"], "rf3d-v1* appearance": sets["rf3d_motion"]}
    assert compare([a, b]).notes == ("rf3d-v1* motion, rf3d-v1* appearance are only in b",)


def test_stars_of_two_models_are_beside_each_other_with_a_warning(tmp_path):
    pair = results(tmp_path, {}, {"model": "b"})
    for number, one in enumerate(pair):
        sets = one.told["cases"][0]["forecasts"][0]["sets"]
        sets["rf3d-v1* motion"] = sets["rf3d_motion"]
        one.told["model"]["sha256"] = f"{number}"
    told = compare(pair)
    assert "rf3d-v1* motion" in told.cases[0].sets and "each model's own codec" in told.notes[-1]
    pair[1].told["model"]["sha256"] = "0"  # one model, drawn in two ways
    assert not any("codec" in note for note in compare(pair).notes)


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


def put(told, place, value):
    *way, last = place
    for key in way:
        told = told[key]
    told[last] = value


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (["format_version"], "two", "format_version is 'two', expected a whole number"),
        (["format_version"], True, "format_version is True, expected a whole number"),
        (["cases"], 3, "cases is 3, expected a list"),
        (["cases"], [], "lacks forecasts"),
        (["cases", 0], 3, r"cases\[0\] is 3, expected names with values"),
        (["cases", 0], {"name": "x"}, r"cases\[0\] lacks forecasts"),
        (["cases", 0, "forecasts"], [], "lacks forecasts"),
        (["cases", 0, "forecasts", 0, "name"], None, r"cases\[0\]\.forecasts\[0\]\.name is None, expected text"),
        (["cases", 0, "forecasts", 0, "scores", "crps"], 1.5, r"scores\.crps is 1\.5, expected names with values"),
        (["cases", 0, "forecasts", 0, "scores", "crps"], {}, r"scores\.crps lacks mean"),
        (["cases", 0, "forecasts", 0, "scores", "crps", "low"], "0", r"scores\.crps\.low is '0', expected a number"),
        (["cases", 0, "forecasts", 0, "by_motion"], {"motion": [1.0]}, r"by_motion\.motion has length 1, expected 3"),
        (["model"], "vortex", "model is 'vortex', expected names with values"),
        (["settings"], ["smoke-lbm"], "settings is .+, expected names with values"),
        (["deviations"], "none", "deviations is 'none', expected a list"),
        (["model_deviations"], [1], r"model_deviations\[0\] is 1, expected text"),
        (["published"], [{"metric": "crps"}], r"published\[0\] lacks method"),
        (["data", "sets"], {"2-4": 512}, r"data\.sets\.2-4 is 512, expected names with values"),
        (["protocol"], ["x" * 90], r"protocol is \['x{35}…, expected text"),
    ],
)
def test_a_result_of_another_shape_is_refused_with_the_place(tmp_path, place, value, says):
    file = write_result(tmp_path / "a", leave_out=["shown"]) / "result.json"
    told = json.loads(file.read_text())
    put(told, place, value)
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=says) as refused:
        read_result(tmp_path / "a")
    assert str(refused.value).startswith(f"{file}") and str(refused.value).endswith("run framecast evaluate again.")


def cut(text, *, at):
    return text[: text.rindex(at)]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: "case,forecast\r\n2 → 4,vortex-ramvid\r\n", "has no column window and no column unit"),
        (lambda t: "", "has no column case and"),
        (lambda t: t[: len(t) * 2 // 3], r"is cut short or damaged in line 1\d"),
        (lambda t: t[:-4], "is cut short or damaged in line 19"),  # amid the last figure
        (lambda t: cut(t, at=","), "is cut short or damaged in line 19"),
        (lambda t: "\n".join(t.split("\n")[:-2]) + "\n", r"analog-8 \(2 → 4\): 5 here, 6 there"),
        (lambda t: "\n".join(t.split("\n")[:7]) + "\n", r"persistence \(2 → 4\): 0 here, 6 there"),
        (
            lambda t: t.replace("flow_0000@0,flow_0000,", "flow_0000@0,flow_0000,x"),
            "flow_0000@0 is 'x.+', not a number",
        ),
        (lambda t: t.replace("2 → 4", "2 \x00"), "windows.csv"),
    ],
)
def test_a_spoiled_table_of_windows_is_refused(tmp_path, spoil, says):
    (result,) = results(tmp_path, {"leave_out": ["shown"]})
    path = result.path / "windows.csv"
    path.write_bytes(spoil(path.read_bytes().decode()).encode())
    with pytest.raises(ValueError, match=says) as refused:
        for name in ("vortex-ramvid", "persistence", "analog-8"):
            result.windows("2 → 4", name)
    assert str(refused.value).startswith(f"{path}") and str(refused.value).endswith("run framecast evaluate again.")


def test_forecasts_without_scores_have_no_windows(tmp_path):
    (result,) = results(tmp_path, {})
    assert result.windows("2 → 4", "nobody") is None and result.windows("other", "vortex-ramvid") is None
