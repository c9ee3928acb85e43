"""The page: that it needs nothing else, says what a figure is not, stays small, and loses nothing."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import av
import pytest
import torch

from framecast.data.array_file import write_array
from framecast.data.plot import Curve, curves, rank_bars, training_curves
from framecast.evaluate.report import write_report
from framecast.evaluate.report_tables import number
from framecast.evaluate.result_folder import read_result
from tests.evaluate.results import write_result

PUBLISHED = [
    {"metric": "crps", "method": "RVD", "value": 0.58, "spread": None, "note": ""},
    {"metric": "crps", "method": "IVRNN", "value": 0.65, "spread": 0.02, "note": "by RVD's authors"},
    {"metric": "fvd", "method": "RVD", "value": 20.0, "spread": None, "note": ""},
    {"metric": "rf3d", "method": "nobody", "value": 123.4, "spread": None, "note": ""},
]
NO_PICTURES = ("shown", "by_frame", "ranks", "spread_skill")
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """A page as its elements: what is open at the end, ids, links, pictures, tables by caption."""

    def __init__(self, path):
        super().__init__()
        self.open, self.ids, self.links, self.media, self.headings = [], [], [], [], []
        self.tables, self._cells, self._captioned, self.text = {}, [], "", ""
        self.html = Path(path).read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [told["id"]] if "id" in told else []
        self.links += [told[key] for key in ("href", "src") if key in told]
        if tag in ("img", "video"):
            self.media.append((tag, told))
        if tag == "table":
            self._cells = []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._captioned] = self._cells
        if tag == "caption":
            self._captioned = self._cells.pop()

    def handle_data(self, data):
        if not data.strip() or self.open[-1:] == ["style"]:
            return
        self.text += data + "\n"
        if "table" in self.open:
            self._cells.append(data.strip())
        if self.open and re.fullmatch("h[1-4]", self.open[-1]):
            self.headings.append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A result with all that there is, its folder and its page."""
    folder = write_result(tmp_path_factory.mktemp("whole") / "a", model="a<b>&c")
    return folder, page(folder.parent, folder)


def page(tmp_path, *sources):
    return Page(write_report(sources, tmp_path / "report.html", overwrite=True))


def decoded(uri):
    head, data = uri.split(",", 1)
    return head, base64.b64decode(data)


def test_a_page_needs_nothing_else_and_is_well_formed(whole, tmp_path):
    told = page(tmp_path, write_result(tmp_path / "a", cases=2, leave_out=["shown"]), write_run(tmp_path / "run"))
    for one in (told, whole[1]):
        check_form(one)
    assert "a<b>&c" in whole[1].text and "a<b>" not in whole[1].html


def check_form(told):
    assert told.open == [] and len(told.ids) == len(set(told.ids))
    assert all(link.startswith(("#", "data:")) for link in told.links)
    assert {link[1:] for link in told.links if link.startswith("#")} <= set(told.ids)
    assert "http" not in re.sub(r"base64,[^\"]+", "", told.html).replace("http-equiv", "")
    assert "<script" not in told.html
    assert all(attributes.get("alt") or attributes.get("aria-label") for _, attributes in told.media)


def test_pictures_are_what_they_say(whole, tmp_path):
    told = whole[1]
    kinds = {"data:image/svg+xml;base64": 0, "data:image/png;base64": 0, "data:video/mp4;base64": 0}
    for _, attributes in told.media:
        head, data = decoded(attributes["src"])
        kinds[head] += 1
        if head.startswith("data:video"):
            (tmp_path / "v.mp4").write_bytes(data)
            with av.open(str(tmp_path / "v.mp4")) as container:
                track = container.streams.video[0]
                assert track.codec_context.name == "h264" and track.codec_context.pix_fmt == "yuv420p"
                assert sum(1 for _ in container.decode(track)) == 6
    # curves of CRPS and PSNR, spread beside error, ranks, maps; a strip and a video for each of three windows
    assert list(kinds.values()) == [5, 3, 3]
    assert all(a.get("autoplay") is None and "controls" in a for tag, a in told.media if tag == "video")


def test_tables_hold_the_figures_of_the_result(whole):
    told, result = whole[1], read_result(whole[0]).told
    model, other = result["cases"][0]["forecasts"][:2]
    cells = told.tables["Means over windows and frames"]
    assert cells[:4] == ["a<b>&c", "persistence", "analog-8", "fair CRPS, 8-bit levels\u00a0↓"]
    assert cells[4] == number(model["scores"]["crps_fair"]["mean"])
    minus = told.tables["a<b>&c minus the simple forecasts, paired by window"]
    assert number(other["minus"]["crps_fair"]["mean"]) in minus
    assert told.tables["Sets of clips: 512 real, 512 judged"][-3:] == ["0.42", "0.4 to 0.44", "0.05"]
    assert "better than 2 of 2 simple forecasts" in told.text


