"""The table on stdout, in Markdown, so that it can be pasted where it is needed."""

from __future__ import annotations

from benchmarks.harness.machine import one_line
from benchmarks.harness.results import Metric, Results, Run, Spread

__all__ = ["format_value", "report", "run_line"]


def format_value(value: float, unit: str) -> str:
    """A figure with three digits and its unit."""
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    return f"{value:#.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def run_line(run: Run, results: Results) -> str:
    """Progress: one finished run."""
    head = f"round {run.round}" if run.round else "warm-up"
    if run.status != "ok":
        return f"{head}  {run.program}: {run.status}, {run.reason}"
    figures = (
        f"{metric.label} {format_value(run.values[name], metric.unit)}"
        for name, metric in results.metrics.items()
        if metric.headline and name in run.values
    )
    return f"{head}  {run.program}: {', '.join(figures)}"


def report(results: Results) -> str:
    """Head, table, what failed, what is doubtful."""
    lines = [results.title, one_line(dict(results.machine)), ""]
    columns = {name: metric for name, metric in results.metrics.items() if metric.headline}
    lines.append("| program | " + " | ".join(metric.label for metric in columns.values()) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for program in results.programs:
        cells = [_cell(results, program.name, name, metric) for name, metric in columns.items()]
        if any(cells):
            lines.append(f"| {program.name} | " + " | ".join(cells) + " |")
    lines += ["", f"median (lowest to highest); ratio is {results.subject} / the program, median of the pairs", ""]
    for program in results.programs:
        versions = ", ".join(f"{name} {version}" for name, version in program.versions.items())
        lines.append(f"- {program.name}: {program.note}" + (f" [{versions}]" if versions else ""))
    failures = [(program.name, results.failure(program.name)) for program in results.programs]
    lines += [f"no figures or fewer: {name}: {failure}" for name, failure in failures if failure]
    lines += [f"warning: {doubt}" for doubt in results.warnings]
    if results.interrupted:
        lines.append("interrupted: only what was finished is counted")
    return "\n".join(lines)


def _cell(results: Results, program: str, name: str, metric: Metric) -> str:
    spread = results.spread(program, name)
    if spread is None:
        return ""
    ratio = results.ratio(program, name) if program != results.subject else None
    return _spread(spread, metric.unit) + (f", ratio {ratio.median:.2f}" if ratio else "")


def _spread(spread: Spread, unit: str) -> str:
    median = format_value(spread.median, unit)
    low, high = (format_value(value, unit) for value in (spread.minimum, spread.maximum))
    return median if low == high else f"{median} ({low} to {high})"
