"""Memory of a process and everything that it starts, sampled while it runs.

Two figures, because neither alone is honest:

- `ru_maxrss`, what `/usr/bin/time -v` prints as "Maximum resident set size": kept by the kernel, never misses a peak,
  but it is the peak of the largest single process, waited-for children included, and not their sum. A program that a
  larger one starts inherits the larger one's figure on Linux (until it executes it shares its starter's memory), so
  below the starter's own peak it says nothing: there the kernel's mark of each process's own memory (VmHWM), sampled,
  has to do.
- the sum over the tree, sampled every 20 ms or slower: adds children up, may miss a shorter peak. A process alone
  counts its resident pages. Of several, each counts a page shared with n - 1 others as 1/n (the proportional set size
  of /proc/PID/smaps_rollup): forked children share their parent's pages, and a plain sum would count those again for
  each of them. Where the system has no such file (macOS) the plain sum has to do.

Resident pages include pages of mapped files, which the system drops when others need the room. The sampled
anonymous part (Linux only) is what a program cannot run without.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil

__all__ = ["TreeMemory"]

_INTERVAL_SECONDS = 0.02
# looking for new children walks all processes of the machine: too dear for every sample
_RESCAN_SECONDS = 0.2
# proportional sizes are counted page by page: look less often where that takes long
_LARGEST_SHARE_OF_TIME = 0.05


class TreeMemory:
    """Largest figures seen over all samples.

    Attributes:
        peak_bytes: largest memory of the tree.
        peak_process_bytes: largest memory of one process of it, by the kernel's own mark where there is one.
        peak_anonymous_bytes: largest sum of anonymous pages; None where the system does not say (macOS).
        processes: largest number of processes at once.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = self.peak_process_bytes = 0
        self.peak_anonymous_bytes: int | None = 0 if sys.platform == "linux" else None
        self.processes = 1
        self._pid = pid
        self._tree: list[psutil.Process] = []
        # processes compare by pid and start time, so a reused pid is another one
        self._seen: set[psutil.Process] = set()
        self._next_sample = self._next_scan = 0.0

    def sample(self, now: float) -> None:
        """Looks if it is time to; call it often. `now` is monotonic, in seconds."""
        if now < self._next_sample:
            return
        if now >= self._next_scan:
            self._next_scan = now + _RESCAN_SECONDS
            self._scan()
        self._add_up()
        ended = time.monotonic()
        self._next_sample = max(now + _INTERVAL_SECONDS, now + (ended - now) / _LARGEST_SHARE_OF_TIME)

    def survivors(self) -> list[psutil.Process]:
        """Processes that the root left behind, also those that left its process group."""
        return [process for process in self._seen if process.pid != self._pid and process.is_running()]

    def _scan(self) -> None:
        try:
            root = psutil.Process(self._pid)
            self._tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self._seen.update(self._tree)
        self.processes = max(self.processes, len(self._tree))

    def _add_up(self) -> None:
        alone = len(self._tree) == 1
        total = anonymous = 0
        for process in self._tree:
            try:
                sizes = _resident(process) if alone else _proportional(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            self.peak_process_bytes = max(self.peak_process_bytes, _high_water(process))
            total += sizes[0]
            anonymous += sizes[1]
        self.peak_bytes = max(self.peak_bytes, total)
        if self.peak_anonymous_bytes is not None:
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous)


def _resident(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes, and those of them that no file backs."""
    memory = process.memory_info()
    return memory.rss, memory.rss - getattr(memory, "shared", 0)


def _high_water(process: psutil.Process) -> int:
    """The most that a process ever had resident, as far as the system tells."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    marks = [int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")]
    return marks[0] * 1024 if marks else 0


def _proportional(process: psutil.Process) -> tuple[int, int]:
    """The same with shared pages divided by the number of processes that map them."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except ProcessLookupError as error:
        raise psutil.NoSuchProcess(process.pid) from error
    except OSError:
        return _resident(process)
    kibibytes = {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss")}
    # kernels before 5.4 have the sum alone
    return kibibytes["Pss:"] * 1024, kibibytes.get("Pss_Anon:", kibibytes["Pss:"]) * 1024
