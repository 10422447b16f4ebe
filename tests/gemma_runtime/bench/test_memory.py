"""Resident memory as this system tells it, and as others would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gemma_runtime.bench import memory
from gemma_runtime.bench.memory import Resident, resident_memory


def test_memory_that_is_touched_shows() -> None:
    grown = []
    # a system that is short of memory may take other pages of this process back in the same moment
    for _ in range(3):
        before = resident_memory()
        held = os.urandom(64 << 20)
        after = resident_memory()
        assert after.peak is not None
        assert after.peak >= len(held)
        if sys.platform not in ("linux", "win32"):
            return
        assert before.now is not None
        assert after.now is not None
        assert after.peak >= after.now
        grown.append(after.now - before.now)
        del held
    assert max(grown) > 60 << 20


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
