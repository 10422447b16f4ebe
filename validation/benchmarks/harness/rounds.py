"""Runs the programs in turn, round after round: A B C, A B C, ..., so that a slow minute hits all of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.disk import output_bytes, warm_page_cache
from benchmarks.harness.interrupts import Interrupts, catch_interrupts
from benchmarks.harness.probe import run_environment
from benchmarks.harness.process import ProcessResult, run_process
from benchmarks.harness.program import INPUT, OUTPUT, SCRATCH, Program
from benchmarks.harness.results import Run

__all__ = ["run_rounds"]

_STEP_FIGURES = ("seconds", "cpu_seconds", "peak_bytes", "peak_process_bytes", "peak_anonymous_bytes", "processes")


def run_rounds(
    programs: Sequence[Program],
    *,
    input_directory: Path,
    work: Path,
    rounds: int,
    warm_up: bool,
    time_limit: float,
    on_run: Callable[[Run], None],
) -> bool:
    """Runs everything; False when the user ended it before.

    A program that fails is told to `on_run` like the others and is not run again: a peer that needs more memory than
    there is costs its time once. What a program wrote is removed as soon as it is measured.

    Args:
        programs: those that can run, in order.
        input_directory: what {input} stands for; what a program reads of it is in the page cache before its run.
        work: an existing folder; outputs and logs are made and removed below it.
        rounds: how often each program counts.
        warm_up: one more round before them, number 0.
        time_limit: seconds that one program may take, all its steps together.
        on_run: called after every run.
    """
    failed: set[str] = set()
    with catch_interrupts() as interrupts:
        for number in range(0 if warm_up else 1, rounds + 1):
            for program in programs:
                if program.name in failed:
                    continue
                for part in program.reads or (".",):
                    warm_page_cache(input_directory / part, interrupts)
                if interrupts.count:
                    return False
                folders = {INPUT: input_directory, OUTPUT: work / "output", SCRATCH: work / "scratch"}
                run = _run(program, number, folders, time_limit, interrupts)
                on_run(run)
                if run.status == "interrupted":
                    return False
                if run.status != "ok":
                    failed.add(program.name)
    return True


def _run(program: Program, number: int, folders: Mapping[str, Path], time_limit: float, interrupts: Interrupts) -> Run:
    for folder in (folders[OUTPUT], folders[SCRATCH]):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    # what the program before left to write back must not slow this one down
    os.sync()
    try:
        with _OtherWork() as others:
            results = _steps(program, folders, time_limit, interrupts)
        return _measured(program, number, results, others, folders[OUTPUT])
    finally:
        for folder in (folders[OUTPUT], folders[SCRATCH]):
            shutil.rmtree(folder, ignore_errors=True)


def _steps(
    program: Program, folders: Mapping[str, Path], time_limit: float, interrupts: Interrupts
) -> list[ProcessResult]:
    """Until one does not end well."""
    results: list[ProcessResult] = []
    environment = {name: _filled(value, folders) for name, value in run_environment(program).items()}
    for index, step in enumerate(program.steps):
        result = run_process(
            [_filled(argument, folders) for argument in step.command],
            environment=environment,
            # stray files land where they are removed
            directory=folders[SCRATCH],
            log=folders[SCRATCH] / f"step-{index}.log",
            time_limit=time_limit - sum(result.seconds for result in results),
            interrupts=interrupts,
        )
        results.append(result)
        if result.status != "ok":
            break
    return results


def _filled(text: str, folders: Mapping[str, Path]) -> str:
    for name, folder in folders.items():
        text = text.replace(name, str(folder))
    return text


def _measured(program: Program, number: int, results: list[ProcessResult], others: _OtherWork, output: Path) -> Run:
    last = results[-1]
    status, reason = last.status, last.reason
    values: dict[str, float] = {}
    if status == "ok":
        values = {name: float(value) for name, value in _figures(results).items() if value is not None}
        values["output_bytes"] = float(output_bytes(output))
        try:
            values.update(program.read_values(last.stdout))
            if not values["output_bytes"] and any(OUTPUT in part for step in program.steps for part in step.command):
                status, reason = "failed", "it ended well and wrote nothing"
        except (ValueError, KeyError, TypeError, IndexError) as error:
            status, reason = "failed", f"its figures cannot be read: {type(error).__name__}: {error}"
    return Run(
        round=number,
        program=program.name,
        status=status,
        reason=reason,
        values=values,
        steps=tuple(
            {"name": step.name, "status": result.status, "exit_code": result.exit_code}
            | {figure: getattr(result, figure) for figure in _STEP_FIGURES}
            for step, result in zip(program.steps, results, strict=False)
        ),
        other_cpu_share=others.share(sum(result.cpu_seconds for result in results)),
        log_tail="" if status == "ok" else last.log_tail,
    )


def _figures(results: list[ProcessResult]) -> dict[str, Any]:
    """Steps follow one another: times add up, memory does not."""
    anonymous = [result.peak_anonymous_bytes for result in results]
    return {
        "seconds": sum(result.seconds for result in results),
        "cpu_seconds": sum(result.cpu_seconds for result in results),
        "peak_bytes": max(result.peak_bytes for result in results),
        "peak_process_bytes": max(result.peak_process_bytes for result in results),
        "peak_anonymous_bytes": None if None in anonymous else max(value or 0 for value in anonymous),
    }


@dataclasses.dataclass
class _OtherWork:
    """Processor time of the whole machine while a program runs, stolen time included."""

    busy: float = 0.0
    own: float = 0.0
    seconds: float = 0.0

    def __enter__(self) -> _OtherWork:
        self.busy, self.own, self.seconds = _busy_seconds(), time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.busy, self.own = _busy_seconds() - self.busy, time.process_time() - self.own
        self.seconds = time.perf_counter() - self.seconds

    def share(self, program_seconds: float) -> float:
        """What neither the program nor the harness used, as a share of all cores."""
        cores = psutil.cpu_count(logical=True) or 1
        others = self.busy - self.own - program_seconds
        return min(1.0, max(0.0, others / (self.seconds * cores))) if self.seconds else 0.0


def _busy_seconds() -> float:
    # guest time is part of user time already
    idle = ("idle", "iowait", "guest", "guest_nice")
    times: dict[str, float] = psutil.cpu_times()._asdict()
    return sum(seconds for name, seconds in times.items() if name not in idle)
