# SPDX-License-Identifier: Apache-2.0
"""What every system promises, checked on a tiny one of each kind; see `tests.tiny` for how a new one is picked up."""

import dataclasses
import random

import pytest
import torch

import framecast
from framecast.assets import Assets
from framecast.checkpoint import PartInfo, build_system, load_system, save_model
from framecast.draws import draws
from framecast.experiment import VideoSpec, to_plain
from framecast.generate import Model, complete
from framecast.systems import SYSTEMS
from framecast.task import Task, UnsupportedTask
from framecast.train.run import run
from framecast.video import Clip
from tests.tiny import TINY, TOY, change, write_clips

NAMES = sorted({"toy", *SYSTEMS})
CODED = [name for name, row in SYSTEMS.items() if "reconstruct" in row.tasks and name in TINY]
STAGES = [(name, stage.name) for name in NAMES if name in TINY for stage in dataclasses.fields(TINY[name]().stages)]


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "toy", TOY)


def settings_of(experiment, stage=None):
    return getattr(experiment.stages, stage or dataclasses.fields(experiment.stages)[0].name)


def build(name):
    """A tiny system whose weights are all shaken, zero-initialised layers included."""
    experiment = TINY[name]()
    size, frames = experiment.data.size, settings_of(experiment).clip_frames
    video = VideoSpec(channels=experiment.data.channels, height=size, width=size, clip_frames=frames)
    torch.manual_seed(3)
    system = build_system(name, to_plain(experiment.model), video, to_plain(experiment.sample))
    with torch.no_grad():
        for weight in system.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    return system.eval()


def clips(system, *, frames, rows=3):
    """Smooth clips in -1 to 1, each another."""
    v = system.video
    phase = torch.arange(rows).view(-1, 1, 1, 1, 1) + 0.4 * torch.arange(frames).view(1, -1, 1, 1, 1)
    place = torch.arange(v.height).view(-1, 1) + 0.5 * torch.arange(v.width)
    return (0.8 * torch.sin(phase + place)).expand(rows, frames, v.channels, v.height, v.width).contiguous()


def tasks(system):
    """Tasks of all verbs around the system's clip length, and masks that nobody would think of."""
    length, chance = system.video.clip_frames, random.Random(0)
    found = [Task.predict(c, h) for c in (1, 2, 4, length) for h in (1, 2, length - 1, 2 * length + 1)]
    found += [Task.generate(n) for n in (1, length, 2 * length + 3)]
    found += [Task.interpolate(n, f) for n in (2, 5) for f in (2, 3)]
    found += [Task.infill([n - 1], n) for n in (2, length, 3 * length)]
    for _ in range(150):
        n = chance.randint(2, 4 * length)
        found.append(Task.infill(chance.sample(range(n), chance.randint(1, n - 1)), n))
    return found


def supported(system):
    """The shortest task of each verb that the system answers."""
    answered = {}
    for task in sorted(tasks(system), key=len):
        try:
            windows = system.plan(task.known, system.options)
        except UnsupportedTask:
            continue
        if windows:
            answered.setdefault(task.verb, task)
    return answered


def answer(system, task, *, seed=0, rows=(0, 1, 2), video=None):
    video = clips(system, frames=len(task), rows=len(rows)) if video is None else video
    given = video[:, [i for i, known in enumerate(task.known) if known]]
    return video, complete(system, given, task, rng=draws(seed, rows))


@pytest.mark.parametrize("name", NAMES)
def test_system_has_a_tiny_experiment(name):
    assert name in TINY, f"add a tiny experiment of {name} to the table in tests/tiny.py"


