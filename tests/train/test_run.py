# SPDX-License-Identifier: Apache-2.0
"""A run from its first check to its last file: what is refused, what the folder holds, how stages build on others."""

import csv
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from framecast.checkpoint import describe, load_system, load_tensors
from framecast.data.simulate.sets import simulate
from framecast.experiment import EmaConfig, OptimiserConfig
from framecast.systems.ramvid.ramvid import DiffusionStage
from framecast.train.ema import Average
from framecast.train.loop import Diverged
from framecast.train.plan import prepare, read_config
from framecast.train.run import Silent, Stopped, run
from framecast.train.state import TrainState
from tests.tiny import TINY, change, write_clips
from tests.train.duel import CodecStage, DuelExperiment


def toy(clips, **settings):
    return change(TINY["toy"](), data={"dir": str(clips)}, **settings)


def test_no_preview_is_drawn_when_none_is_wanted(clips):
    assert not (run(toy(clips, preview_every=None, max_steps=2), device="cpu").dir / "samples").exists()


def test_run_folder_holds_what_the_docs_say(clips):
    done = run(toy(clips, preview_every=5), device="cpu")
    assert done.dir.parent == Path("runs")
    assert done.dir.name.endswith("_toy_clips")
    assert Path("runs/latest").resolve() == done.dir.resolve()
    held = {str(p.relative_to(done.dir)) for p in done.dir.rglob("*") if p.is_file()}
    assert {"config.yaml", "env.json", "log.txt", "metrics.csv"} <= held
    assert {f"samples/step_{s:08d}/{f}" for s in (5, 10) for f in ("grid.mp4", "grid.webp", "sheet.png")} <= held
    checkpoint = {"config.json", "README.md", "pixel.safetensors", "train_state.safetensors", "train_state.json"}
    assert {p.name for p in done.checkpoint.iterdir()} == checkpoint
    assert (done.dir / "checkpoints" / "last").resolve() == done.checkpoint.resolve()
    assert json.loads((done.dir / "env.json").read_text())["versions"]["torch"] == torch.__version__


def test_written_settings_repeat_the_run(clips):
    first = run(toy(clips), out="a", device="cpu")
    again = run(read_config(Path("a/config.yaml")), out="b", device="cpu")
    assert again.loss == first.loss


def test_two_runs_in_one_minute_get_two_folders(clips):
    first, second = run(toy(clips), device="cpu"), run(toy(clips), device="cpu")
    assert first.dir != second.dir
    assert Path("runs/latest").resolve() == second.dir.resolve()


def test_only_the_newest_checkpoints_stay_and_foreign_files_too(clips):
    class Visitor(Silent):
        def step(self, step, max_steps, loss, rate):
            if step == 3:
                Path("r/checkpoints/step_00000002/notes.txt").write_text("mine")

    run(toy(clips, checkpoint_every=2, keep=2), out="r", device="cpu", progress=Visitor())
    left = sorted(p.name for p in Path("r/checkpoints").iterdir() if p.name != "last")
    assert left == ["step_00000002", "step_00000008", "step_00000010"]
    assert [p.name for p in Path("r/checkpoints/step_00000002").iterdir()] == ["notes.txt"]


def test_model_of_a_run_is_the_average_of_its_weights(clips):
    done = run(toy(clips, ema=EmaConfig(decay=0.5, warmup=0.0)), out="r", device="cpu")
    raw = load_tensors(done.checkpoint / "train_state.safetensors")["model/weights/pixel/gain"]
    assert describe("r").parts["pixel"].weights == "ema"
    assert not torch.equal(load_system("r").pixel.gain, raw)
    done = run(toy(clips, ema=EmaConfig(decay=0.0)), out="q", device="cpu")
    raw = load_tensors(done.checkpoint / "train_state.safetensors")["model/weights/pixel/gain"]
    assert describe("q").parts["pixel"].weights == "raw"
    assert torch.equal(load_system("q").pixel.gain, raw)


def test_frame_rate_and_size_of_the_data_reach_the_model(clips):
    run(toy(clips), out="r", device="cpu")
    video = describe("r").video
    assert (video.channels, video.height, video.width, video.clip_frames) == (1, 8, 8, 6)


