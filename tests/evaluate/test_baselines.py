"""Simple forecasts do what their names say, for clips of any kind, through the same verbs as a model."""

import json

import pytest
import torch

import framecast
from framecast.data.array_file import write_array
from framecast.data.simulate.sets import flows
from framecast.draws import draws
from framecast.evaluate.baselines import BASELINES, baseline, ensemble
from framecast.evaluate.motion import motion
from framecast.generate import complete
from framecast.task import Task, UnsupportedTask
from framecast.video import Clip
from tests.cli.conftest import cast, clip  # noqa: F401


def noise(frames=12, channels=3, height=10, width=14, seed=0, fps=10.0):
    rng = torch.Generator().manual_seed(seed)
    return Clip(torch.randint(0, 256, (frames, channels, height, width), generator=rng, dtype=torch.uint8), fps=fps)


def ramp(frames=10):
    """Every pixel changes by an amount of its own per frame."""
    slope = torch.linspace(-4, 4, 30).round().reshape(1, 1, 5, 6)
    return Clip((128 + slope * torch.arange(frames).reshape(-1, 1, 1, 1)).to(torch.uint8))


def texture(*, frames, velocity, side=48, width=None, seed=0):
    """A sum of waves, at least 11 pixels long, that moves as a whole, in -1 to 1."""
    rng = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(side).double()[:, None], torch.arange(width or side).double()
    picture = torch.zeros(frames, side, width or side, dtype=torch.float64)
    for _ in range(12):
        k = (torch.rand(2, generator=rng, dtype=torch.float64) * 2 - 1) * 2 * torch.pi / 16
        phase = 2 * torch.pi * torch.rand(1, generator=rng, dtype=torch.float64)
        for t in range(frames):
            picture[t] += torch.sin(k[0] * (rows - velocity[1] * t) + k[1] * (columns - velocity[0] * t) + phase)
    return Clip((picture / 12)[:, None].float(), value_range=(-1.0, 1.0))


@pytest.fixture
def library(tmp_path):
    """Four clips of noise, 20 frames each."""
    for i in range(4):
        one = noise(20, seed=100 + i)
        write_array(
            tmp_path / "train" / f"{i}.npz", one.frames, fps=10.0, value_range=None, generated_by={"by": "test"}
        )
    return tmp_path / "train"


@pytest.fixture(autouse=True)
def _folder(tmp_path):
    (tmp_path / "train").mkdir()


# ---- what each of them draws


def test_persistence_holds_the_last_known_frame():
    one = noise()
    drawn = baseline("persistence").predict(one, 5, context=4).video[0]
    assert torch.equal(drawn[4:], one.frames[3:4].expand(5, -1, -1, -1))


def test_persistence_before_the_first_known_frame_is_that_frame():
    one = noise()
    drawn = baseline("persistence").infill(one, [3, 7]).video[0]
    assert torch.equal(drawn, one.frames[[3] * 7 + [7] * 5])


def test_mean_frame_is_the_mean_of_known_frames_only():
    one = noise()
    drawn = baseline("mean-frame").infill(one, [1, 6]).video[0, 0]
    assert (drawn.float() - one.frames[[1, 6]].float().mean(0)).abs().max() <= 0.5


def test_linear_extrapolation_is_exact_on_a_ramp():
    one = ramp()
    assert torch.equal(baseline("linear-extrapolation").predict(one, 6, context=4).video[0], one.frames)


def test_linear_extrapolation_stays_within_the_range():
    one = Clip(torch.tensor([0, 200, 0, 100], dtype=torch.uint8).reshape(2, 2, 1, 1))
    drawn = baseline("linear-extrapolation").predict(one, 3).video[0, 2:]
    assert drawn[:, 0].unique().tolist() == [0] and drawn[:, 1].unique().tolist() == [0]


def test_linear_blend_is_exact_on_a_ramp():
    one = ramp()
    assert torch.equal(baseline("linear-blend").infill(one, [0, 3, 9]).video[0], one.frames)
    assert torch.equal(baseline("linear-blend").interpolate(Clip(one.frames[::3]), 3).video[0], one.frames)


def test_linear_blend_holds_beyond_the_known_frames():
    one = ramp()
    drawn = baseline("linear-blend").infill(one, [2, 5]).video[0]
    assert torch.equal(drawn[:2], one.frames[[2, 2]]) and torch.equal(drawn[6:], one.frames[[5] * 4])


@pytest.mark.parametrize("velocity", [(2.0, -1.0), (1.3, 0.6), (-3.5, 2.25), (0.0, 0.0)])
def test_motion_of_a_translating_texture_is_its_velocity(velocity):
    frames = texture(frames=2, velocity=velocity).frames
    found = motion(frames[:1], frames[1:])[0, :, 8:-8, 8:-8]
    error = (found - torch.tensor(velocity)[:, None, None]).abs()
    # between pixels bilinear values are a little flat; whole pixels are exact
    assert error.mean() < 0.1 and (error.max() < 0.02 or any(v % 1 for v in velocity))


