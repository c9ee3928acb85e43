"""The command that sets systems side by side."""

import json

import pytest

from framecast.bench import efficiency
from framecast.bench.efficiency import Efficiency, main_presets
from framecast.systems import SYSTEMS, preset, resolve

ROW = {
    "case": "pvdm/ucf101-256-s:100/20", "verb": "generate", "given": 0, "parameters": 132_163_588,
    "clips": {"16": {"seconds": 75.1, "memory": 2.5e9, "operations": 3e13}},
    "passes": [
        {"what": "16 frames", "seconds": 0.5, "once": 9.0, "operations": 10**11, "operations_once": 0, "memory": 10**9}
    ],
    "codec": {}, "machine": {"processor": "P", "cores_used": 1, "cores": 2, "threads": 1, "memory_gb": 8},
    "versions": {"framecast": "0", "torch": "0", "python": "0"},
}  # fmt: skip


def test_small_systems_are_measured_and_written(cast, tmp_path):
    out = tmp_path / "rows.jsonl"
    words = ("rvd/vortex32:2", "--size", 16, "--channels", 1, "--frames", 1, "--repeats", 1, "--threads", 1)
    ran = cast("efficiency", *words, "--device", "cpu", "--out", out)
    assert ran.code == 0, ran.err
    assert "predicted from 4" in ran.out and "multiplied" in ran.out and "cannot generate" in ran.out
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["clips"]["1"]["calls"] == 4 and row["training"] == {} and row["machine"]["threads"] == 1


def test_presets_that_do_not_fit_are_named_and_left_out(cast, monkeypatch):
    monkeypatch.setattr("framecast.bench.passes._confine", lambda where: None)
    monkeypatch.setattr(efficiency, "alone", lambda target, arguments, threads: resolve(target)(**arguments))
    ran = cast("efficiency", "pvdm/vortex32", "--size", 30, "--frames", 16)
    assert ran.code == 1
    assert "pvdm/vortex32 is left out at 30×30: frames are 30x30 pixels" in ran.err
    assert "none of these can be measured" in ran.err


def test_paper_stands_beside_ours_at_its_size_only(cast, monkeypatch):
    def made_up(asked, name, note):
        values = efficiency.paper(name, "100/20") if asked.size == 256 else {}
        return [ROW | {"paper": values, "training": {}}]

    monkeypatch.setattr("framecast.cli.efficiency.measured", made_up)
    words = ("efficiency", "pvdm/ucf101-256-s:100/20", "--frames", 16, "--size")
    there, elsewhere = cast(*words, 256).out, cast(*words, 64).out
    assert "75.1 (paper 7.88)" in there and "VideoGPT" in there and "17.6" in there
    assert "75.1" in elsewhere and "paper 7.88" not in elsewhere and "VideoGPT" not in elsewhere


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pvdm/vortex23"], 1, "Did you mean pvdm/vortex32?"),
        (["--frames", "16,x"], 2, "'x' is not a whole number above 0"),
        (["--memory", "-1"], 2, "not a number above 0"),
        (["--out", "."], 1, ". is a folder; name a file"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(words, code, said, cast):
    ran = cast("efficiency", *words)
    assert ran.code == code and said in ran.err.splitlines()[-1]


def test_every_system_is_among_the_main_presets():
    names = [word.partition(":")[0] for word in main_presets()]
    assert {name.partition("/")[0] for name in names} == {name for name, row in SYSTEMS.items() if row.presets}
    for name in names:
        preset(name)


def test_a_further_system_takes_part_by_its_first_preset(monkeypatch):
    monkeypatch.delitem(efficiency.MAIN, "rvd")
    first = next(iter(resolve(SYSTEMS["rvd"].presets)))
    assert f"rvd/{first}" in main_presets()


def test_checkpointing_is_that_of_all_stages():
    changes = Efficiency(checkpointing=True, size=32).changes("pvdm/vortex32")
    assert changes["stages.autoencoder.checkpointing"] and changes["stages.diffusion.checkpointing"]
    assert changes["data.size"] == 32