def test_skipped_files_are_listed_with_their_reason(clips):
    (clips / "broken.mp4").write_bytes(b"not a video")
    run(toy(clips), out="r", device="cpu")
    with open("r/skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["broken.mp4"]
    assert rows[0]["reason"]


def test_progress_hears_of_everything_in_order(clips):
    heard = []

    class Ear(Silent):
        def plan(self, plan):
            heard.append(("plan", plan.dir))

        def step(self, step, max_steps, loss, rate):
            heard.append((step, max_steps))

        def done(self, trained):
            heard.append(("done", trained.steps))

    run(toy(clips, max_steps=3), out="r", device="cpu", progress=Ear())
    assert heard == [("plan", Path("r")), (1, 3), (2, 3), (3, 3), ("done", 3)]


def test_learning_leaves_the_global_generator_as_it_was(clips):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(toy(clips, max_steps=2), out="r", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_clips_are_judged_at_checkpoints(tmp_path):
    clips = write_clips(tmp_path / "many", files=30)
    run(toy(clips, checkpoint_every=5), out="r", device="cpu")
    with open("r/metrics.csv", newline="") as file:
        judged = {row["step"]: row["validation_loss"] for row in csv.DictReader(file)}
    assert {step for step, value in judged.items() if value} == {"5", "10"}
    assert float(judged["10"]) < float(judged["5"])


def test_training_clips_are_not_judged_as_if_they_were_held_out(clips):
    experiment = change(TINY["toy"](), data={"dir": str(clips), "validation": 0.0}, max_steps=2)
    run(experiment, out="r", device="cpu")
    assert "validation_loss" not in Path("r/metrics.csv").read_text()


def test_half_precision_is_that_of_layers_not_of_clips_and_noise(clips, monkeypatch):
    honest, seen = DiffusionStage.loss, []

    def loss(self, examples, **arguments):
        network = self.system.network
        hooks = [
            network.out[2].register_forward_hook(lambda layer, given, made: seen.append(("layer", made.dtype))),
            network.register_forward_hook(lambda layer, given, made: seen.append(("network", made.dtype))),
        ]
        result = honest(self, examples, **arguments)
        seen.append(("clip", examples["clip"].dtype))
        for hook in hooks:
            hook.remove()
        return result

    monkeypatch.setattr(DiffusionStage, "loss", loss)
    run(change(TINY["ramvid"](), data={"dir": str(clips)}, max_steps=1, precision="bf16"), out="r", device="cpu")
    assert seen[:3] == [("layer", torch.bfloat16), ("network", torch.float32), ("clip", torch.float32)]


# ---- stages


def test_second_stage_stands_on_the_first_and_leaves_it_untouched(clips):
    experiment = change(DuelExperiment(), data={"dir": str(clips)})
    first = run(experiment, stage="codec", out="codec", device="cpu")
    assert describe("codec").missing == ["prior"]
    second = run(experiment, stage="prior", from_model="codec", out="prior", device="cpu")
    info = describe("prior")
    assert info.missing == []
    assert info.parts["codec"] == describe("codec").parts["codec"]
    assert info.parts["prior"].needs == {"codec": info.parts["codec"].sha256}
    before, after = (load_tensors(d.checkpoint / "codec.safetensors") for d in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before)
    # the first stage trained anew would leave the second standing on nothing
    run(experiment, stage="codec", from_model="prior", out="again", device="cpu")
    assert describe("again").missing == ["prior"]


def test_stage_without_what_it_needs_is_refused(clips):
    experiment = change(DuelExperiment(), data={"dir": str(clips)})
    with pytest.raises(ValueError, match="stage prior is trained on top of a trained codec: train it with --stage"):
        run(experiment, stage="prior", device="cpu")
    assert not Path("runs").exists()


def test_groups_learn_only_in_their_turn(clips, monkeypatch):
    experiment = change(DuelExperiment(), data={"dir": str(clips)}, max_steps=4)
    learning, averaged = [], []
    loss, average = CodecStage.loss, Average.update

    def watched_loss(self, examples, *, step, turn, rng):
        parts = {"model": self.system.autoencoder.up.weight, "critic": self.critic.weight}
        learning.append((turn, [name for name, weight in parts.items() if weight.requires_grad]))
        return loss(self, examples, step=step, turn=turn, rng=rng)

    def watched_average(self, name, update):
        averaged.append((name, update))
        average(self, name, update)

    monkeypatch.setattr(CodecStage, "loss", watched_loss)
    monkeypatch.setattr(Average, "update", watched_average)
    done = run(experiment, stage="codec", out="r", device="cpu")
    assert learning[:4] == [("model", ["model"]), ("model", ["model"]), ("critic", ["critic"]), ("model", ["model"])]
    assert averaged == [("codec", 0), ("codec", 1), ("codec", 2)]
    state = load_tensors(done.checkpoint / "train_state.safetensors")
    assert state["critic/optimiser/critic.weight/step"].item() == 1
    assert state["model/optimiser/codec.up.weight/step"].item() == 3


def test_start_from_takes_the_weights_and_nothing_else(clips):
    first = run(toy(clips), out="a", device="cpu")
    job = prepare(toy(clips, seed=5), start_from="a", device="cpu")
    ours, theirs = job.system.state_dict(), load_system(first.dir).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert job.plan.first_step == 0


def test_start_from_keeps_what_the_first_batch_once_gave(clips):
    experiment = change(DuelExperiment(), data={"dir": str(clips)}, max_steps=1)
    first = run(experiment, out="a", device="cpu")
    job = prepare(change(experiment, seed=5), start_from="a", device="cpu")
    TrainState(job, job.fabric)
    assert torch.equal(job.system.autoencoder.center, load_tensors(first.checkpoint / "codec.safetensors")["center"])


def test_start_from_another_shape_is_refused(clips):
    run(toy(clips), out="a", device="cpu")
    experiment = change(TINY["toy"](), data={"dir": str(clips), "size": 4})
    with pytest.raises(ValueError, match=r"weight gain has shape \(1, 8, 8\).*ask for \(1, 4, 4\)"):
        prepare(experiment, start_from="a", device="cpu")


# ---- endings


def test_sigterm_stops_after_a_checkpoint(clips):
    class Terminate(Silent):
        def step(self, step, max_steps, loss, rate):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"Checkpoint step_00000004 written; continue with: framecast train --resume r$"):
        run(toy(clips), out="r", device="cpu", progress=Terminate())
    assert load_system("r").pixel.gain.isfinite().all()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_second_interrupt_ends_at_once(clips):
    class Impatient(Silent):
        def step(self, step, max_steps, loss, rate):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(toy(clips), out="r", device="cpu", progress=Impatient())
    assert not list(Path("r").glob("checkpoints/*"))


def test_training_works_in_a_thread(clips):
    done = []
    worker = threading.Thread(target=lambda: done.append(run(toy(clips, max_steps=2), out="r", device="cpu")))
    worker.start()
    worker.join()
    assert done[0].steps == 2


def test_divergence_names_the_last_good_checkpoint(clips, monkeypatch):
    from tests.toy import PixelStage

    honest = PixelStage.loss

    def loss(self, examples, *, step, turn, rng):
        result = honest(self, examples, step=step, turn=turn, rng=rng)
        return replace(result, total=result.total * (float("nan") if step == 7 else 1.0))

    monkeypatch.setattr(PixelStage, "loss", loss)
    with pytest.raises(Diverged, match=r"diverged at step 7 .*loss nan.*last good checkpoint is .*step_00000004"):
        run(toy(clips, checkpoint_every=4), out="r", device="cpu")
    assert load_system("r").pixel.gain.isfinite().all()
    assert "Diverged" in Path("r/log.txt").read_text()


def test_resume_of_a_finished_run_adds_nothing(clips):
    first = run(toy(clips), out="r", device="cpu")
    again = run(None, resume="r", device="cpu")
    assert (again.steps, again.checkpoint, again.loss) == (first.steps, first.checkpoint, None)


def test_resume_can_go_further_with_changed_settings(clips):
    run(toy(clips), out="r", device="cpu")
    longer = run(toy(clips, max_steps=14), resume="r", device="cpu")
    assert longer.checkpoint.name == "step_00000014"
    whole = run(toy(clips, max_steps=14), out="whole", device="cpu")
    ours, theirs = (load_tensors(d.checkpoint / "pixel.safetensors") for d in (longer, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert Path("r/config.yaml").read_text() == Path("whole/config.yaml").read_text()
    assert read_config(Path("r/config_until_step_00000010.yaml")).stages.pixel.max_steps == 10


def test_resume_works_from_another_folder(clips, tmp_path, monkeypatch):
    run(toy(Path("clips"), max_steps=2), out="r", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert prepare(None, resume=tmp_path / "r", device="cpu").plan.first_step == 2


def test_resume_tells_that_the_clips_have_changed(clips):
    run(toy(clips), out="r", device="cpu")
    assert not any("clips when" in note for note in prepare(None, resume="r", device="cpu").plan.notes)
    (clips / "clip0.npy").rename(clips / "clip0.npy.away")
    plan = prepare(None, resume="r", device="cpu").plan
    assert f"40 clips when the run stopped, {plan.clips} now: it sees others from here on." in plan.notes
    assert plan.clips < 40


# ---- refusals, before anything is written


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch": 6, "accumulate": 4}, r"stages.pixel.batch is 6, .*accumulate 4 × 1 device; try 4"),
        ({"batch": 0}, "stages.pixel.batch is 0; it must be at least 1"),
        ({"keep": 0}, "stages.pixel.keep is 0"),
        ({"optimiser": OptimiserConfig(lr=0.0)}, "learning rate must be above 0"),
        ({"optimiser": OptimiserConfig(clip_norm=-1.0)}, "optimiser.clip_norm is -1.0"),
        ({"ema": EmaConfig(decay=1.0)}, "decay must lie in"),
        ({"clip_frames": 1}, "clip_frames is 1; it needs at least 2"),
    ],
)
def test_bad_setting_is_refused_before_anything_is_written(settings, says, clips):
    with pytest.raises(ValueError, match=says):
        run(toy(clips, **settings), device="cpu")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stage": "pixels"}, "toy has no stage 'pixels'. Did you mean pixel?"),
        ({"device": "cuda"}, "no NVIDIA or AMD GPU here"),
        ({"device": "gpu"}, "'gpu' is not one of auto, cpu"),
        ({"devices": 3}, "cannot be divided evenly"),
        ({"from_model": "nowhere"}, "no model 'nowhere'"),
        ({"resume": "clips"}, "clips is not a run folder"),
        ({"resume": "clips", "out": "x"}, "leave out --out"),
        ({"out": "clips"}, "clips exists already"),
    ],
)
def test_bad_argument_is_refused_before_anything_is_written(arguments, says, clips):
    with pytest.raises(ValueError, match=says):
        run(toy(clips), **{"device": "cpu", **arguments})
    assert not Path("runs").exists()


