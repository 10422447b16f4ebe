"""Runs one process to its end, or ends it, and says what it took. POSIX only: wait4 and process groups."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.harness.interrupts import Interrupts
from benchmarks.harness.memory import TreeMemory

__all__ = ["ProcessResult", "run_process"]

# how exact the wall time is
_POLL_SECONDS = 0.005
# between asking a group to end and making it end
_GRACE_SECONDS = 3.0
# what a failed program said last, for the results
_TAIL_BYTES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """What one process took and how it ended."""

    # ok, failed, timeout or interrupted; the reason is empty when it is ok
    status: str
    reason: str
    exit_code: int | None
    seconds: float
    # user and system time of the process and of the children it waited for
    cpu_seconds: float
    # the larger one of the sampled tree's peak and of ru_maxrss (memory.py)
    peak_bytes: int
    peak_process_bytes: int
    peak_anonymous_bytes: int | None
    processes: int
    stdout: str
    log_tail: str


def run_process(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    log: Path,
    time_limit: float,
    interrupts: Interrupts,
) -> ProcessResult:
    """Starts a command in a session of its own and waits for it; nothing that it started outlives the call.

    Args:
        command: executable and arguments.
        environment: the whole environment.
        directory: where it runs.
        log: stdout and stderr go to files of this name with .out and .err.
        time_limit: in seconds; the process group is ended then.
        interrupts: the group is ended once this counts up.
    """
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    kills = _out_of_memory_kills()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env=dict(environment),
                # Ctrl-C in a terminal reaches the harness alone, which then ends the group
                start_new_session=True,
            )
        except OSError as error:
            return _not_started(f"cannot start {command[0]}: {error.strerror}")
        _be_killed_first(process.pid)
        tree = TreeMemory(process.pid)
        ended_by, exit_code, usage = _wait(process, tree, time_limit, interrupts)
        seconds = time.perf_counter() - began
        _end_leftovers(process.pid, tree)
    peak_process = _peak_process(usage, tree)
    tail = _tail(err) or _tail(out)
    status = ended_by or ("ok" if exit_code == 0 else "failed")
    out_of_memory = _out_of_memory_kills() > kills
    return ProcessResult(
        status=status,
        reason=_reason(status, exit_code, tail, time_limit, out_of_memory=out_of_memory),
        exit_code=exit_code,
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(peak_process, tree.peak_bytes),
        peak_process_bytes=peak_process,
        peak_anonymous_bytes=tree.peak_anonymous_bytes,
        processes=tree.processes,
        stdout=out.read_text(encoding="utf-8", errors="replace"),
        log_tail=tail,
    )


def _wait(
    process: subprocess.Popen[bytes], tree: TreeMemory, time_limit: float, interrupts: Interrupts
) -> tuple[str | None, int, resource.struct_rusage]:
    """Until the process is reaped. Returns what ended it (None: itself), its exit code and usage."""
    ended_by: str | None = None
    interrupted_before, deadline = interrupts.count, time.monotonic() + time_limit
    kill_at = float("inf")
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return ended_by, process.returncode, usage
        now = time.monotonic()
        if ended_by is None and (interrupts.count > interrupted_before or now >= deadline):
            ended_by = "interrupted" if interrupts.count > interrupted_before else "timeout"
            kill_at = now + _GRACE_SECONDS
            _signal_group(process.pid, signal.SIGTERM)
        elif now >= kill_at or interrupts.count > interrupted_before + 1:
            _signal_group(process.pid, signal.SIGKILL)
        tree.sample(now)
        time.sleep(_POLL_SECONDS)


def _peak_process(usage: resource.struct_rusage, tree: TreeMemory) -> int:
    """The kernel's figure for the largest process, unless it may be what it inherited from this one (memory.py)."""
    # Linux counts in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    counted = usage.ru_maxrss * unit
    return counted if counted > own or not tree.peak_process_bytes else tree.peak_process_bytes


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end_leftovers(group: int, tree: TreeMemory) -> None:
    _signal_group(group, signal.SIGKILL)
    survivors = tree.survivors()
    for survivor in survivors:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(survivors, timeout=_GRACE_SECONDS)


def _be_killed_first(pid: int) -> None:
    """When memory runs out the kernel takes the measured program, not the user's other work. Children inherit it."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("800", encoding="ascii")


def _out_of_memory_kills() -> int:
    """Processes that the kernel has killed for want of memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _reason(status: str, exit_code: int, tail: str, time_limit: float, *, out_of_memory: bool) -> str:
    if status == "timeout":
        return f"not finished after {time_limit:g} s"
    if status == "interrupted":
        return "interrupted"
    if status == "ok":
        return ""
    last = tail.strip().splitlines()[-1].strip() if tail.strip() else "it said nothing"
    if out_of_memory or any(text in tail for text in ("MemoryError", "bad_alloc", "can't allocate memory")):
        return f"out of memory (exit code {exit_code}): {last}"
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}: {last}"
    return f"exit code {exit_code}: {last}"


def _tail(file: Path) -> str:
    """What a program said last, without the redrawn states of progress bars."""
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        lines = handle.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(line for line in lines if line.strip())


def _not_started(reason: str) -> ProcessResult:
    return ProcessResult(
        status="failed",
        reason=reason,
        exit_code=None,
        seconds=0.0,
        cpu_seconds=0.0,
        peak_bytes=0,
        peak_process_bytes=0,
        peak_anonymous_bytes=None,
        processes=0,
        stdout="",
        log_tail="",
    )