@pytest.mark.parametrize("name", NAMES)
def test_plan_draws_every_missing_frame_once_and_tells_the_truth(name):
    system, planned = build(name), 0
    for task in tasks(system):
        try:
            windows = system.plan(task.known, system.options)
        except UnsupportedTask as refusal:
            assert str(refusal).strip().endswith((".", ")")), refusal
            continue
        finished, planned = set(i for i, known in enumerate(task.known) if known), planned + 1
        for window in windows:
            assert len(window.frames) == len(window.known) == len(set(window.frames))
            marked = {i for i, known in zip(window.frames, window.known) if known}
            assert marked == finished & set(window.frames), (task, window)
            assert set(range(len(task))) & set(window.frames) - finished, "a window that draws nothing"
            finished |= {i for i in window.frames if 0 <= i < len(task)}
        assert finished == set(range(len(task))), task
    assert planned


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_of_the_table_is_answered(name):
    wanted = {"predict", "infill", "interpolate", "generate"} & set(SYSTEMS[name].tasks)
    assert wanted <= set(supported(build(name)))


@pytest.mark.parametrize("name", NAMES)
def test_unsupported_task_is_refused_before_any_computation(name):
    system = build(name)
    for part in system.parts().values():
        for module in part.modules():
            module.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    for task in tasks(system):
        try:
            system.plan(task.known, system.options)
        except UnsupportedTask:
            with pytest.raises(UnsupportedTask):
                answer(system, task)


@pytest.mark.parametrize("name", NAMES)
def test_known_frames_come_back_bit_identical(name):
    system = build(name)
    for task in supported(system).values():
        video, made = answer(system, task)
        known = list(task.known)
        assert made.shape == video.shape
        assert torch.equal(made[:, known], video[:, known])
        assert torch.isfinite(made).all()