def test_clips_shorter_than_a_training_clip_are_used_padded(clips):
    assert prepare(toy(clips, clip_frames=12), device="cpu").plan.clips == 8


def test_missing_data_is_refused(clips):
    with pytest.raises(ValueError, match="no training clips: give a folder"):
        prepare(TINY["toy"](), device="cpu")


def test_model_made_for_other_clips_is_refused(clips):
    run(change(DuelExperiment(), data={"dir": str(clips)}), out="codec", device="cpu")
    wide = change(DuelExperiment(), data={"dir": str(clips), "size": 4})
    with pytest.raises(ValueError, match="was made for 8×8 with 1 channel, the data settings say 4×4 with 1 channel"):
        prepare(wide, stage="prior", from_model="codec", device="cpu")
    with pytest.raises(ValueError, match="is a duel model, the experiment trains toy"):
        prepare(toy(clips), from_model="codec", device="cpu")


def test_plan_counts_what_will_be_used(clips):
    plan = prepare(toy(clips, accumulate=2), device="cpu").plan
    assert (plan.parameters, plan.batch, plan.per_device, plan.max_steps) == (192, 4, 2, 10)
    assert plan.memory == 4 * 192 * 5
    told = "\n".join(plan.lines())
    assert "192 parameters" in told
    assert "batch 4 (2 per device × 2 in turn)" in told


def test_more_batch_than_clips_is_told(clips):
    plan = prepare(toy(clips, batch=400), device="cpu").plan
    assert any("global batch 400" in note for note in plan.notes)


def test_a_whole_simulated_set_is_refused_in_favour_of_its_training_clips(tmp_path):
    simulate("bouncing32", tmp_path / "set", flows=2)
    with pytest.raises(ValueError, match=r"to be tested on too: train on .*set/train"):
        prepare(toy(tmp_path / "set"), device="cpu")
