"""From a description to results: probes, makes the input, runs the rounds, prints, writes JSON and chart."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.chart import draw
from benchmarks.harness.command_line import Settings
from benchmarks.harness.disk import require_disk
from benchmarks.harness.doubts import doubts, doubts_at_start
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.probe import probe
from benchmarks.harness.program import Program
from benchmarks.harness.report import report, run_line
from benchmarks.harness.results import METRICS, Metric, ProgramResult, Results, Run
from benchmarks.harness.rounds import run_rounds
from gemma_export.errors import MissingResourceError, UsageError

__all__ = ["Benchmark", "Input", "choose", "run_benchmark"]

_OK, _SUBJECT_FAILED, _INTERRUPTED = 0, 1, 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """The folder that all programs read: its name below the work folder, about its size, and who writes it."""

    name: str
    nbytes: int
    make: Callable[[Path], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Programs side by side over one input.

    `name` becomes that of the result files and says what was chosen ("export-fp16-2b"); `subject` is the program that
    the others are compared with; `options` are the benchmark's own, for the results; `metrics` are METRICS and what
    the programs' `read_values` give.
    """

    name: str
    title: str
    subject: str
    programs: tuple[Program, ...]
    input: Input
    options: Mapping[str, Any]
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=lambda: METRICS)


def run_benchmark(benchmark: Benchmark, settings: Settings) -> int:
    """Runs it and returns the exit code: 0, 1 when the subject failed, 130 when it was interrupted.

    A peer that is missing or fails is part of the results and no failure of the benchmark.

    Raises:
        UsageError: --only or --skip name no program.
        MissingResourceError: no program can run here.
        ResourceExhaustedError: too little disk.
    """
    programs = choose(benchmark.programs, settings)
    with _work_folder(settings) as work:
        results = _empty_results(benchmark, programs, settings, work)
        runnable = _runnable(programs, results)
        target = work / benchmark.input.name
        existed = target.exists()
        require_disk(work, runnable, benchmark.input.nbytes, input_exists=existed)
        try:
            if not existed:
                _say(f"writing {target} ({benchmark.input.nbytes / 1e9:.2f} GB)")
                _make_whole(target, benchmark.input.make)
            return _run(results, runnable, target, work, settings)
        finally:
            if not existed and not settings.keep:
                shutil.rmtree(target, ignore_errors=True)


def _runnable(programs: list[Program], results: Results) -> list[Program]:
    missing = {found.name: found.missing for found in results.programs if found.missing}
    for name, reason in missing.items():
        _say(f"left out: {name}: {reason}")
    kept = [program for program in programs if program.name not in missing]
    if not kept:
        raise MissingResourceError(
            f"no program can run here: {', '.join(missing)}", hint="The lines above say what each of them needs."
        )
    return kept


def _run(results: Results, programs: list[Program], target: Path, work: Path, settings: Settings) -> int:
    file = settings.results / f"{results.benchmark}.json"

    def on_run(run: Run) -> None:
        results.runs.append(run)
        _say(run_line(run, results))
        # a crash of the machine leaves what was finished
        results.write(file)

    with tempfile.TemporaryDirectory(prefix="runs-", dir=work, ignore_cleanup_errors=True) as runs:
        whole = run_rounds(
            programs,
            input_directory=target,
            work=Path(runs),
            rounds=settings.rounds,
            warm_up=settings.warm_up,
            time_limit=settings.time_limit,
            on_run=on_run,
        )
    results.finished, results.interrupted = _now(), not whole
    results.warnings += doubts(results)
    results.write(file)
    print(report(results))
    chart = file.with_suffix(".png")
    written = [file, chart] if draw(results, chart) else [file]
    _say("wrote " + ", ".join(map(str, written)))
    if results.interrupted:
        return _INTERRUPTED
    failed = any(run.program == results.subject and run.status != "ok" for run in results.runs)
    return _SUBJECT_FAILED if failed else _OK


def _empty_results(benchmark: Benchmark, programs: list[Program], settings: Settings, work: Path) -> Results:
    machine = describe_machine(work)
    warnings = doubts_at_start(work, machine["file_system"])
    load_average = os.getloadavg()[0]
    return Results(
        benchmark=benchmark.name,
        title=benchmark.title,
        subject=benchmark.subject,
        settings={
            **benchmark.options,
            "commit": _commit(),
            "rounds": settings.rounds,
            "warm_up": settings.warm_up,
            "time_limit_seconds": settings.time_limit,
            "load_average_at_start": load_average,
        },
        machine=machine,
        metrics=benchmark.metrics,
        programs=[_program_result(program) for program in programs],
        started=_now(),
        warnings=warnings,
    )


def _program_result(program: Program) -> ProgramResult:
    found = probe(program)
    return ProgramResult(
        name=program.name,
        note=program.note,
        versions=found.versions,
        commands=tuple(_anonymous(step.command) for step in program.steps),
        missing=found.missing,
    )


def _commit() -> str | None:
    """Of this source tree, "-dirty" with changes; None where it is no git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _anonymous(command: tuple[str, ...]) -> tuple[str, ...]:
    """Without the user's folders: what lies below the current one from there, other absolute paths by their name."""
    here = Path.cwd()
    short = {part: Path(part) for part in command if Path(part).is_absolute()}
    names = {part: str(p.relative_to(here)) if p.is_relative_to(here) else p.name for part, p in short.items()}
    return tuple(names.get(part, part) for part in command)


def choose(programs: tuple[Program, ...], settings: Settings) -> list[Program]:
    """The programs that --only and --skip leave.

    Raises:
        UsageError: a name that is none, or nothing is left.
    """
    known = {program.name for program in programs}
    unknown = [name for name in (*settings.only, *settings.skip) if name not in known]
    if unknown:
        raise UsageError(f"no program {unknown[0]!r}", hint=f"There are: {', '.join(sorted(known))}.")
    kept = [p for p in programs if p.name not in settings.skip and (not settings.only or p.name in settings.only)]
    if not kept:
        raise UsageError("--only and --skip leave no program", hint=f"There are: {', '.join(sorted(known))}.")
    return kept


@contextlib.contextmanager
def _work_folder(settings: Settings) -> Iterator[Path]:
    if settings.work is not None:
        settings.work.mkdir(parents=True, exist_ok=True)
        yield settings.work.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="gemma-benchmark-", ignore_cleanup_errors=True) as directory:
        yield Path(directory).resolve()


def _make_whole(target: Path, make: Callable[[Path], None]) -> None:
    """Under another name until it is complete: an interrupted input is never taken for a whole one."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        make(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _say(text: str) -> None:
    """Progress goes to stderr; stdout holds the report."""
    print(text, file=sys.stderr, flush=True)
