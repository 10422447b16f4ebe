"""Wall time and peak memory of a whole process, as benchmarks report them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

__all__ = ["Measured", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a command."""

    seconds: float
    # largest resident set of the process, in bytes
    peak_bytes: int
    stdout: str


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Measured:
    """Runs a command to its end; a failure stops the benchmark. POSIX only (wait4)."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    # both are short: programs that print megabytes are not measured here
    assert process.stdout is not None
    assert process.stderr is not None
    errors = process.stderr.read()
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-4000:]}")
    # Linux counts ru_maxrss in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(seconds=seconds, peak_bytes=usage.ru_maxrss * unit, stdout=output)
