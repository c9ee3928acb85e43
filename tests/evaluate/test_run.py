"""Windows of a protocol, scores of a model on them, beside the simple forecasts."""

import json

import numpy as np
import pytest

from framecast.evaluate.baselines import baseline
from framecast.evaluate.protocols import PROTOCOLS, protocol
from framecast.evaluate.run import deviations, judge, result, simple_forecasts
from framecast.evaluate.windows import Windows, windows
from tests.evaluate.flows import wave, write_flows

SMOKE = PROTOCOLS["smoke-lbm"]
CASE = SMOKE.cases[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_flows(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def cut(folder):
    return windows(SMOKE, CASE, SMOKE.paired, folder)


def test_windows_are_a_quarter_period_apart_and_flows_take_turns(cut):
    assert len(cut) == SMOKE.paired.windows == 128
    assert cut.units[0] != cut.units[1] and cut.units[0] == cut.units[32]
    assert np.allclose(cut.clips[33].frames, wave(1, 25)[2:18])  # period 9.06 frames: the second starts at 2


def test_persistence_scores_its_error_and_only_unknown_frames_count(cut):
    some = cut.first(4)
    held = judge(baseline("persistence"), some, CASE.known, samples=1)
    clip = some.clips[0].frames.numpy()
    grey = np.clip((clip + 1) * 127.5, 0, 255).round()
    assert held.values["crps_fair"][0] == pytest.approx(np.abs(grey[4:] - grey[3]).mean((1, 2, 3)), abs=0.02)
    blended = judge(baseline("linear-blend"), some, [i for i in range(16) if i != 7], samples=1)
    assert blended.values["crps"].shape == (4, 1)


def test_analog_finds_the_flow_it_knows(cut, folder, tmp_path):
    known = write_flows(tmp_path / "known", flows=32)
    told = {s.name: s for s in simple_forecasts(cut.first(3), CASE.known, reference=known / "test")}
    assert told["analog"].windows("crps").max() < 0.01 < told["persistence"].windows("crps").min()
    less = told["analog"].less(told["persistence"])
    assert less.excludes_zero and less.mean < 0
    assert told["analog-8"].samples == 8 and "linear-blend" not in told


def test_no_reference_leaves_the_analog_out(cut):
    names = {s.name for s in simple_forecasts(cut.first(1), CASE.known, reference=None, besides="persistence")}
    assert names == {"mean-frame", "linear-extrapolation", "motion-compensated"}


def test_paired_interval_is_narrower_than_the_two_apart(cut):
    a = judge(baseline("persistence"), cut, CASE.known, samples=1)
    b = judge(baseline("mean-frame"), cut, CASE.known, samples=1)
    apart, paired = a.interval("crps"), a.less(b, "crps")
    assert paired.mean == pytest.approx(apart.mean - b.interval("crps").mean)
    assert paired.units == 32
    assert 0 < paired.high - paired.low < sum(x.high - x.low for x in (apart, b.interval("crps")))


def test_scores_of_different_windows_are_not_compared(cut):
    a = judge(baseline("persistence"), cut.first(2), CASE.known, samples=1)
    b = judge(baseline("persistence"), Windows(cut.clips[2:4], cut.units[2:4]), CASE.known, samples=1)
    for other in (b, a.first(1)):
        with pytest.raises(ValueError, match="have seen different windows"):
            a.less(other)


def test_fewer_windows_make_the_name_partial(cut):
    scores = judge(baseline("persistence"), cut.first(2), CASE.known, samples=8)
    told = result(SMOKE, scores, [])
    assert told["protocol"] == "smoke-lbm-partial" and told["deviations"] == ["2 windows instead of 128"]
    assert json.loads(json.dumps(told))["model"] == told["model"]
    whole = judge(baseline("persistence"), cut, CASE.known, samples=8)
    assert deviations(SMOKE, whole) == [] and result(SMOKE, whole, [])["protocol"] == "smoke-lbm"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"flows": 31}, "holds 31 of the 32 test flows"),
        ({"set_name": "vortex16"}, "is not a test flow of vortex32"),
        ({"seed": 3}, "is not a test flow of vortex32 with seed 0"),
        ({"frames": 18}, "has 18 frames"),
    ],
)
def test_a_folder_that_is_not_the_set_is_refused_with_the_command_that_makes_it(tmp_path, made, says):
    folder = write_flows(tmp_path / "set", **made)
    with pytest.raises(ValueError, match=f"{says}.*framecast data simulate vortex32"):
        windows(SMOKE, CASE, SMOKE.paired, folder)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ValueError, match="smoke-lbm"):
        protocol("smoke-lmb")