def test_motion_is_found_at_sizes_that_are_first_reduced():
    velocity = (7.0, -4.5)
    frames = texture(frames=2, velocity=(velocity[0] / 4, velocity[1] / 4), side=48, width=72).frames
    large = torch.nn.functional.interpolate(frames, scale_factor=4, mode="bicubic", align_corners=False)
    found = motion(large[:1], large[1:])[0, :, 30:-30, 30:-30]
    assert torch.allclose(found.mean((-2, -1)), torch.tensor(velocity), atol=0.1)


def test_motion_compensated_forecasts_a_translating_texture():
    one = texture(frames=8, velocity=(1.5, -0.75))
    made, held = (baseline(name).predict(one, 4, context=4).video[0] for name in ("motion-compensated", "persistence"))
    inside = (slice(4, None), slice(None), slice(8, -8), slice(8, -8))  # what came in over the edge is nobody's guess
    error, marks = ((v - one.frames)[inside].abs().mean() for v in (made, held))
    assert 20 * error < marks


def test_motion_compensated_follows_two_digits_that_move_apart():
    clips = flows("bouncing32", "test", 24, 8)
    ratio = []
    for one in clips:
        errors = []
        for name in ("motion-compensated", "persistence"):
            drawn = baseline(name).predict(one, 4, context=4).video[0, 4:].float()
            errors.append((drawn - one.frames[4:].float()).abs().mean().item())
        ratio.append(errors[0] / errors[1])
    assert sorted(ratio)[len(ratio) // 2] < 0.65  # walls included


def test_motion_of_frames_without_texture_is_none():
    plain = torch.full((1, 1, 16, 16), 0.3)
    assert motion(plain, plain).abs().max() == 0
    assert torch.isfinite(motion(plain, -plain)).all()


def test_analog_returns_the_training_window_it_is_asked_with(library):
    inside = noise(20, seed=102)[5:17]
    model = baseline("analog")
    for drawn in (
        model.predict(inside, 8, context=4, options={"reference": str(library)}),
        model.infill(inside, [0, 7, 11], options={"reference": str(library)}),
    ):
        assert torch.equal(drawn.video[0], inside.frames)


def test_analog_warns_once_where_the_clip_is_in_its_own_reference(library, caplog):
    model, how = baseline("analog"), {"reference": str(library)}
    model.predict(noise(12, seed=7), 8, context=4, options=how)
    assert not caplog.records
    for start in (0, 3):
        model.predict(noise(20, seed=102)[start : start + 12], 8, context=4, options=how)
    assert [record.getMessage().startswith("analog: the given frames are among") for record in caplog.records] == [True]


def test_analog_neighbours_are_the_nearest_by_exhaustive_search(library):
    asked = noise(12, seed=7)
    made = baseline("analog-8").predict(asked, 8, context=4, samples=8, options={"reference": str(library)}).video
    windows = torch.stack([noise(20, seed=100 + i).frames[s : s + 12] for i in range(4) for s in range(9)])
    away = (windows[:, :4].double() - asked.frames[:4].double()).square().sum((1, 2, 3, 4))
    assert torch.equal(made[:, 4:], windows[away.argsort()[:8], 4:])


def test_analog_sample_is_its_neighbour_however_samples_are_batched(library):
    asked, model, how = noise(12, seed=7), baseline("analog-8"), {"reference": str(library), "neighbours": 3}
    all_at_once = model.predict(asked, 8, context=4, samples=5, options=how).video
    assert torch.equal(all_at_once, model.predict(asked, 8, context=4, samples=5, batch=2, options=how).video)
    assert torch.equal(all_at_once[3:], all_at_once[:2]), "three neighbours, then again the first"
    assert not torch.equal(all_at_once[0], all_at_once[1])


def test_analog_answers_rows_that_ask_different_things(library):
    model = baseline("analog")
    options = model.options({"reference": str(library)})
    videos = torch.stack([noise(20, seed=100 + i).frames[2:14] for i in (3, 1)]).float() / 127.5 - 1
    task = Task.predict(4, 8)
    made = complete(model.system, videos[:, :4], task, rng=draws(0, [0, 1]), options=options)
    assert torch.allclose(made, videos, atol=1e-6)


def test_analog_reads_the_folder_at_the_size_of_the_clip(library):
    small = noise(12, height=5, width=7, seed=1)
    assert baseline("analog").predict(small, 3, options={"reference": str(library)}).video.shape == (1, 15, 3, 5, 7)


# ---- as models


def test_every_forecast_keeps_known_frames_to_the_bit(library):
    one = noise()
    for name, row in BASELINES.items():
        options = {"reference": str(library)} if name.startswith("analog") else None
        verbs = {
            "predict": lambda m, o: m.predict(one, 4, context=5, options=o),
            "infill": lambda m, o: m.infill(one, [0, 4, 5, 11], options=o),
            "interpolate": lambda m, o: m.interpolate(one[:5], 2, options=o),
        }
        model = baseline(name)
        for verb in row.tasks:
            made = verbs[verb](model, options)
            given = one.frames[:5] if verb != "infill" else one.frames[[0, 4, 5, 11]]
            assert torch.equal(made.video[0, list(made.known)], given), (name, verb)


@pytest.mark.parametrize("name", BASELINES)
def test_forecast_refuses_what_it_does_not_do_and_names_those_that_do(name, library):
    model, one = baseline(name), noise()
    how = {"options": {"reference": str(library)} if name.startswith("analog") else None}
    verbs = {
        "predict": lambda: model.predict(one, 4, context=4, **how),
        "infill": lambda: model.infill(one, [0, 11], **how),
        "interpolate": lambda: model.interpolate(one, 2, **how),
    }
    for verb in set(verbs) - set(model.tasks):
        with pytest.raises(UnsupportedTask, match=rf"{name} .+Simple forecasts that can: persistence, .+that {verb}: "):
            verbs[verb]()
    with pytest.raises(UnsupportedTask, match="none is given"):
        model.generate(2, **how)


@pytest.mark.parametrize("name", ["linear-extrapolation", "motion-compensated"])
def test_one_known_frame_tells_no_motion(name):
    with pytest.raises(UnsupportedTask, match="needs two known frames"):
        baseline(name).predict(noise(), 4, context=1)


def test_only_analogs_with_neighbours_make_an_ensemble():
    assert {name: ensemble(name) for name in BASELINES if ensemble(name) > 1} == {"analog-8": 8}


def test_samples_of_a_deterministic_forecast_claim_no_spread():
    scores = baseline("mean-frame").predict(noise(), 4, context=4, samples=3).scores()["model"]
    assert scores["crps"] == scores["crps_fair"]
    assert scores == baseline("mean-frame").predict(noise(), 4, context=4).scores()["model"]


def test_load_takes_the_name_and_knows_a_misspelt_one():
    model = framecast.load("persistence", device="cpu")
    assert model.name == "persistence" and model.context == 4 and "any size" in repr(model)
    with pytest.raises(ValueError, match=r"no model 'persistance'.+Did you mean persistence\?"):
        framecast.load("persistance")
    with pytest.raises(ValueError, match=r"'analogg' is not a simple forecast\. Did you mean analog\?"):
        baseline("analogg")


def test_folder_of_that_name_is_meant_by_a_slash(tmp_path, monkeypatch):
    (tmp_path / "persistence").mkdir()
    monkeypatch.chdir(tmp_path)
    assert framecast.load("persistence", device="cpu").system.name == "persistence"
    with pytest.raises(ValueError, match="neither a model folder"):
        framecast.load("./persistence")


def test_any_clip_fits_and_only_colours_asked_for_change(tmp_path):
    path = write_array(tmp_path / "a.npz", noise().frames, fps=10.0, value_range=None, generated_by={"by": "test"})
    model = baseline("persistence")
    assert torch.equal(framecast.read(path, like=model).frames, noise().frames)
    assert framecast.read(path, like=model, colour="gray").frames.shape == (12, 1, 10, 14)


# ---- on the command line


def test_command_line_predicts_with_a_forecast_in_place_of_a_model(cast, clip):  # noqa: F811
    ran = cast("predict", "motion-compensated", clip, "--horizon", 3, "--json", "--device", "cpu")
    assert ran.code == 0, ran.err
    (told,) = ran.json["results"]
    assert told["model"] == "motion-compensated" and told["sha256"] == "" and told["known_frames"] == [0, 1, 2, 3]
    assert told["scores"]["model"]["crps"] != told["scores"]["persistence"]["crps"]


def test_dry_run_of_a_forecast_speaks_of_no_network(cast, clip):  # noqa: F811
    told = cast("predict", "persistence", clip, "--dry-run", "--device", "cpu").out
    assert "no network to run" in told and "network call" not in told


def test_files_of_a_forecast_say_which_one_made_them(cast, clip, tmp_path):  # noqa: F811
    assert cast("infill", "linear-blend", clip, "--known", "0,11", "--out", "made", "--device", "cpu").code == 0
    assert json.loads((tmp_path / "made" / "result.json").read_text())["model"] == "linear-blend"
    assert b"model linear-blend, seed 0" in (tmp_path / "made" / "strip.png").read_bytes()


def test_models_list_and_info_tell_of_them(cast):  # noqa: F811
    assert set(cast("models", "list", "--json").json["simple_forecasts"]) == set(BASELINES)
    assert cast("models", "info", "analog", "--json").json["sample"]["neighbours"] == 1
