"""The measurements themselves, small, and the command."""

import dataclasses
import json
import time
import types

import pytest
import torch

from framecast.bench import codes, drawing, features, flows, network, reading
from framecast.bench.measure import operations
from framecast.bench.run import BACKENDS, FILES, WHAT, Bench, Task, _rate, _scaled, append, measure, tasks
from tests.cli.conftest import Ran, cast, make_clip  # noqa: F401

DRAWN = {"preset": "ramvid/vortex16", "model": None, "device": "cpu", "repeats": 2}
TINY = {"preset": "ramvid/vortex16", "device": "cpu", "precision": "32", "repeats": 2}
FIELDS = {
    "what", "case", "seconds", "spread", "repeats", "memory", "memory_of_process", "machine", "versions", "commit",
    "date",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Matrix products of the measurements made in this process."""
    monkeypatch.setattr("framecast.bench.measure._SIZES", {"cpu": (128,)})


def test_step_counts_nearly_three_times_the_forward_pass():
    (once,), (step,) = network.forward(**TINY), network.step(**TINY)
    for row in (once, step):
        assert set(row) >= FIELDS | {"operations", "operations_per_second", "share_of_matmul", "matmul"}
        assert row["seconds"] > 0 and row["repeats"] == 2
        assert set(row["matmul"]) == {"before", "after"}
        assert all(set(told) == {"rate", "size", "kind"} for told in row["matmul"].values())
    assert 2.9 < step["operations"] / once["operations"] < 3.0
    assert step["share_of_matmul"] == pytest.approx(
        step["operations"] / step["seconds"] / max(told["rate"] for told in step["matmul"].values())
    )


TURNS = {"stages.autoencoder.adversarial_from": 9, "stages.autoencoder.discriminator_width": 4}
SMALL = {"model.autoencoder.width": 24, "model.denoiser.width": 16, "model.denoiser.res_blocks": 1}


@pytest.mark.slow
def test_step_has_a_row_for_every_group_that_takes_turns():
    how = {**TINY, "preset": "pvdm/vortex32", "stage": "autoencoder", "repeats": 1}
    plain, judges, autoencoder = network.step(**how, changes=SMALL | TURNS)
    assert judges["case"].endswith(", discriminators in turn")
    assert autoencoder["case"].endswith(", autoencoder in turn")
    assert autoencoder["operations"] > plain["operations"] > judges["operations"]
    (alone,) = network.step(**how, changes=SMALL)
    assert alone["operations"] == plain["operations"]


@pytest.mark.slow
def test_step_on_kept_examples_leaves_their_making_out():
    how = {**TINY, "preset": "pvdm/vortex32", "stage": "diffusion", "repeats": 1}
    (kept,) = network.step(**how, changes=SMALL)
    (made,) = network.step(**how, changes=SMALL | {"stages.diffusion.cache": False})
    encode = {**DRAWN, "preset": "pvdm/vortex32", "repeats": 1}
    (once,) = drawing.encode(**encode, changes=SMALL)
    assert "kept examples" in kept["case"] and kept["notes"]
    assert made["operations"] - kept["operations"] in (once["operations"], 2 * once["operations"])


def test_encoding_and_decoding_are_those_of_a_clip():
    how = {**DRAWN, "preset": "pvdm/vortex32", "changes": SMALL}
    (there,), (back,) = drawing.encode(**how), drawing.decode(**how)
    for row in (there, back):
        assert set(row) >= FIELDS | {"share_of_matmul"} and row["rate"] == pytest.approx(16 / row["seconds"])
    assert there["operations"] > back["operations"] > 0  # projections onto planes are in the encoder only


def test_a_model_without_a_codec_is_refused():
    with pytest.raises(ValueError, match="has no encoder and decoder"):
        drawing.encode(**DRAWN)


SMALL_PRIORS = {
    f"model.{part}.{key}": value
    for part in ("top_prior", "bottom_prior")
    for key, value in {
        "hidden": 8, "residual": 16, "layers": 2, "heads": 2, "condition_hidden": 8, "condition_residual": 8,
        "condition_layers": 1, "embedding": 8,
    }.items()
}  # fmt: skip


def test_codes_are_timed_one_by_one_and_beside_whole_passes():
    how = {"preset": "video_vqvae/tiny64", "model": None, "device": "cpu", "repeats": 1}
    changes = {"data.size": 16, "model.tokenizer.hidden": 8, **SMALL_PRIORS}
    (one,), (three,) = (codes.codes(**how, futures=n, changes=changes) for n in (1, 3))
    assert set(one) >= FIELDS | {"seconds_per_code", "seconds_by_passes"}
    assert one["codes"] == three["codes"] == 3 * 2 * 2 + 6 * 4 * 4
    assert one["rate"] == pytest.approx(one["codes"] / one["seconds"])
    assert three["rate"] == pytest.approx(3 * three["codes"] / three["seconds"])
    assert one["seconds_by_passes"] == pytest.approx(
        12 * one["passes"]["top_prior"] + 96 * one["passes"]["bottom_prior"]
    )
    with pytest.raises(ValueError, match="draws no codes"):
        codes.codes(**DRAWN, futures=1)


def test_changed_settings_are_told_and_checked():
    built = network.untrained("ramvid/vortex16", changes={"data.size": 32})
    assert built.system.video.height == 32 and "data.size=32" in built.name
    with pytest.raises(ValueError, match="sise"):
        network.untrained("ramvid/vortex16", changes={"data.sise": 32})


def test_step_in_bfloat16_is_compared_with_products_in_bfloat16():
    (row,) = network.step(**{**TINY, "precision": "bf16", "repeats": 1})
    assert row["matmul"]["before"]["kind"] == "bfloat16" and "bfloat16" in row["case"]


def test_sampling_counts_every_network_call():
    (row,) = drawing.sampling(**{**DRAWN, "repeats": 1}, steps=None)
    (once,) = network.forward(**{**TINY, "repeats": 1})
    assert row["network_calls"] == 20
    assert row["operations"] == 20 * once["operations"]
    assert row["rate"] == pytest.approx(4 / row["seconds"])


def test_steps_asked_for_are_those_of_sampling():
    (row,) = drawing.sampling(**{**DRAWN, "repeats": 1}, steps="3")
    assert row["network_calls"] == 3 and "ddim 3" in row["case"]


@pytest.mark.parametrize("futures", [1, 3])
def test_denoising_step_is_one_network_evaluation_of_all_futures(futures):
    (row,) = drawing.denoise(**DRAWN, futures=futures)
    (once,) = network.forward(**{**TINY, "repeats": 1})
    assert row["operations"] == futures * once["operations"]
    assert set(row) >= FIELDS | {"share_of_matmul"} and row["repeats"] == 2 and "ddim" in row["case"]


def test_denoising_step_leaves_out_what_is_done_once_per_frame():
    (row,) = drawing.denoise(**{**DRAWN, "preset": "rvd/vortex32"}, futures=2)
    system = network.fresh("rvd/vortex32", device="cpu", precision="32").system
    with torch.no_grad():
        given = system.denoiser.prepare(system.read(torch.zeros(2, 4, 1, 32, 32)).context)
        once = operations(lambda: system.denoiser(torch.zeros(2, 1, 32, 32), torch.zeros(2), given))
    assert row["operations"] == once


def test_calls_are_noted_while_they_are_watched():
    class Slow(torch.nn.Module):
        def forward(self):
            time.sleep(0.03)

    slow = Slow()
    system = types.SimpleNamespace(parts=lambda: {"slow": slow}, device=torch.device("cpu"))
    with drawing.called(system) as calls:
        slow(), slow(), slow()
    slow()
    first, second, third = calls["slow"]
    assert second - first > 0.02 and third - second > 0.02


def test_horizon_is_told_in_frames_per_second():
    (row,) = drawing.horizon(**{**DRAWN, "preset": "rvd/vortex32"}, steps="1", frames=9)
    assert set(row) >= FIELDS and row["rate"] == pytest.approx(9 / row["seconds"]) and "4 → 9 frames" in row["case"]


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_is_read(kind):
    rows = reading.made(kind=kind, repeats=1, frames=40, side=32)
    modes = ["in one go", "random windows"] + ["from the start each time"] * kind.startswith(("mp4", "gif"))
    assert [row["case"].rpartition(": ")[2] for row in rows] == modes
    assert all(set(row) >= FIELDS | {"rate", "rate_unit"} and row["rate"] > 0 for row in rows)


def test_kinds_of_file_are_those_listed():
    assert tuple(reading.KINDS) == FILES


def test_clip_too_short_for_a_window_is_refused(tmp_path):
    path = make_clip(tmp_path / "a.npz", frames=9)
    with pytest.raises(ValueError, match="9 frames, reading is measured in windows of 16"):
        reading.found(path=str(path), repeats=1)


def test_each_measurement_is_a_task_of_its_own():
    labels = [task.label for task in tasks(Bench())]
    assert len(labels) == len(WHAT) - 5 + 2 + 2 + 2 + len(FILES) + len(BACKENDS) and labels[:3] == list(WHAT[:3])
    assert [task.label for task in tasks(Bench(what=("step", "matmul")))] == ["matmul", "step"]
    assert [task.label for task in tasks(Bench(what=("reading",), clip="/"))] == ["reading /"]


def test_command_prints_a_table_and_adds_json_lines(cast, tmp_path):  # noqa: F811
    out = tmp_path / "bench.jsonl"
    out.write_text('{"what": "earlier"}\n')
    words = ("forward", "--preset", "ramvid/vortex16", "--repeats", 1, "--threads", 1, "--device", "cpu")
    ran: Ran = cast("bench", *words, "--out", out)
    assert ran.code == 0, ran.err
    assert "of matmul" in ran.out and "ramvid/vortex16" in ran.out and "threads: 1" in ran.out
    earlier, row = map(json.loads, out.read_text().splitlines())
    assert earlier == {"what": "earlier"}
    assert set(row) >= FIELDS and row["machine"]["threads"] == 1
    assert "1 line added" in ran.err


@pytest.mark.slow
def test_command_takes_a_stage_and_settings(cast):  # noqa: F811
    words = (
        "--preset",
        "pvdm/vortex32",
        "--stage",
        "diffusion",
        "--repeats",
        1,
        "--model.denoiser.width",
        16,
        "--json",
    )
    ran: Ran = cast("bench", "forward", *words, "--threads", 1)
    (row,) = ran.json["rows"]
    assert "model.denoiser.width=16, diffusion: 32×32×1, 32 frames" in row["case"]


@pytest.mark.slow
def test_json_is_one_object_on_stdout(cast, tmp_path):  # noqa: F811
    ran: Ran = cast("bench", "reading", "--clip", make_clip(tmp_path / "a.npz", frames=20), "--repeats", 1, "--json")
    assert [row["case"] for row in ran.json["rows"]] == ["a.npz, 8×8: in one go", "a.npz, 8×8: random windows"]


def test_simulator_is_timed_per_site_update(monkeypatch):
    monkeypatch.setattr("framecast.bench.flows.TICKS", 3)
    (row,) = flows.simulator(backend="numpy", repeats=1)
    assert set(row) >= FIELDS and row["rate"] > 1e4
    assert row["seconds"] == pytest.approx(1e6 / row["rate"])


def test_features_are_counted_per_clip(monkeypatch):
    monkeypatch.setattr("framecast.bench.features.BATCHES", (1,))
    (row,) = features.features(device="cpu", repeats=1, frames=9)
    assert set(row) >= FIELDS | {"share_of_matmul"} and "9 frames, batch 1" in row["case"]
    assert row["rate"] == pytest.approx(1 / row["seconds"])
    assert 2.5e10 < row["operations"] < 5.6e10  # 27.8 G multiply-adds for 16 frames


def test_crps_of_many_samples_needs_less_memory_than_all_of_them_as_numbers():
    (row,) = features.crps(device="cpu", repeats=1)
    assert set(row) >= FIELDS and row["rate"] == pytest.approx(16 / row["seconds"])
    assert row["memory"] is None or row["memory"] < 100 * 16 * 3 * 64 * 64 * 4  # bytes of the samples in float32


def test_what_is_not_installed_is_told_and_the_rest_goes_on():
    task = Task("simulator numba", "tests.bench.heavy:refuse", {}, optional=True)
    assert measure(task, threads=None) == ([], "simulator numba: no such thing here.")
    with pytest.raises(ValueError, match="no such thing here"):
        measure(dataclasses.replace(task, optional=False), threads=None)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["raeding"], 2, "'raeding' is not something to measure. Did you mean reading?"),
        (["step", "--preset", "ramvid/vortex61"], 1, "Did you mean ramvid/vortex16?"),
        (["step", "--precision", "16"], 2, "'16'"),
        (["step", "--preset", "pvdm/tiny32", "--stage", "priors"], 2, "Its stages: autoencoder, diffusion."),
        (["step", "--data.size", "32"], 2, "name one with --preset"),
        (["step", "--preset", "pvdm/tiny32", "--data.sise", "32"], 2, "Did you mean data.size?"),
        (["reading", "--clip", "gone.mp4"], 1, "gone.mp4: there is no such file or folder."),
        (["matmul", "--out", "."], 1, ". is a folder; name a file"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words, code, said, cast):  # noqa: F811
    ran: Ran = cast("bench", *words)
    assert ran.code == code and said in ran.err.splitlines()[-1]


def test_numbers_are_scaled_to_be_read():
    assert [_scaled(n, "s") for n in (2.5e-5, 0.25, 1234.0)] == ["25 µs", "250 ms", "1.23e+03 s"]
    assert _scaled(1.42e9, "B") == "1.42 GB"
    assert [_rate({"rate": n, "rate_unit": "frames/s"}) for n in (0.236, 45600)] == [
        "0.236 frames/s",
        "45.6 k frames/s",
    ]


def test_a_model_without_a_network_is_refused():
    with pytest.raises(ValueError, match="persistence has no network"):
        drawing.sampling(preset=None, model="persistence", steps=None, device="cpu", repeats=1)


def test_a_model_that_draws_without_steps_has_none_to_measure():
    with pytest.raises(ValueError, match="draws without steps"):
        drawing.denoise(preset="rvd/vortex32-mean", model=None, futures=1, device="cpu", repeats=1)


def test_a_file_of_something_else_is_left_as_it_is(tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("# mine\n")
    with pytest.raises(ValueError, match="holds something else than JSON lines"):
        append(notes, [{"what": "matmul"}])
    assert notes.read_text() == "# mine\n"
    (tmp_path / "empty").touch()
    append(tmp_path / "empty", [{"what": "matmul"}])
    append(tmp_path / "empty", [{"what": "step"}])
    assert len((tmp_path / "empty").read_text().splitlines()) == 2
