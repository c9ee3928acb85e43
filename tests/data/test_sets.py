# SPDX-License-Identifier: Apache-2.0
"""Named simulated sets: what they hold, that they are reproducible, and that folders of others are safe."""

import json
from types import MappingProxyType

import numpy as np
import pytest
import torch

from framecast.data.array_file import open_array
from framecast.data.simulate import sets
from framecast.data.simulate.sets import SETS, about, flows, futures, make, simulate, window_starts
from framecast.data.simulate.street import VortexSet, shedding


@pytest.fixture
def tiny(monkeypatch):
    """A flow so small that a clip takes milliseconds; it is filmed whether it has saturated or not."""
    kind = VortexSet(
        size=12,
        diameter=4,
        reynolds=(20.0, 60.0),
        offset=2,
        ticks_per_frame=5,
        warm_up=30,
        patience=1,
        counts={"train": 5, "validation": 2, "test": 4},
        frames=6,
    )
    monkeypatch.setitem(SETS, "tiny", kind)
    return "tiny"


def test_street_has_about_ten_frames_a_period_and_scaled_values():
    for _, clip, told in make("vortex16", "test", range(2), frames=24):
        assert clip.frames.shape == (24, 1, 16, 16) and clip.value_range == (-1.0, 1.0) and clip.fps is None
        assert 9 < told["period"] < 12 and told["warm_up"] >= 2250
        values = clip.frames.numpy()
        assert 0.3 < np.abs(values).max() <= 1
        back = round(2 * told["period"])  # two periods later the picture is nearly the same, half a period is not
        again, opposite = (np.abs(values[n] - values[0]).mean() for n in (back, round(told["period"] / 2)))
        assert again < 0.4 * opposite


def test_flow_does_not_depend_on_its_batch(tiny):
    together = {number: clip.frames for number, clip, _ in make(tiny, "train", range(5), frames=6)}
    (_, alone, _), *_ = make(tiny, "train", [3], frames=4)
    assert torch.equal(together[3][:4], alone.frames)


def test_seeds_and_splits_differ_and_repeat(tiny):
    first = flows(tiny, "train", 1, 3)[0].frames
    assert torch.equal(first, flows(tiny, "train", 1, 3)[0].frames)
    assert not torch.equal(first, flows(tiny, "train", 1, 3, seed=1)[0].frames)
    assert not torch.equal(first, flows(tiny, "test", 1, 3)[0].frames)


@pytest.mark.parametrize("name", ["vortex16", "vortex32", "vortex128"])
def test_held_out_flows_are_stratified_and_unseen(name):
    kind = SETS[name]
    train = [about(name, "train", number)["reynolds"] for number in range(64)]
    test = [about(name, "test", number) for number in range(32)]
    low, high = kind.reynolds
    assert low <= min(train) and max(train) <= high
    for key, least, span in (("reynolds", low, high - low), ("offset", -kind.offset, 2 * kind.offset)):
        strata = [int((told[key] - least) / span * 32) for told in test]
        assert sorted(strata) == list(range(32))
        assert strata != sorted(strata)
    assert min(abs(told["reynolds"] - other) for told in test for other in train) > 0.1


def test_larger_streets_are_the_same_flow_on_finer_lattices():
    base = SETS["vortex32"]
    for name, factor in (("vortex64", 2), ("vortex128", 4)):
        kind = SETS[name]
        assert (kind.size, kind.diameter, kind.offset, kind.ticks_per_frame, kind.warm_up) == tuple(
            factor * value for value in (base.size, base.diameter, base.offset, base.ticks_per_frame, base.warm_up)
        )
        assert (kind.inflow, kind.clip, kind.counts, kind.frames) == (base.inflow, base.clip, base.counts, base.frames)


def test_shedding_waits_for_equal_swings():
    ticks = np.arange(600)
    steady, growing = np.sin(ticks / 13) + 0.4, np.exp(ticks / 900) * np.sin(ticks / 13)
    assert shedding(steady)[0] == pytest.approx(13 * 2 * np.pi, rel=1e-3)
    assert shedding(steady)[1] and not shedding(growing)[1]
    assert shedding(np.zeros(50))[1] is False


def test_windows_are_a_quarter_period_apart():
    assert window_starts(12.0, 5) == [0, 3, 6, 9, 12]


