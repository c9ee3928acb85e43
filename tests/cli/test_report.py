"""compare and report from the command line: what they print, write and refuse."""

import json

import pytest

from tests.evaluate.results import write_result


@pytest.fixture
def pair(tmp_path):
    return write_result(tmp_path / "a"), write_result(tmp_path / "b", seed=1, error=9.0)


def test_compare_prints_a_table_and_writes_pictures(cast, pair, tmp_path):
    ran = cast("compare", *pair)
    assert ran.code == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == "smoke-lbm" and "vortex-ramvid, seed 1, minus the first" in lines[3]
    assert lines[4].startswith("fair CRPS, 8-bit levels ↓ 1.") and lines[4].count("to") == 3
    assert sorted(p.name for p in (tmp_path / "out" / "compare-smoke-lbm").iterdir()) == [
        "comparison.json", "side-by-side.mp4", "strip.png",
    ]  # fmt: skip


def test_compare_tells_machines_the_same_and_keeps_it(cast, pair, tmp_path):
    ran = cast("compare", *pair, "--json", "--out", tmp_path / "told")
    written = json.loads((tmp_path / "told" / "comparison.json").read_text())
    assert {key: ran.json[key] for key in written} == written and len(ran.json["files"]) == 3
    figure = written["cases"][0]["scores"]["psnr"]
    assert figure["better"] == "higher" and figure["minus_first"]["vortex-ramvid, seed 1"]["high"] < 0
    assert set(figure["values"]) == set(written["names"])


def test_compare_marks_what_a_model_does_otherwise_and_says_what_a_floor_is(cast, tmp_path):
    bare = {"leave_out": ["shown"]}
    a = write_result(tmp_path / "a", model_deviations=["steps 2 instead of 1000", "rounded"], **bare)
    b = write_result(tmp_path / "b", model="still", model_deviations=["rounded"], **bare)
    ran = cast("compare", a, b)
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == "smoke-lbm-partial" and lines.count("differs in [1] [2] [2]") == 1
    assert "[1] steps 2 instead of 1000" in lines and "[2] rounded" in lines
    assert "rf3d-v1 motion ↓ 0.42 (0.4 to 0.44) 0.42 (0.4 to 0.44) 0.05" in lines
    assert "about twice as high" in ran.out and "conservative near the floor" in ran.out


def test_compare_without_frames_still_gives_the_table(cast, pair, tmp_path):
    bare = write_result(tmp_path / "bare", model="bare", leave_out=["shown", "windows"])
    ran = cast("compare", pair[0], bare)
    assert ran.code == 0 and "bare has no windows.csv" in ran.err
    assert [p.name for p in (tmp_path / "out" / "compare-smoke-lbm").iterdir()] == ["comparison.json"]


def test_report_writes_a_page_and_overwrites_none(cast, pair, tmp_path):
    ran = cast("report", *pair, "--out", tmp_path / "r.html", "--json")
    assert ran.json["bytes"] == (tmp_path / "r.html").stat().st_size > 10_000
    before = (tmp_path / "r.html").read_bytes()
    again = cast("report", pair[0], "--out", tmp_path / "r.html")
    assert again.code == 1 and "r-2.html" in again.err and (tmp_path / "r.html").read_bytes() == before


def test_report_has_a_free_name_by_default(cast, tmp_path):
    folder = write_result(tmp_path / "a", leave_out=["shown", "by_frame", "ranks", "spread_skill"])
    told = [cast("report", folder).out.split(":")[0] for _ in range(2)]
    assert told == ["out/report-a.html", "out/report-a-2.html"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["compare", "a"], 2, "compare needs at least two results"),
        (["compare", "a", "nowhere"], 1, "nowhere holds no result.json"),
        (["compare", "a", "c"], 1, "cannot compare: vortex-ramvid was judged by smoke-lbm, c by smoke-bounce."),
        (["report", "nowhere"], 1, "nowhere is neither a result"),
        (["report", "a", "--out", "page.pdf"], 1, "name it .html: --out page.html."),
        (["report", "a", "--out", "a"], 1, "a is a folder: name the page in it, --out a/report-a.html."),
        (["report", "a", "--out", "a/result.json"], 1, "name it .html: --out a/result.html."),
        (["report", "a", "--out", "a/result.json/b/p.html"], 1, "a/result.json is a file, and no page can lie in it"),
    ],
)
def test_bad_words_are_refused_in_a_sentence(cast, tmp_path, words, code, says):
    for name, change in (("a", {}), ("c", {"model": "c", "settings": {"name": "smoke-bounce"}})):
        write_result(tmp_path / name, leave_out=["shown", "by_frame", "ranks", "spread_skill"], **change)
    ran = cast(*words)
    assert ran.code == code and says in ran.err and "bug" not in ran.err
    assert not (tmp_path / "out").exists()
