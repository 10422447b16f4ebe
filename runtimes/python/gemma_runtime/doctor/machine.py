"""The machine as a process sees it: processor, cores and memory, containers' limits respected. Nothing but Python."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_runtime.doctor.cgroup import cpu_limit, memory_limit, memory_used

__all__ = ["Cores", "Machine", "Memory", "count_cores", "look_at_machine"]

# What decides the speed of onnxruntime's CPU kernels, as Linux names it in /proc/cpuinfo (arch/x86, arch/arm64).
_X86 = {
    "AVX2": ("avx2",),
    "F16C": ("f16c",),
    "AVX-512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-VNNI": ("avx_vnni",),
    "AMX int8": ("amx_tile", "amx_int8"),
    "AMX bf16": ("amx_tile", "amx_bf16"),
}
_ARM = {
    "NEON": ("asimd",),
    "fp16": ("asimdhp",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "SVE": ("sve",),
}
# the same, as `sysctl` names it on macOS
_MAC = {
    "AVX2": "hw.optional.avx2_0",
    "AVX-512": "hw.optional.avx512f",
    "NEON": "hw.optional.neon",
    "fp16": "hw.optional.arm.FEAT_FP16",
    "dotprod": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}
# and as Windows numbers it (IsProcessorFeaturePresent, winnt.h); what has no number there stays unknown
_WINDOWS = {"AVX2": 40, "AVX-512": 41, "NEON": 19, "dotprod": 43}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cores:
    """Logical processors."""

    # of the machine
    logical: int
    # that this process may be scheduled on
    affinity: int
    # worth of time that its control groups allow, None without a limit
    cgroup_limit: float | None
    # whole ones that remain: what a thread count should not exceed
    usable: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """In bytes; None where the operating system does not tell."""

    total: int | None
    # what can be used without swapping, container limits included
    available: int | None
    cgroup_limit: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts that decide what runs and how fast."""

    platform: str
    architecture: str
    processor: str | None
    # feature -> whether it is there; None where the operating system does not tell
    features: Mapping[str, bool | None]
    cores: Cores
    memory: Memory


def look_at_machine() -> Machine:
    """What the operating system tells about processor, cores and memory."""
    architecture = platform.machine() or "unknown"
    words = _cpuinfo()
    return Machine(
        platform=platform.platform(),
        architecture=architecture,
        processor=_processor(words),
        features=_features(architecture, words),
        cores=count_cores(),
        memory=_memory(),
    )


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    found: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _processor(cpuinfo: Mapping[str, str]) -> str | None:
    told = cpuinfo.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor()
    return told or None


def _features(architecture: str, cpuinfo: Mapping[str, str]) -> dict[str, bool | None]:
    names = _ARM if architecture.lower() in ("arm64", "aarch64") else _X86
    words = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    if words:
        return {name: words.issuperset(needed) for name, needed in names.items()}
    return {name: _asked(name) for name in names}


def _asked(name: str) -> bool | None:
    if sys.platform == "darwin" and name in _MAC:
        return {"1": True, "0": False}.get(_sysctl(_MAC[name]))
    if sys.platform == "win32" and name in _WINDOWS:
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(_WINDOWS[name]))
    return None


def count_cores() -> Cores:
    """Processors that there are and that may be used."""
    logical = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    limit = cpu_limit()
    usable = affinity if limit is None else min(affinity, max(1, math.floor(limit)))
    return Cores(logical=logical, affinity=affinity, cgroup_limit=limit, usable=usable)


def _memory() -> Memory:
    total, available = _system_memory()
    limit = memory_limit()
    if limit is not None and total is not None and limit >= total:
        # a limit above what there is limits nothing
        limit = None
    if limit is not None:
        room = max(0, limit - (memory_used() or 0))
        available = room if available is None else min(available, room)
    return Memory(total=total, available=available, cgroup_limit=limit)


def _system_memory() -> tuple[int | None, int | None]:
    """(total, available) in bytes."""
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        total = _sysctl("hw.memsize")
        return (int(total) if total.isdigit() else None), _mac_available()
    lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    sizes = {key: int(value.split()[0]) * 1024 for key, value in lines.items() if value.split()[:1]}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def _mac_available() -> int | None:
    """Free, inactive and speculative pages of `vm_stat`."""
    shown = _output("vm_stat")
    # "Mach Virtual Memory Statistics: (page size of 16384 bytes)"
    size = re.search(r"page size of (\d+)", shown)
    if size is None:
        return None
    pages = 0
    for line in shown.splitlines():
        key, _, value = line.partition(":")
        if key in ("Pages free", "Pages inactive", "Pages speculative"):
            pages += int(value.strip().rstrip("."))
    return pages * int(size[1])


def _windows_memory() -> tuple[int | None, int | None]:
    """GlobalMemoryStatusEx: https://learn.microsoft.com/windows/win32/api/sysinfoapi/ns-sysinfoapi-memorystatusex."""

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "available", "c", "d", "e", "f", "g")),
        )

    status = Status(length=ctypes.sizeof(Status))
    windll: Any = getattr(ctypes, "windll", None)
    if windll is None or not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.total), int(status.available)


def _sysctl(name: str) -> str:
    return _output("sysctl", "-n", name) if sys.platform == "darwin" else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