def test_published_values_stand_beside_ours_but_never_beside_rf3d(tmp_path):
    told = page(tmp_path, write_result(tmp_path / "a", published=PUBLISHED, leave_out=NO_PICTURES))
    cells = told.tables["Beside published values"]
    assert cells[:3] == ["method", "crps", "fvd"] and "0.65 ± 0.02" in cells and "by RVD's authors" in cells
    ours = read_result(tmp_path / "a").told["cases"][0]["forecasts"][0]["scores"]["crps"]["mean"]
    assert cells[3:5] == ["vortex-ramvid", number(ours)]
    assert "rf3d" not in " ".join(cells) and "123" not in " ".join(cells) and "partial" not in told.text


def test_a_partial_run_says_so_beside_every_published_value(tmp_path):
    told = page(
        tmp_path,
        write_result(
            tmp_path / "a",
            published=PUBLISHED,
            leave_out=NO_PICTURES,
            deviations=["6 windows instead of 128"],
            settings={"is_not": ["a value of the RVD paper"], "assumed": ["one sample"]},
        ),
    )
    cells = told.tables["Beside published values"]
    assert cells.count("not comparable: ours is partial") == 3  # RVD twice, IVRNN
    assert "vortex-ramvid (smoke-lbm-partial)" in cells
    for words in ("6 windows instead of 128", "a value of the RVD paper", "one sample"):
        assert words in told.text


def test_like_results_share_a_section_and_unlike_ones_do_not(tmp_path):
    plain = {"leave_out": NO_PICTURES}
    a, b = write_result(tmp_path / "a", **plain), write_result(tmp_path / "b", seed=3, error=9.0, **plain)
    c = write_result(tmp_path / "c", model="c", settings={"name": "smoke-bounce"}, **plain)
    told = page(tmp_path, a, c, b)
    sections = [text for text in told.headings if "under" in text]
    assert sections == ["Results under smoke-lbm", "c under smoke-bounce"]
    assert (
        "vortex-ramvid, seed 3 minus vortex-ramvid, seed 0" in told.tables["Models beside each other, paired by window"]
    )


def test_models_that_draw_otherwise_share_a_section_which_says_so(tmp_path):
    plain = {"leave_out": NO_PICTURES}
    a = write_result(tmp_path / "a", model_deviations=["steps 2 instead of 1000", "rounded"], **plain)
    b = write_result(tmp_path / "b", model="persistence", error=30.0, **plain)
    told = page(tmp_path, a, b)
    assert told.headings[0] == "Results under smoke-lbm-partial"
    cells = told.tables["Means over windows and frames"]
    assert cells[:3] == ["vortex-ramvid", "persistence", "analog-8"]  # no persistence twice
    assert cells[-2:] == ["the model differs from the protocol", "steps 2 instead of 1000; rounded"]
    assert "vortex-ramvid: steps 2 instead of 1000; rounded" in told.text
    alone = page(tmp_path / "alone", a)
    assert "steps 2 instead of 1000\n" in alone.text and "the model differs" not in alone.text


def test_what_must_be_said_of_sets_stands_once_and_is_referred_to(tmp_path):
    folder = write_result(tmp_path / "a", leave_out=NO_PICTURES)
    told = json.loads((folder / "result.json").read_text())
    model, still = told["cases"][0]["forecasts"][:2]
    figure = model["sets"]["rf3d_motion"]
    other = {**figure, "label": "rf3d-v1 appearance"}
    model["sets"] = {"rf3d_motion": {**figure, "note": "too few"}, "rf3d_appearance": {**other, "note": "too few"}}
    still["sets"] = {"rf3d_motion": {**figure, "note": "huge"}, "rf3d_appearance": {**other, "note": "too few"}}
    (folder / "result.json").write_text(json.dumps(told))
    made = page(tmp_path, folder)
    cells = made.tables["Sets of clips: 512 real, 512 judged"]
    assert cells[3:9] == ["rf3d-v1 motion\u00a0↓", "0.42", "0.4 to 0.44 [1]", "0.42", "0.4 to 0.44 [2]", "0.05"]
    assert cells[9] == "rf3d-v1 appearance\u00a0↓ [1]" and "[" not in "".join(cells[10:])
    assert made.html.count("<li>too few.</li><li>huge.</li>") == 1
    for words in ("half as many each", "about twice as high", "conservative near the floor"):
        assert words in made.text


