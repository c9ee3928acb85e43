"""Every protocol from beginning to end, on a few small clips, with networks whose weights come from a formula."""

import json
import re

import pytest
import torch

import framecast
from framecast.checkpoint import PartInfo, build_system, save_model
from framecast.data.array_file import write_array
from framecast.data.simulate.sets import SETS, simulate
from framecast.evaluate.feature_cache import FeatureCache
from framecast.evaluate.kept import Kept, identity
from framecast.evaluate.plan import Networks, Plan, sampling
from framecast.evaluate.protocols import PROTOCOLS
from framecast.evaluate.report import write_report
from framecast.evaluate.result import result, write
from framecast.evaluate.run import evaluate
from framecast.evaluate.samples import Computed
from framecast.experiment import VideoSpec, to_plain
from framecast.generate import Model
from framecast.metrics.c3d import C3D, Probabilities
from framecast.metrics.features import FeatureNetwork
from framecast.metrics.hash_fill import fill
from framecast.metrics.i3d import I3D
from framecast.metrics.i3d_weights import Preprocessed
from framecast.nn.perceptual import LPIPS
from framecast.systems.rvd.config import RVDConfig, RVDSampling
from framecast.task import UnsupportedTask
from tests.evaluate.flows import write_flows
from tests.metrics.formula_weights import c3d_state, mean_clip
from tests.tiny import ramvid, video_vqvae

RUN = [name for name, rules in PROTOCOLS.items() if rules.task != "record"]
SIDE = 32


class Halved:
    """A codec: every second row and column."""

    frames, parts, views = 16, (), ()

    def encode(self, video):
        return {"code": video[..., ::2, ::2]}

    def decode(self, code):
        return code["code"].repeat_interleave(2, -1).repeat_interleave(2, -2)

    def bits(self, code):
        return 8.0 * code["code"][0, 0].numel()


class Thinned(torch.nn.Module):
    """At most 16 frames of every clip, evenly spaced, since what I3D says of 128 is not at stake here."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, clips):
        return self.network(clips[:, :: max(1, clips.shape[1] // 16)])


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """An untrained model of grey clips, and one of coloured clips that can also reconstruct."""
    experiment, made = ramvid(), {}
    torch.manual_seed(0)  # the same in every process of a parallel run, which share the cache
    for channels in (1, 3):
        video = VideoSpec(channels=channels, height=SIDE, width=SIDE, clip_frames=16)
        system = build_system("ramvid", {**to_plain(experiment.model), "patch": 16}, video, to_plain(experiment.sample))
        parts = {part: PartInfo(stage="diffusion", step=1, weights="raw") for part in system.parts()}
        folder = save_model(tmp_path_factory.mktemp("models") / f"of{channels}", system, parts=parts, provenance={})
        made[channels] = framecast.load(folder, device="cpu")
        made[channels].system.codec = Halved()
    return made


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if folder.name.startswith("popen-") else folder  # of all processes of a parallel run
    return FeatureCache(shared / "features.sqlite")


@pytest.fixture(scope="session")
def i3d():
    network = I3D(eps=1e-5)
    fill(network)
    network = Preprocessed(network.eval().requires_grad_(False), "straight")
    about = {"eps": 1e-5, "eps_from": "given", "names": "piergiaj", "resize": "straight"}
    return FeatureNetwork("i3d", "f" * 64, about, (9, None), 400, Thinned(network))


@pytest.fixture(scope="session")
def c3d():
    with torch.device("meta"):
        network = C3D()
    network.load_state_dict({name.replace("/", "."): tensor for name, tensor in c3d_state().items()}, assign=True)
    mean = torch.from_numpy(mean_clip())[:, :, 8:120, 8:120].contiguous()
    network = Probabilities(network.eval().requires_grad_(False), mean)
    return FeatureNetwork("c3d", "c" * 64, {}, (16, 16), 101, network)


@pytest.fixture(scope="session")
def lpips():
    network = LPIPS("alex")
    fill(network)
    network.files = {"backbone": "a" * 64, "lin": "b" * 64}
    return network


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Two clips in every split, and the open sets, small."""
    root = tmp_path_factory.mktemp("sets")
    for channels in (1, 3):
        for split in ("train", "val", "test"):
            for number in range(2):
                rng = torch.Generator().manual_seed(10 * channels + number)
                frames = torch.randint(0, 256, (130, channels, SIDE, SIDE), generator=rng, dtype=torch.uint8)
                path = root / f"{channels}" / split / f"clip_{number}.npz"
                write_array(path, frames, fps=25.0, value_range=None, generated_by={})
    write_flows(root / "vortex32", frames=204)
    simulate("bouncing32", root / "bouncing32", splits=["test"])
    for run in range(8):
        told = {"set": "simulation128", "split": "test", "number": run, "seed": 0}
        frames = torch.randn(80, 1, 128, 128, generator=torch.Generator().manual_seed(run)).clamp(-1, 1)
        path = root / "simulation128" / "test" / f"run_{run:04d}.npz"
        write_array(path, frames, fps=None, value_range=(-1.0, 1.0), generated_by=told)
    return root


@pytest.fixture(scope="session")
def frame_by_frame(tmp_path_factory):
    """Untrained models that draw one frame after another and were made for shorter clips than protocols ask for."""
    made = {}
    torch.manual_seed(0)
    config = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), noise_levels=10, patch=4)
    for channels in (1, 3):
        video = VideoSpec(channels=channels, height=SIDE, width=SIDE, clip_frames=5)
        system = build_system("rvd", to_plain(config), video, to_plain(RVDSampling(sampler="ddim", steps=2)))
        parts = {part: PartInfo(stage="forecast", step=1, weights="raw") for part in system.parts()}
        folder = save_model(tmp_path_factory.mktemp("rvd") / f"of{channels}", system, parts=parts, provenance={})
        made[channels] = framecast.load(folder, device="cpu")
    return made


