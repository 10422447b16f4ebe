"""The options that all benchmarks share."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from gemma_export.errors import UsageError

__all__ = ["Settings", "add_arguments", "read_settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The shared options."""

    rounds: int
    warm_up: bool
    time_limit: float
    # None: a temporary folder
    work: Path | None
    keep: bool
    results: Path
    only: tuple[str, ...]
    skip: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options of a benchmark's parser."""
    parser.add_argument("--rounds", type=_positive, default=3, help="how often each program counts (default: 3)")
    parser.add_argument("--warm-up", action="store_true", help="one round before them that does not count")
    parser.add_argument(
        "--time-limit", type=_positive, default=600, metavar="SECONDS", help="a program's longest run (default: 600)"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="for large files (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the input in --work for the next time")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        default=Path("build/benchmarks"),
        help="JSON and chart (default: %(default)s)",
    )
    parser.add_argument("--only", metavar="NAME,...", default="", help="these programs alone")
    parser.add_argument("--skip", metavar="NAME,...", default="", help="without these programs")


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Settings of parsed arguments.

    Raises:
        UsageError: --keep without --work.
    """
    if arguments.keep and arguments.work is None:
        raise UsageError("--keep without --work keeps nothing", hint="Name the folder that is to stay: --work DIR.")
    return Settings(
        rounds=arguments.rounds,
        warm_up=arguments.warm_up,
        time_limit=arguments.time_limit,
        work=arguments.work,
        keep=arguments.keep,
        results=arguments.results,
        only=_names(arguments.only),
        skip=_names(arguments.skip),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return value
