"""Programs of a few Python lines for tests of the benchmark harness: real processes that do what they are told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import METRICS, OUTPUT, Benchmark, Input, Metric, Program, Settings, Step

__all__ = ["FIGURE", "benchmark", "program", "settings"]

# what a fake program prints, if it is asked for
FIGURE: Mapping[str, Metric] = {
    **METRICS,
    "figure": Metric(label="figure", unit="tok/s", better="higher", description="printed by the program"),
}


def program(name: str, *codes: str, figure: bool = False, **changes: Any) -> Program:
    """A program of one step for each piece of Python code; sys.argv[1:] are its output folder and its name."""
    steps = tuple(
        Step(name=f"step {index}", command=(sys.executable, "-c", code, OUTPUT, name))
        for index, code in enumerate(codes)
    )
    settings: dict[str, Any] = {
        "name": name,
        "note": "a fake",
        "steps": steps,
        "python": Path(sys.executable),
        "packages": ("numpy",),
        "install": "nothing installs it",
    }
    if figure:
        settings["read_values"] = lambda stdout: {"figure": float(stdout)}
    return Program(**{**settings, **changes})


def benchmark(*programs: Program, subject: str = "ours", nbytes: int = 1000) -> Benchmark:
    """A benchmark over an input of one small file."""

    def make(directory: Path) -> None:
        directory.mkdir()
        (directory / "file").write_bytes(bytes(1000))

    return Benchmark(
        name="fake",
        title="Fakes side by side",
        subject=subject,
        programs=programs,
        input=Input(name="input", nbytes=nbytes, make=make),
        options={"shape": "fake"},
        metrics=FIGURE,
    )


def settings(root: Path, **changes: Any) -> Settings:
    """Three rounds in folders below root."""
    values: dict[str, Any] = {
        "rounds": 3,
        "warm_up": False,
        "time_limit": 60,
        "work": root / "work",
        "keep": False,
        "results": root / "results",
        "only": (),
        "skip": (),
    }
    return Settings(**{**values, **changes})
