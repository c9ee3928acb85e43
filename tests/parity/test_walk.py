"""Every folder of reference tensors is of a known kind, and its kind has a test."""

from pathlib import Path

import pytest

from tests.parity.walk import ROOT, all_folders, described, error, kind_of, rows


@pytest.mark.parametrize("folder", all_folders(), ids=lambda path: path.name)
def test_folder_has_a_test(folder):
    kind = kind_of(folder)
    assert kind is not None, f"{folder.name}: no kind begins its name"
    tests = [file.read_text() for file in Path(__file__).parent.glob("test_*.py")]
    assert any(f'folders("{kind}")' in text for text in tests), f"no test walks over folders of kind {kind}"


def test_kind_is_the_longest_prefix():
    names = {"ramvid-shapes": "ramvid-shapes", "ramvid-zz": "ramvid", "pvdm-ddpm-c": "pvdm-ddpm", "other": None}
    assert {name: kind_of(ROOT / name) for name in names} == names


def test_error_is_relative_to_the_largest_value():
    assert error(rows([1.0, 2.5]), rows([1.0, 2.0])) == 0.25


def test_described_names_are_those_of_all_kinds_of_tables():
    assert described("| train.x0 | float32 | [2] | clip |\n| key | dtype |\n") == {"train.x0"}
    assert described("| unet.x | (1, 4) | float32 | latent |\n| key | shape |\n") == {"unet.x"}
    rows_of_many = (
        "| keys (count) | shape |\n| `fwd/x`, `fwd/y`, `...` (12) | [2] | F32 |\n| `gen/n` (1) | [2] | I64 |\n"
    )
    assert described(rows_of_many) == {"fwd/x", "fwd/y", "gen/n"}
