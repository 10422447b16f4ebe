"""One way to run programs side by side: whole processes, interleaved, measured, with the machine named.

A benchmark describes its programs and their input (`Benchmark`) and hands them to `run_benchmark`.
"""

from __future__ import annotations

from benchmarks.harness.benchmark import Benchmark, Input, choose, run_benchmark
from benchmarks.harness.command_line import Settings, add_arguments, read_settings
from benchmarks.harness.program import INPUT, OUTPUT, SCRATCH, Need, Program, Step
from benchmarks.harness.results import METRICS, SCHEMA_FILE, Metric

__all__ = [
    "INPUT",
    "METRICS",
    "OUTPUT",
    "SCHEMA_FILE",
    "SCRATCH",
    "Benchmark",
    "Input",
    "Metric",
    "Need",
    "Program",
    "Settings",
    "Step",
    "add_arguments",
    "choose",
    "read_settings",
    "run_benchmark",
]
