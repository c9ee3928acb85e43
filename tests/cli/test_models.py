"""Models handed on: to a folder, to a hub and back."""

import shutil
from pathlib import Path

import pytest

from framecast.checkpoint import describe


def test_models_export_copies_what_is_needed_to_draw(cast, model_folder, tmp_path):
    ran = cast("models", "export", model_folder, "mine", "--json")
    assert ran.code == 0 and ran.json["out"] == "mine"
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {path.name for path in model_folder.iterdir()}
    assert describe("mine").digest == describe(model_folder).digest == ran.json["sha256"]
    assert cast("models", "export", model_folder, "mine").code == 1  # nothing is overwritten


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub in a folder, in place of the one on the net."""

    class Hub:
        def create_repo(self, name, *, exist_ok, private):
            assert exist_ok and private
            (tmp_path / "hub" / name).mkdir(parents=True)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            for name in allow_patterns:
                shutil.copy(Path(folder_path) / name, tmp_path / "hub" / repo_id)
            return f"hub:{repo_id}"

    def download(name, *, allow_patterns):
        if not (tmp_path / "hub" / name).is_dir():
            raise OSError("404 not found")
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_models_push_and_pull_exchange_a_model(cast, model_folder, hub):
    ran = cast("models", "push", model_folder, "group/tiny", "--json")
    assert ran.code == 0 and ran.json["address"] == "hub:group/tiny"
    ran = cast("models", "pull", "group/tiny", "--json")
    assert ran.code == 0 and ran.json["out"] == "models/tiny"
    assert describe("models/tiny").digest == describe(model_folder).digest
    assert cast("models", "pull", "group/tiny", "--json").json["out"] == "models/tiny-2"
    assert cast("models", "info", "group/tiny", "--json").json["sha256"] == describe(model_folder).digest


def test_model_the_hub_does_not_have_is_told_in_a_sentence(cast, hub):
    ran = cast("models", "pull", "group/other")
    assert ran.code == 1 and "could not be fetched from the hub" in ran.err and "404" in ran.err
