"""Settings: precedence, dotted overrides, YAML with comments; config, models, data, doctor, train."""

import dataclasses

import pytest
import torch

import framecast
from framecast.cli.config import commented, field_comments
from framecast.cli.data import SETS
from framecast.cli.parsing import UsageError, apply_settings, put
from framecast.cli.train import experiment_of
from framecast.experiment import DataConfig, from_plain, from_yaml, to_yaml
from framecast.systems import preset, presets
from framecast.systems.ramvid.config import RaMViDExperiment
from tests.cli.conftest import make_clip
from tests.tiny import ramvid


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.size", "48", 48),
        ("data.size", "48,64", (48, 64)),
        ("data.fps", "null", None),
        ("data.flip", "true", True),
        ("stages.diffusion.optimiser.lr", "1e-5", 1e-5),
        ("stages.diffusion.precision", "bf16", "bf16"),
        ("stages.diffusion.compile", "off", "off"),
        ("model.multipliers", "1,2,4", (1, 2, 4)),
        ("sample.steps", "ddim50", "ddim50"),
        ("sample.steps", "50", 50),
        ("data.dir", "12", "12"),
    ],
)
def test_setting_is_read_by_its_type(key, text, value):
    found = apply_settings(RaMViDExperiment(), [(key, text)])
    for piece in key.split("."):
        found = getattr(found, piece)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("data.frame", "3", "data.frame is not a setting. Did you mean"),
        ("stages.diffusion.lr", "3", "Did you mean stages.diffusion.optimiser.lr?"),
        ("stages.diffusion.batch", "many", "stages.diffusion.batch is 'many', which is not a whole number."),
        ("stages.diffusion", "3", "stages.diffusion is not a setting."),
        ("data.crop", "left", "data.crop is 'left'; it can be center, random."),
    ],
)
def test_wrong_setting_names_what_was_meant(key, text, said):
    with pytest.raises(UsageError) as caught:
        apply_settings(RaMViDExperiment(), [(key, text)])
    assert said in str(caught.value)


def test_later_settings_win():
    settings = [("data.size", "32"), ("data.size", "16")]
    assert apply_settings(RaMViDExperiment(), settings).data.size == 16


def test_put_leaves_the_rest_alone():
    plain = {"a": {"b": 1, "c": 2}}
    assert put(plain, "a.b", 3) == {"a": {"b": 3, "c": 2}}
    assert plain == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("name", presets())
def test_commented_yaml_reads_back_as_the_same_settings(name):
    experiment = preset(name)
    assert from_plain(type(experiment), from_yaml(commented(experiment))) == experiment


def test_every_comment_of_a_field_is_found():
    assert field_comments(DataConfig)["flip"] == "mirror half of the clips left to right"
    assert set(field_comments(type(RaMViDExperiment().stages.diffusion))) >= {"batch", "max_known"}  # inherited and own


def test_config_defaults_prints_every_key(cast):
    ran = cast("config", "defaults", "ramvid")
    assert from_plain(RaMViDExperiment, from_yaml(ran.out)) == RaMViDExperiment()
    assert "  flip: false  # mirror half of the clips left to right" in ran.out.splitlines()


def test_config_show_reads_presets_and_runs(cast, tmp_path):
    assert from_plain(RaMViDExperiment, from_yaml(cast("config", "show", "ramvid/bair64").out)) == preset(
        "ramvid/bair64"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(ramvid()))
    assert cast("config", "show", "run", "--json").json["model"]["width"] == ramvid().model.width


def test_config_show_names_the_nearest_preset(cast):
    ran = cast("config", "show", "ramvid/bear64")
    assert ran.code == 1 and "Did you mean ramvid/bair64?" in ran.err


def test_file_changes_a_preset(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("preset: ramvid/vortex16\nstages:\n  diffusion:\n    optimiser: {lr: 3e-4}\n")
    found, base = experiment_of(str(path)), preset("ramvid/vortex16")
    assert found.stages.diffusion.optimiser.lr == 3e-4
    assert found.stages.diffusion.batch == base.stages.diffusion.batch


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {width: 8}", "neither a system nor a preset"),
        ("system: ramvid\nmodel: {widht: 8}", "model.widht is not a setting. Did you mean width?"),
        ("preset: ramvid/vortex16\ndate: {dir: x}", "date is not a setting. Did you mean data?"),
        ("- 1", "must be a table"),
    ],
)
def test_wrong_file_is_told_in_a_sentence(tmp_path, text, said):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        experiment_of(str(path))
    assert said in str(caught.value)


@pytest.fixture
def videos(tmp_path):
    for i in range(4):
        make_clip(tmp_path / "clips" / f"{i}.npz", frames=12 + i)
    return tmp_path / "clips"


@pytest.fixture
def tiny_yaml(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(ramvid()))
    return path


