"""Resident memory of this process, by what each operating system offers; nothing is installed for it."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from pathlib import Path
from typing import Any

__all__ = ["Resident", "resident_memory"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resident:
    """In bytes, pages of mapped files included; None where the operating system does not tell."""

    now: int | None
    peak: int | None


def resident_memory() -> Resident:
    """What of this process lies in memory now, and the most that ever did."""
    if sys.platform == "win32":
        return _windows()
    found = _linux(Path("/proc/self/status"))
    return found if found.peak is not None else _posix()


def _linux(status: Path) -> Resident:
    """VmRSS and VmHWM, in KiB: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html."""
    try:
        text = status.read_text(encoding="ascii", errors="replace")
    except OSError:
        return Resident(now=None, peak=None)
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}
    now, peak = (int(sizes[name][0]) * 1024 if sizes.get(name) else None for name in ("VmRSS", "VmHWM"))
    return Resident(now=now, peak=peak)


def _posix() -> Resident:
    """The peak alone: no call of POSIX tells the present size."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, KiB elsewhere
    return Resident(now=None, peak=peak if sys.platform == "darwin" else peak * 1024)


def _windows() -> Resident:
    """The working set: https://learn.microsoft.com/windows/win32/api/psapi/ns-psapi-process_memory_counters."""

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("working_set", ctypes.c_size_t),
            *((name, ctypes.c_size_t) for name in ("a", "b", "c", "d", "page_file", "peak_page_file")),
        )

    counters = Counters(size=ctypes.sizeof(Counters))
    windll: Any = getattr(ctypes, "windll", None)
    if windll is None:
        return Resident(now=None, peak=None)
    kernel32 = windll.kernel32
    # a handle is as wide as a pointer; ctypes would cut it to 32 bits
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    ask = kernel32.K32GetProcessMemoryInfo
    ask.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    if not ask(kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.size):
        return Resident(now=None, peak=None)
    return Resident(now=int(counters.working_set), peak=int(counters.peak_working_set))