def test_files_are_read_by_the_array_reader(tiny, tmp_path):
    steps = []
    made = simulate(tiny, tmp_path / "set", progress=lambda done, total: steps.append((done, total)))
    assert (made.written, made.kept) == (11, 0) and steps[-1] == (11, 11)
    file = open_array(tmp_path / "set" / "test" / "flow_0002.npz")
    assert (file.frames, file.channels, file.height, file.value_range, file.fps) == (6, 1, 12, (-1.0, 1.0), None)
    assert torch.equal(file.read(range(6)), flows(tiny, "test", 3)[2].frames)
    with np.load(file.path) as entries:
        told = json.loads(str(entries["generated_by"]))
    assert told["reynolds"] == about(tiny, "test", 2)["reynolds"] and told["seed"] == 0
    note = json.loads((tmp_path / "set" / "set.json").read_text())
    assert note["set"] == tiny and note["settings"]["diameter"] == 4


def test_interrupted_run_goes_on_and_ends_in_the_same_bytes(tiny, tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tiny, tmp_path / "a", progress=stop)
    assert simulate(tiny, tmp_path / "a").kept == 3
    simulate(tiny, tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert len(files) == 12
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_more_flows_can_be_added(tiny, tmp_path):
    simulate(tiny, tmp_path, splits=["train"], flows=2)
    made = simulate(tiny, tmp_path, splits=["train", "test"], flows=3)
    assert (made.written, made.kept) == (4, 2)


@pytest.mark.parametrize("change", [{"seed": 1}, {"frames": 5}])
def test_folder_of_another_set_is_refused(tiny, tmp_path, change):
    simulate(tiny, tmp_path, splits=["test"], flows=1)
    with pytest.raises(ValueError, match="holds another set"):
        simulate(tiny, tmp_path, splits=["test"], flows=1, **change)


def test_changed_settings_are_refused(tiny, tmp_path, monkeypatch):
    simulate(tiny, tmp_path, splits=["test"], flows=1)
    monkeypatch.setitem(SETS, tiny, VortexSet(size=12, diameter=5, offset=2, ticks_per_frame=5, warm_up=30, frames=6))
    with pytest.raises(ValueError, match="holds another set"):
        simulate(tiny, tmp_path, splits=["test"], flows=1)


def test_foreign_folder_and_files_are_left_alone(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"no set\.json"):
        simulate(tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    folder = tmp_path / "set"
    simulate(tiny, folder, splits=["test"], flows=1)
    other = folder / "test" / "flow_0001.npz"
    other.write_bytes(b"not ours")
    with pytest.raises(ValueError, match="not the clip that belongs there"):
        simulate(tiny, folder, splits=["test"], flows=2)
    assert other.read_bytes() == b"not ours"


def test_bouncing_set_is_written_as_uint8(tmp_path):
    simulate("bouncing64", tmp_path, splits=["validation"], flows=2, frames=5)
    file = open_array(tmp_path / "validation" / "clip_0001.npz")
    assert (file.frames, file.height, file.value_range) == (5, 64, None)
    assert torch.equal(file.read(range(5)), flows("bouncing64", "validation", 2, 5)[1].frames)


def test_futures_belong_to_their_clip():
    many = futures("bouncing32", "test", 1, known=4, frames=12, count=3)
    assert [future.frames.shape for future in many] == [(12, 1, 32, 32)] * 3
    again = futures("bouncing32", "test", 1, known=4, frames=12, count=3)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(many, again))
    known = flows("bouncing32", "test", 2, 4)[1].frames
    step = (many[0].frames[0].float() - known[-1].float()).abs().mean()
    other = (many[0].frames[0].float() - flows("bouncing32", "test", 1, 4)[0].frames[-1].float()).abs().mean()
    assert step < other
    with pytest.raises(ValueError, match="one future per past"):
        futures("vortex32", "test", 0, known=4, frames=12, count=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (MappingProxyType({"name": "vortex33"}), "vortex32"),
        (MappingProxyType({"name": "vortex16", "splits": ["dev"]}), "validation"),
        (MappingProxyType({"name": "vortex16", "flows": 0}), "flows is 0"),
    ],
)
def test_wrong_requests_say_what_there_is(tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        simulate(out_dir=tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_every_set_has_a_test_split():
    assert all(kind.counts["test"] > 0 and kind.size >= 16 for kind in sets.SETS.values())
