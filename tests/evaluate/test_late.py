"""Late frames beside those of the truth: known changes give known figures, and what is not there is not told."""

import base64
import io
import json
import math

import av
import numpy as np
import pytest
import torch

from framecast.evaluate import report_pictures
from framecast.evaluate.baselines import baseline
from framecast.evaluate.late import LATE, late
from framecast.evaluate.plan import Plan
from framecast.evaluate.protocols import protocol
from framecast.evaluate.report_pictures import Shelf, further, headline, windows
from framecast.evaluate.report_tables import Judged
from framecast.evaluate.result import result, write
from framecast.evaluate.result_folder import read_result
from framecast.evaluate.run import Scores, evaluate
from framecast.evaluate.samples import Computed
from tests.evaluate.flows import write_flows


def eight_bit(frames):
    return (127.5 + 100 * frames).round().clamp(0, 255).to(torch.uint8)


def flow(frames=200, *, period=9.5, start=0.0, height=1.0):
    """A travelling pattern with waves of 32, 8 and 3.2 pixels."""
    t, x = torch.arange(frames)[:, None, None] + start, torch.arange(32.0)
    y = torch.arange(32.0)[:, None]
    turn = 2 * torch.pi
    parts = [(0.5, 1), (0.3, 4), (0.1, 10)]
    return height * sum(a * torch.sin(turn * k * (x + 0.3 * y) / 32 - turn * t / period) for a, k in parts)[:, None]


def figures(made, truth):
    return {name: value.tolist() for name, value in late(eight_bit(made), eight_bit(truth)).items()}


def test_other_phase_costs_nothing():
    told = figures(torch.stack([flow(start=3.7), flow(start=6.1)]), flow())
    for name in ("late_variance", "late_spectrum", "late_period", "late_recurring", "late_power_2_4"):
        assert told[name] == [pytest.approx(1, abs=0.02)], name


def test_contrast_is_squared_in_the_variance_and_in_every_scale():
    told = figures(flow(height=0.5)[None], flow())
    assert told["late_variance"] == [pytest.approx(0.25, rel=0.01)]
    assert told["late_power_16_32"] == [pytest.approx(0.25, rel=0.01)]
    assert told["late_power_2_4"] == [pytest.approx(0.25, rel=0.05)]


def test_spectrum_tells_too_much_and_too_little_alike():
    """Power off by 1.44 in all scales, up or down."""
    for height in (1 / 1.2, 1.2):
        told = figures(flow(height=height * 0.8)[None], flow(height=0.8))
        assert told["late_spectrum"] == [pytest.approx(1.44, rel=0.03)]


