"""What the operating system tells, held against another witness."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gemma_runtime.doctor import machine as module
from gemma_runtime.doctor.machine import look_at_machine

_ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes asimdhp asimddp sve i8mm\n"


def test_this_machine() -> None:
    machine = look_at_machine()
    assert machine.cores.logical == os.cpu_count()
    assert 1 <= machine.cores.usable <= machine.cores.affinity <= machine.cores.logical
    assert machine.memory.total is not None
    assert machine.memory.available is not None
    assert 1 << 28 < machine.memory.available <= machine.memory.total


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc/cpuinfo")
def test_features_are_the_kernels() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    features = look_at_machine().features
    assert features.get("AVX2", False) == ("avx2" in flags)
    assert features.get("AVX-512 VNNI", False) == ("avx512_vnni" in flags)
    assert features.get("dotprod", False) == ("asimddp" in flags)


def test_an_arm_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read", lambda path: _ARM if path == "/proc/cpuinfo" else Path(path).read_text())
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert look_at_machine().features == {
        "NEON": True,
        "fp16": True,
        "dotprod": True,
        "i8mm": True,
        "bf16": False,
        "SVE": True,
    }


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read", lambda path: "")
    found = look_at_machine()
    assert set(found.features.values()) <= {True, False, None}
    if sys.platform == "linux":
        assert set(found.features.values()) == {None}
        assert (found.memory.total, found.memory.available) == (None, None)


def test_container_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_limit", lambda: 0.5)
    monkeypatch.setattr(module, "memory_limit", lambda: 1 << 28)
    monkeypatch.setattr(module, "memory_used", lambda: 1 << 27)
    found = look_at_machine()
    assert (found.cores.usable, found.cores.cgroup_limit) == (1, 0.5)
    assert (found.memory.available, found.memory.cgroup_limit) == (1 << 27, 1 << 28)
