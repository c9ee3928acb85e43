"""Sets beside what a model's own codec makes of real clips: rf3d*, and given frames as a model decodes them."""

import json
from dataclasses import replace

import pytest
import torch

from framecast.cli.console import Console
from framecast.cli.judged import tell
from framecast.evaluate.baselines import baseline
from framecast.evaluate.feature_cache import FeatureCache
from framecast.evaluate.kept import ABOUT, Kept, identity
from framecast.evaluate.plan import Plan, sampling
from framecast.evaluate.protocols import PROTOCOLS
from framecast.evaluate.result import model_deviations, result
from framecast.evaluate.run import evaluate
from framecast.evaluate.samples import Computed, Made
from framecast.experiment import VideoSpec
from framecast.generate import Model
from framecast.systems import resolve
from tests.evaluate.flows import write_flows
from tests.tiny import video_vqvae

CPU = torch.device("cpu")
STARRED = ["rf3d-v1* appearance", "rf3d-v1* motion"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_flows(tmp_path_factory.mktemp("set"), frames=80, train=0)


@pytest.fixture(scope="module")
def model():
    """Untrained; 12 frames of 32 × 32 grey pixels in 3 × 2 × 2 and 6 × 4 × 4 codes."""
    torch.manual_seed(0)
    config = replace(video_vqvae().model, tokenizer=replace(video_vqvae().model.tokenizer, first_kernel=(4, 16, 16)))
    kind = resolve("framecast.systems.video_vqvae.video_vqvae:VideoVQVAE")
    return Model(kind(config, VideoSpec(channels=1, height=32, width=32, clip_frames=12), video_vqvae().sample))


class Perfect:
    """Draws what really follows, as a codec makes it: every second row and column."""

    name, most = "perfect", 1

    def __init__(self, given="exact", codec=True):
        self.codec, self.record = codec, {"name": self.name, "sample": {"given": given}}

    def samples(self, case, window, clip, count):
        video = coarse(clip)
        if self.record["sample"]["given"] == "exact":
            video[list(case.known)] = clip.frames[list(case.known)]
        return Made(video[None], 0.0, clip.value_range)

    def reconstructed(self, clip):
        return coarse(clip) if self.codec else None


def coarse(clip):
    return clip.frames[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)


def judged(folder, tmp_path, source, name="smoke-lbm", windows=4):
    rules = replace(PROTOCOLS[name], paired=None, metrics=("rf3d", "rf3d*"))
    plan = Plan(rules=rules, data=folder, windows=windows, cache=FeatureCache(tmp_path / "features.sqlite"))
    return result(plan, source, evaluate(plan, source), device=CPU)


@pytest.mark.parametrize(("name", "given"), [("smoke-lbm", "exact"), ("smoke-lbm", "model"), ("smoke-lbm-16", "exact")])
def test_perfect_draws_through_a_codec_are_at_no_starred_distance(folder, tmp_path, name, given):
    told = judged(folder, tmp_path, Perfect(given), name)
    sets = told["cases"][0]["forecasts"][0]["sets"]
    for part in ("appearance", "motion"):
        assert sets[f"rf3d-v1* {part}"]["value"] < 1e-4 < 1e-2 < sets[f"rf3d-v1 {part}"]["value"]
        assert "says nothing between models of other codecs" in sets[f"rf3d-v1* {part}"]["note"]
        assert "codec" not in sets[f"rf3d-v1 {part}"]["note"]


def test_only_what_has_a_codec_is_starred_and_nothing_is_missed(folder, tmp_path):
    for codec in (True, False):
        told = judged(folder, tmp_path, Perfect(codec=codec))
        mine, *simple = told["cases"][0]["forecasts"]
        assert [name for name in mine["sets"] if name in STARRED] == (STARRED if codec else [])
        assert simple and not any("*" in name for one in simple for name in one["sets"])
        assert not any("not computed" in line for line in told["deviations"])


def test_starred_figures_have_lines_of_their_own_in_a_terminal(folder, tmp_path, capsys):
    tell(judged(folder, tmp_path, Perfect()), Console())
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("rf3d-v1 ")).split()[:3] == [
        "rf3d-v1",
        "appearance",
        "motion",
    ]
    assert [line.split()[:3] for line in lines if line.startswith("rf3d-v1*")] == [
        ["rf3d-v1*", part, "perfect"] for part in ("appearance", "motion")
    ]
    notes = [line for line in lines if "own codec" in line]  # the same of both parts, told once
    assert len(notes) == 1 and notes[0].startswith("  rf3d-v1* appearance, rf3d-v1* motion: drawn frames")


def test_kept_samples_are_taken_whatever_figures_were_made_of_them(model, tmp_path):
    computed, rules = Computed(model), PROTOCOLS["smoke-lbm"]
    Kept(computed, tmp_path / "samples", identity(rules, computed))
    about = tmp_path / "samples" / ABOUT
    told = json.loads(about.read_text())
    told["protocol"]["metrics"] = ["crps"]  # as it was written before
    about.write_text(json.dumps(told))
    Kept(computed, tmp_path / "samples", identity(replace(rules, metrics=("crps", "rf3d*")), computed))
    with pytest.raises(ValueError, match=r"protocol\.seed: 0 there, 1 here"):
        Kept(computed, tmp_path / "samples", identity(replace(rules, seed=1), computed))


def test_protocols_of_video_vqvae_have_given_frames_decoded_without_being_asked(model, folder, tmp_path):
    plan = Plan(rules=PROTOCOLS["vqvae-k600-fvd-64"], data=folder)
    case, clip = plan.rules.cases[0], Plan(rules=PROTOCOLS["smoke-lbm"], data=folder, windows=1)
    clip = clip.cut(case, clip.rules.sets).clips[0]
    stated, other = (Computed(model, options=sampling(plan, model, told)) for told in ({}, {"given": "exact"}))
    assert model_deviations(plan, stated) == [] and model_deviations(plan, other) == ["given exact instead of model"]
    decoded, exact = (source.samples(case, "0", clip, 1).video[0, :4] for source in (stated, other))
    assert torch.equal(exact, clip.frames[:4]) and not torch.isclose(decoded, exact).any(dim=-1).all()
    simple = baseline("persistence")
    held = Computed(simple, options=sampling(plan, simple))
    assert torch.allclose(held.samples(case, "0", clip, 1).video[0, :4], clip.frames[:4], atol=1e-6)  # has no other


def test_codec_of_short_pieces_reconstructs_longer_windows(model, folder, tmp_path):
    told = judged(folder, tmp_path, Computed(model), "smoke-lbm-16", windows=2)
    sets = told["cases"][0]["forecasts"][0]["sets"]
    assert set(STARRED) <= set(sets) and sets[STARRED[0]]["n_real"] == 2


def test_windows_too_short_for_a_codec_cost_the_starred_figures_alone(folder, tmp_path):
    class Long(Perfect):
        def reconstructed(self, clip):
            raise ValueError("the model encodes 32 at once.")

    told = judged(folder, tmp_path, Long())
    assert set(told["cases"][0]["forecasts"][0]["sets"]).isdisjoint(STARRED)
    assert any("rf3d-v1* is not computed: the model encodes 32 at once." in line for line in told["deviations"])
