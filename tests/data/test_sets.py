# SPDX-License-Identifier: Apache-2.0
"""Named simulated sets: what they hold, that they are reproducible, and that folders of others are safe."""

import json
import threading
from types import MappingProxyType

import numpy as np
import pytest
import torch

from framecast.data.array_file import open_array
from framecast.data.simulate import sets
from framecast.data.simulate.sets import SETS, about, flows, futures, make, simulate, speed, window_starts
from framecast.data.simulate.street import RunSet, VortexSet, shedding


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


@pytest.fixture
def runs(monkeypatch):
    """Three long runs that are neither long nor large."""
    kind = RunSet(
        size=16, diameter=4, inflow=0.1, reynolds=(30.0, 60.0, 90.0), ticks_per_frame=5, warm_up=40, frames=20
    )
    monkeypatch.setitem(SETS, "runs", kind)
    return "runs"


@pytest.fixture
def compiled():
    pytest.importorskip("numba")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_workers_do_not_change_a_byte(tiny, runs, tmp_path):
    for name in (tiny, runs):
        for workers in (1, 3):
            simulate(name, tmp_path / f"{name}{workers}", workers=workers)
        one, three = contents(tmp_path / f"{name}1"), contents(tmp_path / f"{name}3")
        assert len(one) > 7 and one == three


def test_backends_make_the_same_flows(tiny, compiled):
    plain, fast = (list(make(tiny, "test", range(4), frames=6, backend=backend)) for backend in ("numpy", "numba"))
    for (number, clip, told), (same_number, same_clip, same_told) in zip(plain, fast, strict=True):
        assert number == same_number and torch.equal(clip.frames, same_clip.frames)
        assert (told.pop("backend"), same_told.pop("backend")) == ("numpy", "numba")
        assert json.dumps(told) == json.dumps(same_told)


def test_folder_begun_by_one_backend_is_finished_by_the_other(tiny, tmp_path, compiled):
    simulate(tiny, tmp_path / "a", flows=1, backend="numpy")
    assert simulate(tiny, tmp_path / "a", backend="numba").kept == 3
    for number, flow in enumerate(flows(tiny, "train")):
        file = open_array(tmp_path / "a" / "train" / f"flow_{number:04d}.npz")
        assert torch.equal(file.read(range(6)), flow.frames)


def test_interrupted_workers_leave_whole_files_and_no_thread(tiny, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny, tmp_path, workers=2, progress=stop)
    assert threading.active_count() == before
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["flow_0000.npz", "set.json"]


def test_failing_flow_fails_the_whole_with_its_own_words(monkeypatch, tmp_path):
    wild = VortexSet(size=12, diameter=4, inflow=0.5, reynolds=(1e5, 1e6), offset=2, ticks_per_frame=500, warm_up=3000)
    monkeypatch.setitem(SETS, "wild", wild)
    with pytest.raises(ValueError, match="became unstable"):
        simulate("wild", tmp_path, flows=2, workers=2)


def test_runs_are_cut_into_parts_of_one_range(runs, tmp_path):
    steps = []
    made = simulate(runs, tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert (made.written, made.kept) == (6, 0) and steps[0] == (0, 6) and steps[-1] == (6, 6)
    files = [open_array(tmp_path / split / f"flow_000{n}.npz") for split in ("train", "test") for n in range(3)]
    assert [file.frames for file in files] == [16, 16, 16, 4, 4, 4]
    read = [file.read(range(file.frames)) for file in files]
    least, greatest = float(min(x.min() for x in read)), float(max(x.max() for x in read))
    assert {file.value_range for file in files} == {(least, greatest)} and least < 0 < greatest
    stacked = np.load(tmp_path / "vortex.npy")
    assert stacked.dtype == np.float32 and np.array_equal(stacked, torch.cat(read)[:, 0].numpy())
    assert not (tmp_path / ".runs").exists()
    # the test part goes on where the training part ends
    seam = (read[3][0] - read[0][-1]).abs().mean()
    assert 0 < seam < 3 * (read[0][-1] - read[0][-2]).abs().mean()


def test_interrupted_runs_go_on_and_end_in_the_same_bytes(runs, tmp_path):
    def stop_at(step):
        def stop(done, total):
            if done == step:
                raise KeyboardInterrupt

        return stop

    for step in (1, 4):  # while runs are computed, while they are cut
        with pytest.raises(KeyboardInterrupt):
            simulate(runs, tmp_path / "a", progress=stop_at(step), workers=1)
    assert simulate(runs, tmp_path / "a").kept == 2
    simulate(runs, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    (tmp_path / "a" / "vortex.npy").unlink()
    assert simulate(runs, tmp_path / "a").written == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_fewer_runs_are_another_set(runs, tmp_path):
    simulate(runs, tmp_path, flows=1, frames=5)
    with pytest.raises(ValueError, match=r"holds another set \(runs, seed 0, 1 runs, 5 frames"):
        simulate(runs, tmp_path, flows=2, frames=5)


def test_benchmark_set_has_the_published_size():
    kind = SETS["simulation128"]
    assert (kind.size, kind.lattice, kind.ticks_per_frame) == (128, 128, 128)
    assert len(kind.reynolds) * kind.frames == 10_000 and kind.counts == {"train": 8, "test": 8}
    bumps = {about("simulation128", "test", number)["bump"] for number in range(8)}
    assert len(bumps) == 8 and all(0.05 <= bump <= 0.15 for bump in bumps)
    assert about("simulation128", "test", 7)["reynolds"] == 300.0
    with pytest.raises(ValueError, match="simulate and read its files"):
        flows("simulation128", "test", 1)
    with pytest.raises(ValueError, match="no split 'validation'; choose from train, test"):
        flows("simulation128", "validation")


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_speed_is_told_of_sets_with_a_lattice(backend):
    if backend == "numba":
        pytest.importorskip("numba")
    assert 1e5 < speed("vortex32", backend=backend, ticks=3) < 1e11
    with pytest.raises(ValueError, match="no lattice"):
        speed("bouncing32", backend=backend)


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
        (MappingProxyType({"name": "vortex16", "workers": 0}), "workers is 0"),
        (MappingProxyType({"name": "vortex16", "backend": "cuda"}), "choose auto, numpy or numba"),
        (MappingProxyType({"name": "simulation128", "splits": ["test"]}), "written whole"),
        (MappingProxyType({"name": "simulation128", "flows": 9}), "has 8 runs"),
        (MappingProxyType({"name": "simulation128", "frames": 4}), "5 or more"),
    ],
)
def test_wrong_requests_say_what_there_is(tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        simulate(out_dir=tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_every_set_has_a_test_split():
    assert all(kind.counts["test"] > 0 and kind.size >= 16 for kind in sets.SETS.values())
