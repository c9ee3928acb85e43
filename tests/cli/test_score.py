"""score: what it prints and writes, what it refuses."""

import csv
import json

import pytest

import framecast
from framecast.checkpoint import PartInfo, build_system, save_model
from framecast.experiment import VideoSpec, to_plain
from tests.cli.conftest import make_clip
from tests.tiny import rvd, video_vqvae


def test_score_writes_curve_table_and_record(cast, model_folder, clip, tmp_path):
    ran = cast("score", model_folder, clip, "--context", 2, "--levels", 5)
    assert ran.code == 0, ran.err
    out = tmp_path / "out" / "push"
    assert {path.name for path in out.iterdir()} == {"score.json", "score.csv", "score.png"}
    record = json.loads((out / "score.json").read_text())
    assert record["frames"] == list(range(2, 12)) and record["known_frames"] == [0, 1]
    assert (record["levels"], record["most_levels"], record["bin"]) == (5, 50, 1)
    assert "upper bound" in record["meaning"] and record["sha256"]
    with open(out / "score.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == record["frames"]
    assert [float(row["bits_per_dimension"]) for row in rows] == record["bits"]
    assert f"{record['bits_per_dimension']:.2f}" in ran.out and "lower is likelier" in ran.out


def test_score_agrees_with_python_and_with_its_seed(cast, model_folder, clip):
    told = [cast("score", model_folder, clip, "--levels", 3, "--seed", s, "--json").json for s in (5, 5, 6)]
    first, again, other = (t["results"][0]["bits"] for t in told)
    model = framecast.load(model_folder, device="cpu")
    found = model.score(framecast.read(clip, like=model), levels=3, seed=5)
    assert first == again == found.bits.tolist() != other


def test_all_levels_are_all_there_are(cast, model_folder, tmp_path):
    short = make_clip(tmp_path / "short.npz", frames=3)
    result = cast("score", model_folder, short, "--levels", "all", "--json").json["results"][0]
    assert result["levels"] == result["most_levels"] == 50


def test_scores_of_several_clips_lie_side_by_side(cast, model_folder, tmp_path):
    paths = [make_clip(tmp_path / f"{name}.npz", frames=4) for name in ("a", "b")]
    assert cast("score", model_folder, *paths, "--levels", 2, "--out", "mine").code == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["a", "b"]
    ran = cast("score", model_folder, paths[0], "--levels", 2, "--out", "mine/a")
    assert ran.code == 1 and "nothing in it is overwritten" in ran.err


def test_all_clips_are_looked_at_before_the_first_is_scored(cast, model_folder, clip, tmp_path):
    short = make_clip(tmp_path / "short.npz", frames=2)
    for other, says in (("missing.npz", "missing.npz: there is no such file"), (short, "the clip has 2 frames: leave")):
        ran = cast("score", model_folder, clip, other, "--levels", 2, "--context", 2)
        assert ran.code == 1 and says in ran.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--levels", "51"], 1, "levels is 51, but tiny scores by at most 50 noise levels"),
        (["--levels", "most"], 2, "'most' is not a whole number above 0"),
        (["--levels", "0"], 2, "'0' is not a whole number above 0"),
        (["--context", "12"], 1, "push.npz: context is 12, the clip has 12 frames: leave at least one to score"),
        (["--context", "-1"], 2, "'-1' is not a number of frames, from 0 on"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(cast, model_folder, clip, tmp_path, words, code, says):
    ran = cast("score", model_folder, clip, *words)
    assert ran.code == code and says in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_score_says_so_and_who_can(cast, clip):
    ran = cast("score", "persistence", clip)
    assert ran.code == 1 and "error: persistence cannot score: it gives no likelihood. Systems that score:" in ran.err


def test_first_frame_is_scored_unless_the_model_needs_it(cast, model_folder, clip, tmp_path):
    experiment = rvd()
    video = VideoSpec(channels=1, height=8, width=8, clip_frames=5, fps=10.0)
    system = build_system("rvd", to_plain(experiment.model), video, to_plain(experiment.sample))
    parts = {name: PartInfo(stage="forecast", step=1, weights="raw") for name in system.parts()}
    forward = save_model(tmp_path / "forward", system, parts=parts, provenance={})
    for model, first in ((model_folder, 0), (forward, 1)):
        told = cast("score", model, clip, "--levels", 2, "--out", f"from{first}", "--json").json["results"][0]
        assert told["frames"] == list(range(first, 12)) and told["known_frames"] == list(range(first))
    assert told["windows"] == [[i, i] for i in range(1, 12)]
    assert cast("score", model_folder, clip, "--levels", 2, "--context", 0).code == 0
    ran = cast("score", forward, clip, "--context", 0)
    assert ran.code == 1 and "push.npz: context is 0, but forward needs 1 or more given frames" in ran.err


def test_help_says_what_the_number_is_and_is_not(cast):
    text = " ".join(cast("score", "--help").out.split())
    for words in ("upper bound", "bits per dimension", "lower is likelier", "float clips", "does not tell how well"):
        assert words in text


# ---- codes


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    """An untrained model of codes: windows of 8 frames, of which 4 are given; causal."""
    experiment = video_vqvae()
    video = VideoSpec(channels=1, height=8, width=8, clip_frames=8, fps=10.0)
    system = build_system("video_vqvae", to_plain(experiment.model), video, to_plain(experiment.sample))
    parts = {part: PartInfo(stage=part, step=1, weights="raw") for part in system.parts()}
    return save_model(tmp_path_factory.mktemp("models") / "coder", system, parts=parts, provenance={})


def test_score_of_codes_tells_levels_and_what_it_is(cast, coder, clip, tmp_path):
    ran = cast("score", coder, clip)
    assert ran.code == 0, ran.err
    out = tmp_path / "out" / "push"
    names = {"score.json", "score.csv", "score.png", "score.npz", "score_map.png"}
    assert {path.name for path in out.iterdir()} == names
    record = json.loads((out / "score.json").read_text())
    assert record["frames"] == list(range(4, 12)) and record["bits_per_clip"] > 0
    head, row = ran.out.splitlines()[:2]
    for words in ("given", "bits per code", "top", "bottom", "bits of all codes", "least likely frame"):
        assert words in head
    assert f"{record['bits_per_clip']:.2f}" in row and f"{record['bits_per_code']:.2f}" in row
    assert f"row {max(record['least_likely_codes'].values(), key=lambda code: code['bits'])['row']}, column" in row
    assert "No likelihood of pixels" in ran.out and "a code costs 4 bits" in ran.out
    assert "Upper bounds" not in ran.out and "note: bits of a bottom code" in ran.err


def test_codes_have_no_noise_levels(cast, coder, clip, tmp_path):
    ran = cast("score", coder, clip, "--levels", 5)
    assert ran.code == 1 and "levels is 5, but coder scores codes, exactly, and has no noise levels" in ran.err
    ran = cast("score", coder, clip, "--context", 5)
    assert ran.code == 1 and "push.npz: context is 5, which leaves 7 of 12 frames to score" in ran.err
    assert not (tmp_path / "out").exists()