@pytest.mark.parametrize(
    ("kept", "heading"),
    [
        ("shown", "The forecasts themselves"),
        ("by_frame", "Frame by frame"),
        ("ranks", "Does the forecast know how sure it is?"),
        ("spread_skill", "Does the forecast know how sure it is?"),
    ],
)
def test_a_result_with_some_pictures_shows_those(tmp_path, kept, heading):
    told = page(tmp_path, write_result(tmp_path / "a", leave_out=[one for one in NO_PICTURES if one != kept]))
    assert told.headings[-1] == heading and told.open == []
    assert ("there are no strips" in told.text) == (kept != "shown")


@pytest.mark.parametrize("absent", ["sets", "windows", "simple"])
def test_a_result_without_some_figures_shows_the_others(tmp_path, absent):
    plain = write_result(tmp_path / "a", leave_out=[*NO_PICTURES, absent])
    told = page(tmp_path, plain, write_result(tmp_path / "b", seed=1, leave_out=NO_PICTURES))
    assert "Means over windows and frames" in told.tables and told.open == []
    assert ("Models beside each other, paired by window" in told.tables) == (absent != "windows")
    alone = page(tmp_path, plain)
    assert any(caption.startswith("Sets of clips") for caption in alone.tables) == (absent != "sets")
    assert ("vortex-ramvid minus the simple forecasts, paired by window" in alone.tables) == (absent != "simple")


def test_figures_of_sets_alone_make_a_page(tmp_path):
    folder = write_result(tmp_path / "a", leave_out=[*NO_PICTURES, "simple", "windows"], published=PUBLISHED)
    told = json.loads((folder / "result.json").read_text())
    forecast = told["cases"][0]["forecasts"][0]
    told["cases"][0]["forecasts"] = [{key: forecast[key] for key in ("name", "kind", "sets")}]
    forecast["sets"]["rf3d_motion"] |= {"low": None, "high": None, "floor": None}
    told["data"] = {"dir": "data"}
    (folder / "result.json").write_text(json.dumps(told))
    made = page(tmp_path, folder)
    assert made.tables["Sets of clips: 512 real, 512 judged"][2:] == ["rf3d-v1 motion\u00a0↓", "0.42", "–"]
    assert "not measured" in made.tables["Beside published values"]


def test_clips_without_truth_or_given_frames_are_shown(tmp_path):
    folder = write_result(tmp_path / "a", known=(), windows=1, units=1, leave_out=NO_PICTURES[1:])
    for truth in folder.rglob("truth.npz"):
        truth.unlink()
    told = page(tmp_path, folder)
    assert "Where the forecasts are wrong" not in told.headings and "The forecasts themselves" in told.headings


def test_a_model_that_loses_is_said_to_be_worse(tmp_path):
    told = page(tmp_path, write_result(tmp_path / "a", error=14.0, leave_out=NO_PICTURES))
    assert "better than 1 of 2 simple forecasts by paired 95 % intervals; worse than analog-8." in told.text


def test_generated_clips_have_no_truth_but_stand_beside_real_ones(tmp_path):
    folder = write_result(
        tmp_path / "a", known=(), windows=1, units=1, settings={"task": "generate"}, leave_out=["simple"]
    )
    result = json.loads((folder / "result.json").read_text())
    curves_told = result["cases"][0]["forecasts"][0]["by_frame"]
    curves_told.clear()
    curves_told |= {"variance": {"frames": [0, 1], "mean": [1.0, 2.0]}}
    curves_told |= {"variance_of_real": {"frames": [0, 1, 2], "mean": [3.0, 4.0, None]}}
    (folder / "result.json").write_text(json.dumps(result))
    told = page(tmp_path, folder)
    assert "Where the forecasts are wrong" not in told.headings
    spoken = [attributes.get("alt", "") for _, attributes in told.media]
    assert any("a real clip" in text for text in spoken) and not any("truth," in text for text in spoken)
    assert [text for text in spoken if "variance" in text] == [
        "Lines of variance over frames 0 to 1: vortex-ramvid from 1 to 2; real clips from 3 to 4."
    ]


def test_deviations_that_hold_in_every_case_are_said_once(tmp_path):
    names = ["2 → 4", "2 → 4 (1)"]
    told = [f"2 samples instead of 8 ({name})" for name in names] + ["3 windows instead of 8 (2 → 4)"]
    made = page(tmp_path, write_result(tmp_path / "a", cases=2, deviations=told, leave_out=NO_PICTURES))
    assert "2 samples instead of 8 (in every case)" in made.text and "3 windows instead of 8 (2 → 4)" in made.text
    assert made.html.count("<li>2 samples") == 1


