"""Resident memory as this system tells it, and as others would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gemma_runtime.bench import memory
from gemma_runtime.bench.memory import Resident, resident_memory

# in a process of its own: one that has run for a while gives out memory that it holds already
_TOUCH = """
import os
from gemma_runtime.bench.memory import resident_memory
before = resident_memory()
held = os.urandom(64 << 20)
after = resident_memory()
print(before.now, after.now, after.peak)
"""


def test_memory_that_is_touched_shows() -> None:
    told = subprocess.run([sys.executable, "-c", _TOUCH], capture_output=True, text=True, check=True).stdout.split()
    assert int(told[2]) >= 64 << 20
    if sys.platform in ("linux", "win32"):
        before, now, peak = map(int, told)
        assert now - before > 60 << 20
        assert peak >= now


def test_linux(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tgemma\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n", encoding="ascii")
    assert memory._linux(status) == Resident(now=1 << 20, peak=2 << 20)
    assert memory._linux(tmp_path / "none") == Resident(now=None, peak=None)


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_without_proc_the_peak_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    told = resident_memory().peak
    monkeypatch.setattr(memory, "_linux", lambda _: Resident(now=None, peak=None))
    found = resident_memory()
    assert found.now is None
    assert found.peak is not None
    assert told is not None
    # a larger process that started this one may have left its mark in ru_maxrss
    assert found.peak >= told // 2
