"""What makes figures doubtful."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from benchmarks.harness.results import Results

__all__ = ["doubts", "doubts_at_start"]

# of the median: beyond this, run again with more rounds
_WIDE_SPREAD = 0.2
# of all cores: a quiet machine stays well under it, kernel threads that write files included
_BUSY_SHARE = 0.1


def doubts_at_start(work: Path, file_system: str) -> list[str]:
    """Before anything of ours has run."""
    found = []
    load, cores = os.getloadavg()[0], psutil.cpu_count(logical=True) or 1
    if load > cores / 2:
        found.append(f"the machine is busy: load average {load:.1f} on {cores} cores before the first run")
    if file_system in ("tmpfs", "ramfs"):
        found.append(f"{work} is in memory ({file_system}): files take memory from the programs; use --work")
    return found


def doubts(results: Results) -> list[str]:
    """After the rounds: wide spreads and busy runs, each named."""
    found = []
    for program in results.programs:
        for name, metric in results.metrics.items():
            spread = results.spread(program.name, name)
            if not metric.headline or spread is None or not spread.median:
                continue
            width = (spread.maximum - spread.minimum) / spread.median
            if width > _WIDE_SPREAD:
                found.append(f"{program.name}: {metric.label} differs by {width:.0%} from round to round")
    for run in results.runs:
        if run.round and run.other_cpu_share > _BUSY_SHARE:
            share = f"{run.other_cpu_share:.0%} of the processor"
            found.append(f"{run.program}, round {run.round}: other processes took {share}")
    return found
