"""The README's Python lines, run as they stand: only sizes and step counts are made small."""

import dataclasses
import re
from pathlib import Path

import torch

import framecast
from framecast.cli import demo
from framecast.cli.demo import Shown
from framecast.cli.main import main
from framecast.data.video_file import write_video
from framecast.systems.ramvid import published
from tests.cli.conftest import bundle
from tests.tiny import ramvid

README = Path(__file__).parents[1] / "README.md"
SMALLER = {"steps=50": "steps=2", "frames=64": "frames=12", "max_steps=20_000": "max_steps=2"}


def sized(size: int, channels: int):
    """A tiny experiment for frames of this size."""
    experiment = ramvid()
    data = dataclasses.replace(experiment.data, dir="", size=size, channels=channels)
    return dataclasses.replace(experiment, data=data, model=dataclasses.replace(experiment.model, patch=size // 4))


def test_readme_lines_run_after_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("framecast.checkpoint.BUNDLED", bundle(bundle(tmp_path / "bundled", "vortex-rvd")))
    monkeypatch.setattr(demo, "SHOWN", Shown("bouncing32", (1, 1), infill=(0, 5, 10, 15), samples=2))
    assert main(["demo", "--device", "cpu", "-q"]) == 0
    (tmp_path / "my_videos").mkdir()
    for name in ("one", "two"):
        moving = (5 * torch.arange(40, dtype=torch.uint8))[:, None, None, None].repeat(1, 3, 32, 48)
        write_video(tmp_path / "my_videos" / f"{name}.mp4", moving, 20.0, comment="test")
    monkeypatch.setitem(published.PRESETS, "tiny32", lambda: sized(32, 3))

    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    for shown, small in SMALLER.items():
        assert shown in lines
        lines = lines.replace(shown, small)
    names: dict = {}
    exec(lines, names)

    assert names["future"].video.shape == (3, 20, 1, 32, 32)
    saved = {path.name for path in (tmp_path / "out" / "flow").iterdir()}
    assert {"sample_00.mp4", "sample_02.mp4", "strip.png", "samples.npz", "result.json"} <= saved
    middle, clip = names["middle"], names["clip"]
    assert torch.equal(torch.as_tensor(middle.video)[0, [0, 1, 14, 15]], clip.frames[[0, 1, 14, 15]])
    assert names["fresh"].video.shape[:2] == (4, 12)
    assert names["run"].steps == 2
    assert names["run"].model.video == framecast.load(names["run"].dir).video
