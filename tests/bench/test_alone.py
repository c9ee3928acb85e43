"""Measurements in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framecast.bench.alone import alone


@pytest.mark.slow
def test_memory_is_what_the_measurement_itself_took():
    held = alone("tests.bench.heavy:allocate", {"megabytes": 300})
    assert held["memory"] == pytest.approx(300e6, rel=0.1)
    assert held["memory_of_process"] > held["memory"]


@pytest.mark.slow
def test_large_measurement_does_not_hide_a_small_one():
    held = alone("tests.bench.heavy:allocate", {"megabytes": 50, "before": 400})
    assert held["memory"] == pytest.approx(50e6, rel=0.2)


def test_refusal_comes_back_as_its_sentence():
    with pytest.raises(ValueError, match=r"^no such thing here\.$"):
        alone("tests.bench.heavy:refuse", {})


def test_other_failure_comes_back_with_its_last_words():
    with pytest.raises(RuntimeError, match="KeyError: 'x'"):
        alone("tests.bench.heavy:fail", {})


def test_lack_of_memory_says_what_to_do():
    with pytest.raises(ValueError, match="fill: there is no memory left for it; take a smaller --preset"):
        alone("tests.bench.heavy:fill", {})


def test_killed_process_is_told():
    with pytest.raises(ValueError, match="die: its process was ended by signal 9"):
        alone("tests.bench.heavy:die", {})


def test_threads_are_those_asked_for_and_foreign_lines_do_no_harm():
    assert alone("tests.bench.heavy:threads", {}, threads=3) == "3"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's list of processes")
def test_interrupt_leaves_no_process_behind(tmp_path):
    note = tmp_path / "pid"
    code = f"from framecast.bench.alone import alone; alone('tests.bench.heavy:wait', {{'path': {str(note)!r}}})"
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(note.read_text())
    parent.send_signal(signal.SIGINT)  # to it alone
    parent.wait(10)
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process):
    """Whether a process is there and has not ended, be it that nobody has asked for its end yet."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
