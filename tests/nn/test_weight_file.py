"""Files of weights: the kinds that are read, and one sentence for everything else."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from framecast.nn.weight_file import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}


def write(path, kind):
    if kind == "safetensors":
        safetensors.torch.save_file(STATE, str(path))
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in STATE.items()})
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "torch")
    return path


@pytest.mark.parametrize("kind", ["torch", "old torch", "npz", "safetensors"])
def test_every_kind_is_known_by_its_content(kind, tmp_path):
    found = read_weights(write(tmp_path / "weights", kind), meant="a toy")
    assert torch.equal(found["a.weight"], STATE["a.weight"]) and found["a.count"].item() == 7


def test_halves_wrappers_and_prefixes_are_taken_off(tmp_path):
    inside = {f"module.{name}": tensor.half() for name, tensor in STATE.items()}
    torch.save({"epoch": 3, "state_dict": inside}, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt", meant="a toy")
    assert set(found) == set(STATE) and found["a.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>Sign in</html>", "is a web page, not the weights of a toy"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "only points to the weights of a toy"),
        (b"\x00" * 100, "is not a file of weights of a toy: it was written by none of"),
        (b"PK\x03\x04 and no more", "is damaged or cut short"),
        (b"\x80\x02}q", "is damaged or cut short"),
        (pickle.dumps({"a": open}, protocol=2), "holds objects other than tensors"),
    ],
)
def test_other_files_are_refused_in_one_sentence(content, said, tmp_path):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=said) as refused:
        read_weights(tmp_path / "file.pt", meant="a toy")
    assert "file.pt" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["torch", "old torch", "npz", "safetensors"])
def test_files_cut_short_are_refused(kind, tmp_path):
    path = write(tmp_path / "weights", kind)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_weights(path, meant="a toy")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": torch.tensor([1.0, torch.nan])}, "a holds values that are not numbers"),
        ({"a": torch.ones(2), "step": 3}, "'step' is none"),
        ({}, "empty"),
        ([torch.ones(2)], "holds a list"),
    ],
)
def test_other_content_is_refused(content, said, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=said):
        read_weights(tmp_path / "a.pt", meant="a toy")


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="is not there; give the file of weights of a toy"):
        read_weights(tmp_path / "gone.pt", meant="a toy")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        read_weights(tmp_path, meant="a toy")
