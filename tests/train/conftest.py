# SPDX-License-Identifier: Apache-2.0
"""The tests' own systems, known while a test of training runs, and a folder of its own to run in."""

import pytest

from framecast.systems import SYSTEMS
from tests.tiny import TOY, write_clips
from tests.train.duel import DUEL


@pytest.fixture(autouse=True)
def _systems(monkeypatch, tmp_path):
    monkeypatch.setitem(SYSTEMS, "toy", TOY)
    monkeypatch.setitem(SYSTEMS, "duel", DUEL)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clips(tmp_path):
    """A folder of eight short clips."""
    return write_clips(tmp_path / "clips")
