"""Shapes and types of annotated functions are checked in tests only; fixtures that several tests share."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
hook = install_import_hook(
    ["framecast.system", "framecast.diffusion", "framecast.nn", "framecast.metrics"], "beartype.beartype"
)
hook.__enter__()

import torch  # noqa: E402

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache folder."""
    monkeypatch.setenv("FRAMECAST_CACHE", str(tmp_path / "cache"))


def real_videos() -> list[Path]:
    """Real clips for decoding tests, where they are at hand."""
    folder = Path(os.environ.get("FRAMECAST_VIDEOS", ROOT.parent / "shared" / "videos"))
    return sorted(folder.glob("*.*")) if folder.is_dir() else []