def test_train_then_resume_then_predict(cast, tiny_yaml, videos, clip):
    words = ("--data", videos, "--max-steps", 3, "--stages.diffusion.checkpoint_every", 2, "--device", "cpu")
    ran = cast("train", tiny_yaml, *words, "--out", "run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["steps"] == 3 and ran.json["dir"] == "run"
    again = cast("train", "--resume", "run", "--device", "cpu")
    assert again.code == 0 and "all 3 steps were done already" in again.out
    assert cast("predict", "run", clip, "--format", "npz").code == 0
    assert cast("models", "info", "run", "--json").json["parts"].popitem()[1]["step"] == 3
    assert "run" in [line.split()[0] for line in cast("models", "list", ".").out.splitlines() if line]
    listed = cast("models", "list", ".", "--json").json["models"]
    assert [model["system"] for model in listed if model["name"] == "run"] == ["ramvid"]


def test_resume_refuses_settings_it_would_not_heed_and_says_how_to_train_longer(cast, tiny_yaml, videos):
    words = ("--data", videos, "--max-steps", 2, "--device", "cpu", "--out", "run")
    assert cast("train", tiny_yaml, *words).code == 0
    for setting in (("--max-steps", 4), ("--seed", 1), ("--batch", 2), ("--data.flip", "true")):
        ran = cast("train", "--resume", "run", *setting)
        assert ran.code == 2 and "framecast train run/config.yaml --resume run" in ran.err
    ran = cast("train", "run/config.yaml", "--resume", "run", "--max-steps", 4, "--device", "cpu", "--json")
    assert ran.code == 0 and ran.json["steps"] == 4


def test_train_dry_run_tells_the_plan_and_writes_nothing(cast, tiny_yaml, videos, tmp_path):
    ran = cast("train", tiny_yaml, "--data", videos, "--batch", 6, "--dry-run", "--json", "--device", "cpu")
    assert ran.code == 0 and ran.json["batch"] == 6 and ran.json["device"] == "cpu"
    assert not (tmp_path / "runs").exists()


def test_train_without_clips_says_how_to_give_them(cast):
    ran = cast("train", "ramvid/vortex16")
    assert ran.code == 2 and "--data DIR" in ran.err


def test_train_in_python_takes_a_folder(tmp_path, videos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = framecast.videos(videos, size=8, channels=1, clip_frames=4)
    done = framecast.train(ramvid(), data, max_steps=2, device="cpu")
    assert done.steps == 2
    assert done.model.video.clip_frames == 4
    assert done.model.generate(2, 6, steps=2).video.shape == (2, 6, 1, 8, 8)


def test_data_check_exits_3_on_a_broken_file(cast, videos):
    ran = cast("data", "check", videos, "--clip-frames", 5, "--json", "--data.channels", 1)
    assert ran.code == 0 and ran.json["files"] == 4
    (videos / "broken.mp4").write_bytes(b"no video")
    ran = cast("data", "check", videos, "--clip-frames", 5, "--data.channels", 1)
    assert ran.code == 3 and "broken.mp4" in ran.out


def test_data_show_writes_a_sheet_and_an_animation(cast, videos, tmp_path):
    ran = cast("data", "show", videos, "--clip-frames", 5, "--size", 8, "--data.channels", 1, "-n", 3, "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["clips"]) == 3
    assert {path.name for path in (tmp_path / "out" / "clips").iterdir()} == {"sheet.png", "clips.webp"}


def test_data_show_overwrites_nothing_and_says_so_before_it_reads(cast, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    ran = cast("data", "show", "nothing-here", "--out", "taken")
    assert ran.code == 1 and "use --out taken-2" in ran.err


def test_data_simulate_writes_the_set_and_finishes_what_is_there(cast, tmp_path):
    words = ("data", "simulate", "bouncing32", "set", "--split", "test", "--flows", 2, "--frames", 4, "--json")
    assert cast(*words).json["written"] == 2
    assert cast(*words).json["kept"] == 2


def test_help_of_simulate_names_every_set():
    from framecast.data.simulate import sets

    assert set(SETS) == set(sets.SETS)


def test_models_list_says_what_to_do_when_there_are_none(cast):
    ran = cast("models", "list", "nowhere")
    assert ran.code == 0
    assert ran.out


def test_models_info_prints_parts_and_provenance(cast, model_folder):
    ran = cast("models", "info", model_folder)
    assert ran.code == 0 and "provenance: " in ran.out and "diffusion" in ran.out


def test_models_import_converts_and_verifies_a_checkpoint(cast, tmp_path, monkeypatch):
    import framecast.systems as systems
    from framecast.systems.ramvid.published import PRESETS
    from framecast.systems.ramvid.ramvid import RaMViD

    experiment = dataclasses.replace(ramvid(), model=dataclasses.replace(ramvid().model, dropout=0.0))
    monkeypatch.setitem(PRESETS, "test8", lambda: experiment)
    video = framecast.VideoSpec(channels=1, height=8, width=8, clip_frames=5)
    system = RaMViD(experiment.model, video, experiment.sample)
    ((name, part),) = system.parts().items()
    torch.save(part.state_dict(), tmp_path / "ema_0.9_000120.pt")
    assert systems.preset("ramvid/test8") == experiment
    ran = cast("models", "import", "ema_0.9_000120.pt", "--preset", "ramvid/test8", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["weights"] == "ema" and ran.json["tensors"] == len(part.state_dict())
    again = framecast.load(ran.json["out"], device="cpu")
    for key, value in part.state_dict().items():
        assert torch.equal(again.nets[name].state_dict()[key], value)
    assert cast("models", "info", ran.json["out"], "--json").json["parts"][name]["step"] == 121


def test_models_import_refuses_another_network(cast, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    ran = cast("models", "import", "other.pt", "--preset", "ramvid/bair64")
    assert ran.code == 1 and "other.pt" in ran.err and "Traceback" not in ran.err


def test_doctor_tries_every_format(cast):
    ran = cast("doctor", "--json")
    assert ran.code == 0, ran.out
    assert set(ran.json["checks"].values()) == {"ok"}
    assert {"python", "torch", "framecast"} <= set(ran.json["versions"])


def test_facade_names_what_it_has():
    with pytest.raises(AttributeError, match="framecast has no 'predict'"):
        framecast.predict  # noqa: B018
    for name in framecast.__all__:
        assert getattr(framecast, name) is not None