@pytest.mark.parametrize("name", NAMES)
def test_values_at_unknown_frames_are_never_looked_at(name):
    system = build(name)
    for task in supported(system).values():
        window = system.plan(task.known, system.options)[0]
        known = torch.tensor(window.known)
        frames = clips(system, frames=len(known))
        results = []
        for filler in (0.0, 7.0):
            given = torch.where(known.view(1, -1, 1, 1, 1), frames, torch.full_like(frames, filler))
            results.append(system.sample(given, known, rng=draws(0, range(3)), options=system.options)[0])
        assert torch.equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_video_and_another_seed_another(name):
    system = build(name)
    for task in supported(system).values():
        first, again, other = (answer(system, task, seed=seed)[1] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_row_does_not_depend_on_its_neighbours(name):
    system = build(name)
    for task in supported(system).values():
        video, together = answer(system, task)
        _, alone = answer(system, task, rows=(2,), video=video[2:])
        torch.testing.assert_close(alone, together[2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_sampling_draws_nothing_from_the_global_generator(name):
    system = build(name)
    for task in supported(system).values():
        torch.manual_seed(11)
        before = torch.get_rng_state()
        answer(system, task)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_system_samples_the_same(name, tmp_path):
    system = build(name)
    parts = {part: PartInfo(stage=part, step=1) for part in system.parts()}
    again = load_system(save_model(tmp_path / "m", system, parts=parts, provenance={}))
    for task in supported(system).values():
        assert torch.equal(answer(again, task)[1], answer(system, task)[1])


# ---- codecs


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_what_can_reconstruct_has_a_codec_and_nothing_else_has(name):
    codec = build(name).codec
    assert (codec is not None) == ("reconstruct" in SYSTEMS[name].tasks)


@pytest.mark.parametrize("name", CODED)
@torch.no_grad()
def test_codec_gives_back_clips_of_its_length(name):
    system = build(name)
    codec = system.codec
    assert codec.parts and set(codec.parts) <= system.parts().keys()
    video = clips(system, frames=codec.frames)
    code = codec.encode(video)
    made = codec.decode(code)
    assert made.shape == video.shape and made.dtype == torch.float32
    assert torch.isfinite(made).all() and made.abs().max() <= 1
    assert all(len(tensor) == len(video) for tensor in code.values())
    assert all(map(torch.equal, code.values(), codec.encode(video).values()))
    assert torch.equal(made, codec.decode(code))


@pytest.mark.parametrize("name", CODED)
@torch.no_grad()
def test_code_of_a_clip_does_not_depend_on_its_neighbours(name):
    system = build(name)
    video = clips(system, frames=system.codec.frames)
    code, alone = system.codec.encode(video), system.codec.encode(video[1:2])
    for key, tensor in alone.items():
        torch.testing.assert_close(tensor, code[key][1:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(system.codec.decode(alone), system.codec.decode(code)[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CODED)
@torch.no_grad()
def test_stored_code_is_whole_numbers_that_fit_its_bits_and_tells_nearly_the_same(name):
    system = build(name)
    codec, video = system.codec, clips(system, frames=system.codec.frames)
    code = codec.encode(video)
    stored = codec.stored(code)
    assert stored.keys() == code.keys()
    values = sum(tensor[0].numel() for tensor in stored.values())
    most = max(int(tensor.max()) for tensor in stored.values())
    assert not any(tensor.is_floating_point() or bool((tensor < 0).any()) for tensor in stored.values())
    assert codec.bits(code) > 0 and most < 2 ** (codec.bits(code) / values)
    spread = codec.decode(code).std()
    assert (codec.decode(stored) - codec.decode(code)).abs().max() < 0.1 * spread


@pytest.mark.parametrize("name", CODED)
@torch.no_grad()
def test_views_tell_less_each_in_its_own_way(name):
    system = build(name)
    codec, video = system.codec, clips(system, frames=system.codec.frames)
    code = codec.encode(video)
    pictures = [codec.decode(code), *(codec.decode(codec.only(code, view)) for view in codec.views)]
    assert len(pictures) > 1
    for i, one in enumerate(pictures):
        assert one.shape == video.shape and one.abs().max() <= 1
        assert not any(torch.equal(one, other) for other in pictures[:i])
    with pytest.raises(ValueError, match="nonsense"):
        codec.only(code, "nonsense")


@pytest.mark.parametrize("name", CODED)
def test_clips_of_any_length_from_a_piece_on_are_reconstructed(name):
    system = build(name)
    length, model = system.codec.frames, Model(system)
    frames = (clips(system, frames=3 * length)[0] * 127.5 + 127.5).to(torch.uint8)
    whole = model.reconstruct(Clip(frames))
    for count in (length, length + 1, 2 * length, 3 * length - 1):
        made = model.reconstruct(Clip(frames[:count]))
        assert made.video.shape == frames[:count].shape and made.video.dtype == torch.uint8
        full = count // length * length
        assert torch.equal(made.video[:full], whole.video[:full])  # pieces know nothing of each other
        assert made.figures["pieces"] == -(-count // length)
    with pytest.raises(ValueError, match=f"{length - 1} frame.*encodes {length} at once"):
        model.reconstruct(Clip(frames[: length - 1]))


@pytest.mark.parametrize("name", CODED)
def test_reconstruct_needs_the_parts_of_the_codec_and_no_other(name, tmp_path):
    system = build(name)
    parts = {part: PartInfo(stage=part, step=1) for part in system.parts()}
    coder = save_model(
        tmp_path / "coder", system, parts={part: parts[part] for part in system.codec.parts}, provenance={}
    )
    model = framecast.load(coder, device="cpu", verb="reconstruct")
    clip = Clip((clips(system, frames=system.codec.frames)[0] * 127.5 + 127.5).to(torch.uint8))
    assert torch.equal(model.reconstruct(clip).video, Model(system).reconstruct(clip).video)
    assert model.untrained.keys() == parts.keys() - set(system.codec.parts)
    with pytest.raises(ValueError, match=r"no trained part .*; train it: framecast train … --stage"):
        framecast.load(coder, device="cpu")


# ---- stages


def stage_of(system, stage, tmp_path, **changes):
    settings = settings_of(change(TINY[system.name](), **changes), stage)
    return system.stage(stage, settings, Assets(tmp_path))


def loss_of(stage, video, *, rows, turn, step=0):
    rng = draws(5, rows, step=step)
    with torch.no_grad():
        examples = stage.examples(video, torch.ones(video.shape[:2], dtype=torch.bool), rng)
    return stage.loss(examples, step=step, turn=turn, rng=rng)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_stage_learns_parts_of_the_system_and_gives_previews(name, stage, tmp_path):
    system = build(name)
    made = stage_of(system, stage, tmp_path)
    learning = {part for group in made.groups().values() for part in group.modules}
    assert learning & system.parts().keys()
    assert made.turn(0) in made.groups()
    assert 1 <= made.min_frames <= made.clip_frames
    video = clips(system, frames=made.clip_frames, rows=2)
    preview = made.preview(video, draws(0, range(2)))
    assert preview.shape == video.shape
    assert torch.isfinite(preview).all()


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_unknown_stage_is_refused(name, stage, tmp_path):
    with pytest.raises(ValueError, match="stage"):
        build(name).stage("nonsense", settings_of(TINY[name](), stage), Assets(tmp_path))


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_every_weight_of_a_group_gets_a_gradient(name, stage, tmp_path):
    system = build(name).train()
    made = stage_of(system, stage, tmp_path)
    video = clips(system, frames=made.clip_frames, rows=4)
    made.start(video, draws(0, range(4)))
    with torch.no_grad():  # what is a stage's own as well: where a fresh one says 0, hinges may pass nothing on
        for name, module in ((n, m) for group in made.groups().values() for n, m in group.modules.items()):
            for weight in () if name in system.parts() else module.parameters():
                weight.add_(0.5 * torch.randn(weight.shape))
    for turn, group in made.groups().items():
        reached = set()
        for step in range(4):  # what a draw may leave out in one step
            system.zero_grad()
            loss = loss_of(made, video, rows=range(4 * step, 4 * step + 4), turn=turn, step=step)
            assert torch.isfinite(loss.total)
            assert not any(term.requires_grad for term in loss.terms.values())
            loss.total.backward()
            for part, module in group.modules.items():
                named = module.named_parameters()
                # several processes can only average gradients that all of them have: none may be left out
                grads = {f"{part}.{n}": p.grad for n, p in named}
                assert [n for n, grad in grads.items() if grad is None] == []
                reached |= {n for n, grad in grads.items() if bool(grad.any())}
        every = {f"{part}.{n}" for part, module in group.modules.items() for n, _ in module.named_parameters()}
        assert every - reached == set()


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_loss_is_the_mean_over_rows_each_with_its_own_noise(name, stage, tmp_path):
    system = build(name)  # evaluation mode: no dropout
    made = stage_of(system, stage, tmp_path)
    video = clips(system, frames=made.clip_frames, rows=4)
    for turn in made.groups():
        whole = loss_of(made, video, rows=range(4), turn=turn).total
        single = [loss_of(made, video[i : i + 1], rows=[i], turn=turn).total for i in range(4)]
        torch.testing.assert_close(torch.stack(single).mean(), whole, atol=1e-5, rtol=1e-4)


OVERFIT = [pytest.param(n, marks=[pytest.mark.slow] * (n == "video_vqvae")) for n in NAMES if n in TINY]


@pytest.mark.parametrize("name", OVERFIT)
def test_every_stage_overfits_four_clips(name, tmp_path):
    folder = write_clips(tmp_path / "clips", files=4, frames=settings_of(TINY[name]()).clip_frames)
    settings = {"max_steps": 120, "checkpoint_every": 120, "log_every": 20}
    experiment = change(TINY[name](), data={"dir": str(folder), "validation": 0.0}, **settings)
    before = None
    for stage in [field.name for field in dataclasses.fields(experiment.stages)]:
        done = run(experiment, stage=stage, from_model=before, out=tmp_path / stage, device="cpu")
        rows = (tmp_path / stage / "metrics.csv").read_text().splitlines()
        columns = rows[0].split(",")
        column = next(i for i, key in enumerate(columns) if key.split("/")[-1] == "loss")
        losses = [float(row.split(",")[column]) for row in rows[1:]]
        assert losses[-1] < losses[0] - 0.4 * abs(losses[0]), losses
        before = done.dir
