"""A tiny RaMViD with fresh weights, a clip for it, and a way to run command lines."""

import json
from dataclasses import dataclass

import pytest
import torch

from framecast.checkpoint import PartInfo, build_system, save_model
from framecast.cli.main import main
from framecast.data.array_file import write_array
from framecast.experiment import VideoSpec, to_plain
from tests.tiny import ramvid


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """8 × 8 grey pixels, 5 frames at 10 fps; the weights are small random numbers, so that frames differ."""
    experiment = ramvid()
    video = VideoSpec(channels=1, height=8, width=8, clip_frames=5, fps=10.0)
    system = build_system("ramvid", to_plain(experiment.model), video, to_plain(experiment.sample))
    rng = torch.Generator().manual_seed(0)
    for part in system.parts().values():
        for weight in part.parameters():
            weight.data += 0.05 * torch.randn(weight.shape, generator=rng)
    parts = {name: PartInfo(stage="diffusion", step=7, weights="raw") for name in system.parts()}
    return save_model(tmp_path_factory.mktemp("models") / "tiny", system, parts=parts, provenance={"data": "none"})


def bundle(folder, name="vortex-ramvid"):
    """An untrained model of 16 frames of 32 × 32 grey pixels under a bundled name; returns what BUNDLED must be."""
    experiment = ramvid()
    model = {**to_plain(experiment.model), "patch": 8}
    video = VideoSpec(channels=1, height=32, width=32, clip_frames=16)
    system = build_system("ramvid", model, video, to_plain(experiment.sample))
    parts = {part: PartInfo(stage="diffusion", step=1, weights="raw") for part in system.parts()}
    save_model(folder / name, system, parts=parts, provenance={})
    return folder


def make_clip(path, *, frames=12, fps=10.0, channels=1, size=(8, 8)):
    rng = torch.Generator().manual_seed(frames)
    pixels = torch.randint(0, 256, (frames, channels, *size), generator=rng, dtype=torch.uint8)
    return write_array(path, pixels, fps=fps, value_range=None, generated_by={"by": "test"})


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cast(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return Ran(code, told.out, told.err)

    return run


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "push.npz")
