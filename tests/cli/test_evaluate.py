"""evaluate and samplers from the command line: what they cost, what they write, what they refuse."""

import json

import pytest

from tests.cli.conftest import bundle
from tests.evaluate.flows import write_flows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_flows(tmp_path_factory.mktemp("set"))


def test_evaluate_writes_its_figures_with_the_simple_forecasts_beside(cast, folder, tmp_path):
    ran = cast("evaluate", "persistence", "--data", folder, "--windows", 3)
    assert ran.code == 0, ran.err
    assert "smoke-lbm-partial, 3 windows instead of 128" in ran.out and "persistence minus this" in ran.out
    told = json.loads((tmp_path / "out" / "smoke-lbm-persistence" / "result.json").read_text())
    assert "persistence" not in told["simple_forecasts"] and "analog" in told["simple_forecasts"]
    assert told["settings"]["cases"][0]["known"] == [0, 1, 2, 3] and told["model"]["crps_fair"]["units"] == 3
    assert cast("evaluate", "persistence", "--data", folder, "--windows", 1, "--json").json["out"].endswith("-2")


def test_a_dry_run_tells_the_cost_and_writes_nothing(cast, folder, tmp_path, monkeypatch, tmp_path_factory):
    ran = cast("evaluate", "persistence", "--data", folder, "--dry-run", "--json")
    assert ran.json == {"dry_run": True, "windows": 128, "samples": 8, "network_calls": 0}
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(tmp_path_factory.mktemp("bundled")))
    ran = cast("samplers", "vortex-ramvid", "--data", folder, "--dry-run")
    # 16 × 4 × 3 × (5 + 10 + 20 + 50) + 8 × 4 × 2 × (100 + 250) + 8 × 2 × 1000
    assert ran.code == 0 and "54720 network calls" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["evaluate", "persistence", "--windows", "500"], 2, "--windows is 500; smoke-lbm has 128."),
        (
            ["evaluate", "persistence", "--protocol", "smoke"],
            1,
            "there is no protocol 'smoke'. Did you mean smoke-lbm?",
        ),
        (["samplers", "persistence"], 1, "persistence has no sampler"),
    ],
)
def test_bad_words_are_refused_in_a_sentence(cast, folder, words, code, says):
    ran = cast(*words, "--data", folder)
    assert ran.code == code and says in ran.err and "bug" not in ran.err


def test_a_missing_set_is_told_with_the_command_that_makes_it(cast):
    ran = cast("evaluate", "persistence")
    assert ran.code == 1 and "framecast data simulate vortex32 data/vortex32" in ran.err


def test_a_stopped_study_says_that_it_goes_on(cast, folder, tmp_path_factory, monkeypatch):
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(tmp_path_factory.mktemp("bundled")))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("framecast.evaluate.samplers.judge", stopped)
    ran = cast("samplers", "vortex-ramvid", "--data", folder)
    assert ran.code == 130 and "the same command goes on" in ran.err
