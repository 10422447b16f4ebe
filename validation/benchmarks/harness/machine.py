"""Which machine a figure comes from: enough to judge it elsewhere. Nothing that identifies the user."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil

__all__ = ["describe_machine", "one_line"]

# how kernels name what inference code asks for: x86 flags, then ARM features
_INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_tile": "AMX",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "asimddp": "dot product",
    "asimdhp": "FP16",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}


def describe_machine(work: Path) -> dict[str, Any]:
    """The `machine` part of the results; `work` names the file system that is written to."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "instruction_sets": [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags],
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(logical=True),
        # a container or taskset may allow fewer
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "swap_bytes": psutil.swap_memory().total,
        "gpus": _gpus(),
        "operating_system": _operating_system(),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": _file_system(work),
        "python": platform.python_version(),
    }


def one_line(machine: dict[str, Any]) -> str:
    """For a table's or a chart's head."""
    sets = [name for name in machine["instruction_sets"] if name not in ("FMA", "F16C")]
    return (
        f"{machine['cpu']}, {machine['cores_usable']} cores ({', '.join(sets) or machine['architecture']}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['operating_system']}"
    )


def _cpu() -> tuple[str, set[str]]:
    """Model name and flags."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    if not fields and platform.system() == "Darwin":
        fields["model name"] = _said(["sysctl", "-n", "machdep.cpu.brand_string"])
        # every Mac with an ARM processor has these
        fields["Features"] = "asimd asimddp asimdhp" if platform.machine() == "arm64" else ""
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, set((fields.get("flags") or fields.get("Features") or "").split())


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    text = _said(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    return [line.strip() for line in text.splitlines() if line.strip()]


def _said(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _operating_system() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.platform()


def _file_system(work: Path) -> str:
    """Type of the file system, of the mount with the longest name above the folder."""
    target = work.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if target.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