def judged(name, model, tree, networks, cache, folder, *, samples=2, options=None):
    """The result of two windows, written with what was shown."""
    rules = PROTOCOLS[name]
    data = tree / rules.set if (tree / rules.set).is_dir() else tree / str(rules.channels)
    plan = Plan(
        rules=rules, data=data, like=model.video, windows=2, samples=samples, networks=networks, cache=cache,
        shown=folder / "shown",
    )  # fmt: skip
    computed = Computed(model, task=rules.task, quantise=rules.quantise, options=options and sampling(plan, model))
    source = Kept(computed, folder / "samples", identity(rules, computed))
    cases = evaluate(plan, source)
    told = result(plan, source, cases, device=torch.device("cpu"))
    write(folder, told, cases)
    return told


@pytest.mark.parametrize("name", RUN)
def test_protocol_runs_and_says_what_it_is_not(name, tree, models, cache, i3d, c3d, lpips, tmp_path):
    rules = PROTOCOLS[name]
    networks = Networks(
        i3d=i3d if {"fvd", "r-fvd", "fvd*"} & set(rules.metrics) else None,
        c3d=c3d if "is" in rules.metrics else None,
        lpips=lpips if "lpips" in rules.metrics else None,
    )
    told = judged(name, models[rules.channels], tree, networks, cache, tmp_path)
    json.dumps(told, allow_nan=False)
    assert told["protocol"] == f"{name}-partial" and told["deviations"]
    assert told["is_not"] and len(told["cases"]) == len(rules.cases)
    assert told["assumed"] or rules.set in SETS
    missing = [line for line in told["deviations"] if "not computed" in line]
    assert missing == [], missing
    for case in told["cases"]:
        mine = case["forecasts"][0]
        for group in rules.metrics:
            assert _has(mine, group), f"{group} is not among {list(mine.get('scores', []))} {list(mine['sets'])}"


@pytest.mark.parametrize(
    ("name", "samples"), [("smoke-lbm", 3), ("smoke-lbm-16", 2), ("smoke-lbm-200", 2), ("smoke-bounce", 10)]
)
def test_frames_drawn_one_by_one_are_judged_at_any_length(name, samples, tree, frame_by_frame, cache, tmp_path):
    told = judged(name, frame_by_frame[1], tree, Networks(), cache, tmp_path, samples=samples)
    mine = told["cases"][0]["forecasts"][0]
    frames = PROTOCOLS[name].cases[0].unknown
    assert mine["by_frame"]["crps_fair"]["frames"] == list(frames) and mine["samples"] == samples
    assert len(mine["ranks"]) == samples + 1 and sum(mine["ranks"]) == 2 * len(frames) * SIDE**2
    if name == "smoke-bounce":
        assert mine["scores"]["mode_coverage"]["mean"] is not None and "best_of_10_psnr" in mine["scores"]


@pytest.mark.parametrize("name", ["rvd-bair", "rvd-sim"])
def test_figures_3_and_4_of_rvd_are_in_the_report(name, tree, frame_by_frame, cache, lpips, tmp_path):
    """1 / CRPS and LPIPS over frames, with their spread, and the map of the 10th drawn frame, which is frame 13."""
    networks = Networks(lpips=lpips)
    told = judged(
        name, frame_by_frame[PROTOCOLS[name].channels], tree, networks, cache, tmp_path, samples=1, options=True
    )
    assert "steps 2 instead of 1600" in told["model_deviations"]
    page = write_report([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    captions = re.findall("<figcaption>([^<]*)", page)
    assert captions[0].startswith("1 / CRPS by frame") and captions[1].startswith("LPIPS (AlexNet) by frame")
    assert all("one standard deviation over windows" in caption for caption in captions[:2])
    assert re.search("Maps of fair CRPS at frames 4, 7, 10, 13, 16, 19 ", page)


@pytest.mark.parametrize(("name", "verb"), [("infill-lbm", "infill"), ("generate-lbm", "generate")])
def test_refusal_names_systems_that_can(name, verb, tree, frame_by_frame, cache, tmp_path):
    with pytest.raises(UnsupportedTask, match=f"rvd draws every frame .* Systems that {verb}: .*ramvid"):
        judged(name, frame_by_frame[1], tree, Networks(), cache, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vqvae-k600-fvd-64", "vqvae-k600-fvd-256"])
def test_protocols_of_video_vqvae_judge_its_given_frames_as_decoded(name, tree, cache, i3d, tmp_path):
    torch.manual_seed(0)
    plain, video = to_plain(video_vqvae().model), VideoSpec(channels=3, height=SIDE, width=SIDE, clip_frames=16)
    plain["tokenizer"]["first_kernel"] = (4, 16, 16)
    model = Model(build_system("video_vqvae", plain, video, to_plain(video_vqvae().sample)))
    told = judged(name, model, tree, Networks(i3d=i3d), cache, tmp_path, samples=1, options=True)
    assert told["model"]["sample"]["given"] == "model" and told["model_deviations"] == []
    sets = told["cases"][0]["forecasts"][0]["sets"]
    assert {"fvd", "fvd*"} <= set(sets) and sets["fvd*"]["value"] != sets["fvd"]["value"]


def _has(forecast, group):
    """Whether figures of a group are there."""
    names = [*forecast.get("scores", {}), *forecast["sets"]]
    starts = {"modes": "mode_", "rf3d": "rf3d-v1 ", "rf3d*": "rf3d-v1* ", "field": "spectrum", "ensemble": "spread"}
    return any(name.startswith(starts.get(group, group)) for name in names)