def test_noise_shows_in_the_finest_scale_first():
    noise = 0.1 * torch.randn(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    told = figures((flow() + noise)[None], flow())
    assert told["late_variance"][0] < 1.1 < 1.5 < told["late_power_2_4"][0]
    assert told["late_power_16_32"] == [pytest.approx(1, abs=0.05)]
    assert told["drift_fine"][0] == pytest.approx(told["drift_fine"][-1], rel=0.2) and len(told["drift_fine"]) == 200


def test_only_frames_from_the_lead_on_count():
    made = flow()
    made[: LATE - 1] = 0.9
    assert figures(made[None], flow())["late_variance"] == [1.0]
    made[LATE - 1] = 0.9
    assert figures(made[None], flow())["late_variance"][0] < 1.0


def test_period_is_of_the_samples_that_recur():
    still = flow()[:1].expand(200, -1, -1, -1)
    told = figures(torch.stack([flow(period=9.5 * 1.1), flow(period=9.5 * 1.3), still]), flow())
    assert told["late_period"] == [pytest.approx(1.2, abs=0.01)] and told["late_recurring"] == [pytest.approx(2 / 3)]


def test_without_a_period_of_the_truth_none_is_told():
    told = figures(flow()[None], flow()[:1].expand(200, -1, -1, -1))
    assert math.isnan(told["late_period"][0]) and math.isnan(told["late_recurring"][0])


@pytest.mark.parametrize(("side", "octaves"), [(2, 1), (3, 1), (12, 3), (20, 4), (33, 4)])
def test_octaves_hold_every_scale(side, octaves):
    rng = torch.Generator().manual_seed(side)
    truth = torch.randint(0, 256, (150, 1, side, side), generator=rng, dtype=torch.uint8)
    told = late(truth[None] // 2, truth)
    ratios = [value.item() for name, value in told.items() if name.startswith("late_power_")]
    assert ratios == [pytest.approx(0.25, rel=0.1)] * octaves


@pytest.mark.parametrize(("length", "octave"), [(32, "16_32"), (16, "8_16"), (8, "4_8"), (4, "2_4"), (2, "2_4")])
def test_a_wave_is_power_of_its_own_octave(length, octave):
    x = torch.arange(32.0).expand(200, 1, 32, 32)
    truth = torch.randn(200, 1, 32, 32, generator=torch.Generator().manual_seed(0)) / 10
    told = figures((truth + 0.4 * torch.cos(2 * torch.pi * x / length))[None], truth)
    powers = {name.removeprefix("late_power_"): value[0] for name, value in told.items() if "power" in name}
    assert max(powers, key=lambda name: powers[name]) == octave
    assert [value for name, value in powers.items() if name != octave] == [pytest.approx(1, abs=0.05)] * 3


def test_short_forecasts_have_no_late_frames():
    assert late(eight_bit(flow(120))[None], eight_bit(flow(120))) == {}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Persistence on one flow: the result, and its folder."""
    data, out = write_flows(tmp_path_factory.mktemp("data"), frames=204, train=1), tmp_path_factory.mktemp("out")
    plan = Plan(rules=protocol("smoke-lbm-200"), data=data, windows=1, samples=1, shown=out / "shown")
    source = Computed(baseline("persistence"))
    cases = evaluate(plan, source)
    told = result(plan, source, cases, device=torch.device("cpu"))
    write(out, told, cases)
    return told, out


def test_what_never_recurs_has_no_period_in_the_result(judged):
    told, out = judged
    json.dumps(told, allow_nan=False)
    still, *others = told["cases"][0]["forecasts"]
    assert still["scores"]["late_period"]["mean"] is None and still["scores"]["late_period"]["count"] == 0
    assert still["scores"]["late_recurring"]["mean"] == 0
    recurring = {one["name"]: one for one in others if one["scores"]["late_period"]["count"] == 1}
    assert recurring["analog"]["scores"]["late_period"]["mean"] == pytest.approx(1, abs=0.05)
    assert read_result(out).windows("4 → 200", "persistence").values["late_period"] == {}


def test_report_begins_with_the_drift_of_long_forecasts(judged):
    one = Judged("persistence", read_result(judged[1]), judged[0]["cases"][0])
    titles = [picture.caption.split(" by frame")[0] for picture in headline([one], Shelf())]
    assert titles == ["1 / CRPS", "drift of the variance", "drift of the finest scale"]
    assert not any("finest" in picture.caption for picture in further([one], Shelf()))


def test_long_videos_show_every_second_frame(judged):
    one = Judged("persistence", read_result(judged[1]), judged[0]["cases"][0])
    _, films = windows([one], Shelf(), count=1)
    assert films[0].caption.endswith("playing, one in 2 frames.")
    with av.open(io.BytesIO(base64.b64decode(films[0].uri.split(",")[1]))) as film:
        assert film.streams.video[0].frames == 102


def test_axis_of_ratios_leaves_out_what_explodes(judged, monkeypatch):
    """Linear extrapolation grows beyond 3; persistence stays near 1."""
    tops = []
    monkeypatch.setattr(report_pictures, "curves", lambda drawn, **how: tops.append(how["top"]) or b"")
    one = Judged("persistence", read_result(judged[1]), judged[0]["cases"][0])
    headline([one], Shelf())
    assert max(v for f in one.case["forecasts"] for v in f["by_frame"]["drift_variance"]["mean"]) > 3
    assert tops[1] == pytest.approx(2, abs=0.2)


def test_clips_that_are_too_short_are_told_how_to_make_longer(tmp_path):
    plan = Plan(rules=protocol("smoke-lbm-200"), data=write_flows(tmp_path / "flows", frames=16))
    with pytest.raises(ValueError, match=r"16 frames, too few .* --frames 204, and give --data \S*flows-204"):
        evaluate(plan, Computed(baseline("persistence")))


def test_windows_without_a_period_are_left_out_of_means_and_no_others_are():
    values = {name: np.ones((9, 1)) for name in ("late_period", "crps_fair")}
    for one in values.values():
        one[4] = math.nan
    scores = Scores(name="mine", units=[f"flow {i}" for i in range(9)], values=values, samples=1, seconds=0.0,
                    record={}, motion=np.arange(9.0))  # fmt: skip
    assert scores.interval("late_period").mean == 1 and math.isnan(scores.interval("crps_fair").mean)
    assert scores.by_motion()["late_period"] == [1, 1, 1]
    values["late_period"][3:6] = math.nan
    assert math.isnan(scores.by_motion()["late_period"][1])
