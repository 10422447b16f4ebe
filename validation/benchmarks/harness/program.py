"""What a benchmark says about a program it runs: data, no logic of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["INPUT", "OUTPUT", "SCRATCH", "Need", "Program", "Step"]

# stand for folders inside a step's arguments: what all programs read, what this one leaves, what it may throw away
INPUT, OUTPUT, SCRATCH = "{input}", "{output}", "{scratch}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One process. Its arguments may contain {input}, {output} and {scratch}; the first one is the executable."""

    name: str
    command: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """Something that must be there, found out before the first round.

    Either a file, or a command that must succeed and whose stdout must contain a text.
    """

    missing: str
    file: Path | None = None
    command: tuple[str, ...] = ()
    contains: str = ""


def _no_values(stdout: str) -> Mapping[str, float]:
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One column of a benchmark: the subject or a peer.

    `seconds` of a run are the sum of its steps' wall time, memory is the largest of its steps'.
    """

    name: str
    # what exactly it makes here: format, options that matter
    note: str
    steps: tuple[Step, ...]
    # interpreter of the program's own environment and the packages whose versions go into the results
    python: Path
    packages: tuple[str, ...]
    # what to do when the interpreter or a package is missing
    install: str
    needs: tuple[Need, ...] = ()
    # PKG-INFO of sources that are used without being installed
    metadata: tuple[Path, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # most bytes that output and scratch take together, as a multiple of the input's
    disk_factor: float = 1.0
    # folders of the input that it reads; none stands for all
    reads: tuple[str, ...] = ()
    # further metrics, read from the stdout of the last step: for example tokens a second
    read_values: Callable[[str], Mapping[str, float]] = _no_values