def test_a_page_of_large_frames_stays_small(tmp_path):
    result = write_result(tmp_path / "a", side=16, channels=3, cases=2, leave_out=["simple"])
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 6, 3, 300, 300), generator=rng, dtype=torch.uint8)  # the worst there is
    first = next((result / "shown").iterdir())
    for path in (first / "0").glob("*.npz"):
        frames = noise[0] if path.stem == "truth" else noise
        write_array(path, frames, fps=10.0, value_range=None, generated_by={}, overwrite=True)
    for other in [p for p in result.glob("shown/*/*") if p != first / "0"]:
        shutil.rmtree(other)
        shutil.copytree(first / "0", other)
    told = page(tmp_path, result)
    assert len(told.html) < 2_000_000 and "Left out to keep this page small" in told.text
    assert told.headings.count("Frame by frame") == 2  # the curves of every case are there


def test_float_fields_are_shown_and_mapped(tmp_path):
    folder = write_result(tmp_path / "a", windows=1, units=1, leave_out=["simple", *NO_PICTURES[1:]])
    for path in folder.rglob("*.npz"):
        shape = (6, 1, 16, 16) if path.stem == "truth" else (4, 6, 1, 16, 16)
        field = torch.linspace(-0.3, 0.3, 6 * 256).reshape(6, 1, 16, 16).expand(shape)
        write_array(path, field, fps=None, value_range=(-0.4, 0.4), generated_by={}, overwrite=True)
    told = page(tmp_path, folder)
    maps = next(a for _, a in told.media if a.get("alt", "").startswith("Maps"))
    assert "vortex-ramvid 0" in maps["alt"]  # it is the truth


def test_the_same_results_give_the_same_page(whole, tmp_path):
    assert page(tmp_path, whole[0]).html == whole[1].html


def write_run(folder, *, steps=30):
    folder.mkdir()
    lines = [f"{i},{1 / i},{1.2 / i if i % 10 == 0 else ''}" for i in range(1, steps + 1)]
    (folder / "metrics.csv").write_text("\n".join(["step,loss,validation_loss", *lines]) + "\n")
    (folder / "config.yaml").write_text("system: ramvid\ndata:\n  dir: clips\n  size: 32\n  channels: 1\n")
    (folder / "log.txt").write_text("2026-01-01 00:00:00 done: <30> steps\n")
    return folder


def test_a_run_alone_shows_its_curves_settings_and_log(whole, tmp_path):
    run = write_run(tmp_path / "flows")
    preview = run / "samples" / "step_00000030"
    preview.mkdir(parents=True)
    (preview / "grid.mp4").write_bytes(decoded(whole[1].media[-1][1]["src"])[1])
    told = page(tmp_path, run)
    assert told.headings == ["Training of flows", "Training curves", "What it makes of held-out clips"]
    assert "0.0333 (step 30)" in told.text and "0.04 (step 30)" in told.text
    assert "done: <30> steps" in told.text and "system: ramvid" in told.text
    assert [tag for tag, _ in told.media] == ["img", "video"]


def test_a_run_that_has_just_begun_says_that_there_is_nothing_yet(tmp_path):
    run = write_run(tmp_path / "new", steps=1)
    (run / "config.yaml").unlink()
    assert "There is nothing to draw yet" in page(tmp_path, run).text


def test_what_is_neither_result_nor_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither a result .* nor a training run"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(ValueError, match="nothing to report"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"name it \.html"):
        write_report([write_result(tmp_path / "a", leave_out=NO_PICTURES)], tmp_path / "r.pdf")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(FileExistsError):
        write_report([tmp_path / "a"], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "mine"


def test_curves_follow_the_paper_they_stand_on_and_hold_their_names():
    svg = curves([Curve("a & $b$", [0, 1], [1.0, 2.0], [0.5, 1.0], [1.5, 3.0])], x="frame", y="CRPS").decode()
    assert "prefers-color-scheme:dark" in svg and "#0a0b" not in svg and "CRPS" in svg
    both = curves([Curve("a & $b$", [0, 1], [1.0, 2.0]), Curve("c", [0, 1], [2.0, 1.0], quiet=True)], x="x", y="y")
    assert "a &amp; $b$" in both.decode() and both == curves(
        [Curve("a & $b$", [0, 1], [1.0, 2.0]), Curve("c", [0, 1], [2.0, 1.0], quiet=True)], x="x", y="y"
    )


def test_long_curves_are_thinned_to_their_means(tmp_path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,loss\n" + "\n".join(f"{i},{1 + i % 2}" for i in range(1, 20_001)))
    svg = training_curves(metrics)
    assert len(svg) < 60_000 and rank_bars([1, 2, 3]).startswith(b"<?xml")
