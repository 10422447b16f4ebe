"""What a benchmark found, as data and as JSON (results.schema.json)."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["METRICS", "SCHEMA_FILE", "Metric", "ProgramResult", "Results", "Run", "Spread"]

SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
_SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a run. `unit` is "s", "bytes" or what the table prints; `better` is "lower" or "higher"."""

    label: str
    unit: str
    better: str
    description: str
    # a headline has a column of its own in table and chart
    headline: bool = True


# what every program is measured by
METRICS: Mapping[str, Metric] = {
    "seconds": Metric(label="wall time", unit="s", better="lower", description="start to end, all steps"),
    "peak_bytes": Metric(
        label="peak memory",
        unit="bytes",
        better="lower",
        description=(
            "largest resident memory: the larger one of the process tree's, sampled every 20 ms with pages that "
            "several processes share counted once, and of ru_maxrss"
        ),
    ),
    "output_bytes": Metric(
        label="size on disk", unit="bytes", better="lower", description="all files that the program leaves"
    ),
    "peak_process_bytes": Metric(
        label="peak of one process",
        unit="bytes",
        better="lower",
        description="ru_maxrss of wait4, as /usr/bin/time -v prints it",
        headline=False,
    ),
    "peak_anonymous_bytes": Metric(
        label="peak memory without file pages",
        unit="bytes",
        better="lower",
        description="largest sampled memory of the tree that no file backs; Linux only",
        headline=False,
    ),
    "cpu_seconds": Metric(
        label="processor time",
        unit="s",
        better="lower",
        description="user and system time of the process and its children",
        headline=False,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """A program as it was found: `missing` says why it could not run at all (empty: it could)."""

    name: str
    note: str
    versions: Mapping[str, str]
    commands: tuple[tuple[str, ...], ...]
    missing: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One program in one round; round 0 is a warm-up and counts nowhere."""

    round: int
    program: str
    # ok, failed, timeout or interrupted
    status: str
    reason: str
    values: Mapping[str, float]
    # name, status, exit code and figures of each process
    steps: tuple[Mapping[str, Any], ...]
    # share of all processor time that other processes took meanwhile, 0 to 1
    other_cpu_share: float
    log_tail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Several rounds of one figure."""

    median: float
    minimum: float
    maximum: float
    rounds: tuple[float, ...]


@dataclasses.dataclass(kw_only=True)
class Results:
    """Everything that is known so far; `runs` grows."""

    benchmark: str
    title: str
    # the program that others are compared with
    subject: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    programs: list[ProgramResult]
    started: str
    finished: str | None = None
    interrupted: bool = False
    runs: list[Run] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def values(self, program: str, metric: str) -> dict[int, float]:
        """Round -> figure, of the rounds that ended well."""
        return {
            run.round: run.values[metric]
            for run in self.runs
            if run.program == program and run.round > 0 and run.status == "ok" and metric in run.values
        }

    def spread(self, program: str, metric: str) -> Spread | None:
        """None when no round ended well."""
        return _spread(list(self.values(program, metric).values()))

    def ratio(self, program: str, metric: str) -> Spread | None:
        """Subject / program, divided round by round; None when they have no round in common."""
        ours, theirs = self.values(self.subject, metric), self.values(program, metric)
        return _spread([ours[number] / theirs[number] for number in ours if theirs.get(number)])

    def failure(self, program: str) -> str:
        """Why a program has no figures, or fewer than others; empty when nothing went wrong."""
        missing = next(found.missing for found in self.programs if found.name == program)
        failed = [run for run in self.runs if run.program == program and run.status != "ok"]
        return missing or (f"{failed[0].status} in round {failed[0].round}: {failed[0].reason}" if failed else "")

    def to_json(self) -> dict[str, Any]:
        """The document that results.schema.json describes."""
        names = [program.name for program in self.programs]
        content: dict[str, Any] = {"schema_version": _SCHEMA_VERSION}
        for field in dataclasses.fields(self):
            if field.name not in ("metrics", "programs", "runs"):
                content[field.name] = getattr(self, field.name)
        content["metrics"] = {name: dataclasses.asdict(metric) for name, metric in self.metrics.items()}
        content["programs"] = [
            {**dataclasses.asdict(program), "failure": self.failure(program.name)} for program in self.programs
        ]
        content["summary"] = self._table(names, self.spread)
        content["ratios"] = self._table([name for name in names if name != self.subject], self.ratio)
        content["runs"] = [dataclasses.asdict(run) for run in self.runs]
        return content

    def write(self, path: Path) -> None:
        """Replaces the file; a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)

    def _table(self, names: list[str], of: Any) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = {}
        for name in names:
            spreads = {metric: of(name, metric) for metric in self.metrics}
            table[name] = {metric: dataclasses.asdict(spread) for metric, spread in spreads.items() if spread}
        return table


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(median=statistics.median(values), minimum=min(values), maximum=max(values), rounds=tuple(values))
