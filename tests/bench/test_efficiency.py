"""What clips cost, multiplied out of passes, and the largest batch, by tiny networks in this process."""

import dataclasses

import pytest
import torch

from framecast.bench import efficiency, passes
from framecast.bench.alone import alone
from framecast.bench.efficiency import Efficiency, largest_batch, measured, paper, table_5
from framecast.bench.measure import operations
from framecast.bench.network import untrained
from framecast.draws import draws
from framecast.generate import complete
from framecast.systems import SYSTEMS, resolve
from framecast.task import Task

SMALL = {"data.size": 8, "data.channels": 1}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Presets are the tiny experiments of the tests, `pvdm/pvdm` and so on, and measurements run in this process."""
    for name in SYSTEMS:
        monkeypatch.setitem(SYSTEMS, name, dataclasses.replace(SYSTEMS[name], presets="tests.tiny:TINY"))
    monkeypatch.setattr(efficiency, "alone", lambda target, arguments, threads=None: resolve(target)(**arguments))
    monkeypatch.setattr(passes, "_confine", lambda where: None)


def drawn(preset, **how):
    wanted = {"steps": [None], "frames": [6, 14], "verb": "generate", "device": "cpu", "repeats": 1, **how}
    return passes.drawn(preset=preset, changes=SMALL, **wanted)


@pytest.mark.parametrize(
    ("preset", "known"), [("pvdm/pvdm", 0), ("pvdm/pvdm", 4), ("ramvid/ramvid", 0), ("rvd/rvd", 4)]
)
def test_operations_multiplied_out_are_those_of_the_whole_clip(preset, known):
    told = drawn(preset, verb="predict" if known else "generate")
    system = untrained(preset, changes=SMALL).system.eval()
    for clip in told["clips"]:
        task = Task("clip", (True,) * known + (False,) * clip["frames"])
        given = torch.zeros(1, known, 1, 8, 8)
        whole = operations(lambda: complete(system, given, task, rng=draws(0, [0])))  # noqa: B023
        assert clip["operations"] == pytest.approx(whole, rel=0.001)
        assert clip["seconds"] > 0 and clip["calls"] > 0
    assert told["given"] == known


def test_steps_are_multiplied_and_not_measured():
    told = drawn("pvdm/pvdm", steps=["3/2", "300/200"], frames=[8])
    few, many = told["clips"]
    assert (few["calls"], many["calls"]) == (5, 500)
    first, later = told["passes"]
    assert many["operations"] - few["operations"] == 297 * first["operations"] + 198 * later["operations"]
    assert many["seconds"] - few["seconds"] == pytest.approx(297 * first["seconds"] + 198 * later["seconds"])
    assert many["memory"] == few["memory"]


def test_each_kind_of_window_is_measured_once():
    assert [one["what"] for one in drawn("pvdm/pvdm", frames=[4, 16])["passes"]] == [
        "4 frames",
        "4 frames, after a window",
    ]
    assert [one["what"] for one in drawn("pvdm/pvdm", frames=[8], verb="predict")["passes"]] == [
        "4 frames, given 4",
        "4 frames, after a window",
    ]


def test_what_is_done_once_in_a_window_is_the_codec_where_there_is_one():
    told = drawn("pvdm/pvdm", verb="predict")
    codec, (first, later) = told["codec"], told["passes"]
    assert later["operations_once"] == codec["decode"]["operations"]
    assert first["operations_once"] == codec["encode"]["operations"] + codec["decode"]["operations"]
    assert drawn("ramvid/ramvid")["codec"] == {}


def test_a_system_that_cannot_generate_predicts():
    assert drawn("rvd/rvd")["verb"] == "predict" and drawn("ramvid/ramvid")["verb"] == "generate"


def test_training_is_measured_in_every_turn(monkeypatch):
    turns = []
    stage = resolve("framecast.systems.pvdm.stages:AutoencoderStage")
    real = stage.loss
    monkeypatch.setattr(stage, "loss", lambda self, *a, turn, **k: turns.append(turn) or real(self, *a, turn=turn, **k))
    told = passes.trained(preset="pvdm/pvdm", changes=SMALL, stage="autoencoder", batch=2, device="cpu")
    assert turns == ["discriminators", "autoencoder"] * 2 and "batch 2" in told["case"]


def test_rows_hold_every_stage_and_all_lengths(monkeypatch):
    def made_up(target, arguments, threads=None):
        if target.endswith(":trained"):
            held = 500_000_000 + 100_000_000 * arguments["batch"]
            return {"memory": held, "seconds": 1.0, "case": "", "notes": []}
        clip = {"windows": 1, "seconds": 1.0, "operations": 1, "calls": 1, "memory": 1}
        pairs = [(steps or "3", count) for steps in arguments["steps"] for count in arguments["frames"]]
        clips = [clip | {"steps": steps, "frames": count} for steps, count in pairs]
        return {"verb": "generate", "given": 0, "parameters": 1, "passes": [], "codec": {}, "clips": clips}

    monkeypatch.setattr(efficiency, "alone", made_up)
    asked = Efficiency(presets=("pvdm/pvdm:2", "pvdm/pvdm"), size=8, channels=1, frames=(4, 8), memory=2.0)
    said = []
    rows = measured(asked, "pvdm/pvdm", said.append)
    assert [row["case"] for row in rows] == ["pvdm/pvdm:2", "pvdm/pvdm:3"]
    assert all(set(row["clips"]) == {"4", "8"} for row in rows)
    largest = {stage: found["largest"] for stage, found in rows[0]["training"].items()}
    assert largest == {"autoencoder": 15, "diffusion": 15}  # 0.5 GB, and 0.1 GB for each clip
    assert list(rows[0]["training"]["diffusion"]["memory"]) == [1, 2, 4]  # until a quarter is added
    assert any("diffusion: optimiser steps of batch 2" in line for line in said)


def test_a_batch_without_room_leaves_the_rest_to_be_told(monkeypatch):
    def full(target, arguments, threads=None):
        raise ValueError("trained: there is no memory left for it.")

    monkeypatch.setattr(efficiency, "alone", full)
    said = []
    found = efficiency._training(Efficiency(memory=2.0), "pvdm/pvdm", "diffusion", said.append)
    assert found["largest"] is None and found["memory"] == {} and "no memory left" in said[-1]


def test_largest_batch_is_where_the_line_meets_the_budget():
    assert largest_batch({1: 10, 2: 14}, 22.0) == 4 and largest_batch({1: 10, 2: 14}, 21.9) == 3
    assert largest_batch({1: 10, 2: 14}, 9.0) == 0
    assert largest_batch({1: 12, 2: 10, 4: 18}, 26.0) == 6  # of one clip other kernels may hold more
    assert largest_batch({1: 10}, 20.0) is None and largest_batch({}, 20.0) is None
    assert largest_batch({1: 10, 2: 9}, 20.0) is None


def test_the_papers_values_stand_beside_the_presets_they_are_of():
    small = paper("pvdm/sky-256-s", "100/20")
    assert small["seconds, 128 frames"] == 31.3 and small["training batch"] == 7
    assert paper("pvdm/ucf101-256-s", "50/20") == {} == paper("rvd/bair64", "1600")
    vdm, gpt = table_5()["VDM 100/20-s"], table_5()["VideoGPT"]
    ratios = [other["seconds, 16 frames"] / small["seconds, 16 frames"] for other in (vdm, gpt)]
    assert [round(ratio, 1) for ratio in ratios] == [14.3, 17.6]


def test_a_size_that_no_network_fits_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="multiples of 4"):
        passes.drawn(
            preset="pvdm/pvdm", changes={"data.size": 10}, steps=[None], frames=[4], verb="generate", device="cpu",
            repeats=1,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not passes._FREE.is_file(), reason="only Linux tells what memory is free")
def test_more_memory_than_is_free_is_refused_and_not_killed():
    with pytest.raises(ValueError, match="beyond: there is no memory left for it"):
        alone("tests.bench.heavy:beyond", {})
