"""The report as a GitHub step summary: Markdown in which nothing from outside is markup."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from gemma_validation.errors import ReportDirectoryError
from gemma_validation.findings import Report
from gemma_validation.report.overview import VERDICTS
from gemma_validation.report.text import clean, count, measure, metric, number, percent, public_name, shortened, visible

__all__ = ["append_step_summary", "step_summary"]

_VARIABLE = "GITHUB_STEP_SUMMARY"
# bytes; GitHub refuses a summary above 1 MiB, and a job's steps share the page
_LIMIT = 64 << 10
_ICONS = {
    "passed": "✅",
    "failed": "❌",
    "drift": "❌",
    "broken": "❌",
    "inconclusive": "❓",
    "skipped": "\N{HEAVY MINUS SIGN}",
}
# as character references they are never structure: https://spec.commonmark.org/0.31.2/#entity-and-numeric-character-references
_ACTIVE = re.compile(r"[!-,./:-@\[-`{-~]")
_MOST_ROWS = 40


def step_summary(report: Report) -> str:
    """Markdown of less than 64 KiB: the verdict, gates, slices, and what failed."""
    subject, reference = report.subject, report.reference
    title = f"{_text(subject.variant or subject.family, 80)} in {_text(subject.precision, 80)}"
    against = "no reference" if reference.kind == "none" else _text(public_name(reference.name), 120)
    blocks = [
        f"## {_ICONS[report.verdict]} gemma-validate: {report.verdict}",
        f"{title} for {_text(subject.target, 80)} on {_text(subject.provider, 80)}, against {against}, "
        f"{report.suite} suite. {VERDICTS[report.verdict]}",
        "\n".join(f"- {_text(reason)}" for reason in report.reasons[:_MOST_ROWS]),
        _gates(report),
        _slices(report),
        _failures(report),
        _culprit(report),
    ]
    text = "\n\n".join(block for block in blocks if block) + "\n"
    note = "\n\nShortened: report.html has the rest.\n"
    encoded = text.encode()
    if len(encoded) < _LIMIT:
        return text
    # whole lines only: half a reference or table row would be read as something else
    kept = encoded[: _LIMIT - len(note) - 1].decode(errors="ignore").rsplit("\n", 1)[0]
    return kept + note


def append_step_summary(report: Report) -> bool:
    """Appends the summary to the file that $GITHUB_STEP_SUMMARY names; false where the variable is not set.

    Raises:
        ReportDirectoryError: the file cannot be written.
    """
    name = os.environ.get(_VARIABLE)
    if not name:
        return False
    try:
        with Path(name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(step_summary(report))
    except OSError as error:
        raise ReportDirectoryError(
            f"writing the step summary {name}: {error.strerror or error}",
            hint=f"Unset {_VARIABLE}, or let it name a file that can be written.",
        ) from error
    return True


def _gates(report: Report) -> str:
    rows = []
    for gate in report.gates:
        name, unit = metric(gate.metric)
        outcome = f"{_ICONS[gate.outcome]} {gate.outcome}"
        values = (measure(gate.metric, value) for value in (gate.measured, gate.upper, gate.bound))
        rows.append((_text(name, 80), _text(gate.slice, 40), outcome, *values, unit))
    order = {"❌": 0, "❓": 1}
    rows.sort(key=lambda row: order.get(row[2][0], 2))
    return _table("Gates", ("Gate", "Slice", "Outcome", ">Measured", ">Upper 95 %", ">Bound", "Unit"), rows)


def _slices(report: Report) -> str:
    floors = {drift.slice: drift.kl.mean for drift in report.noise_floor}
    rows = []
    for drift in report.drift:
        bound = "≥ " if drift.lower_bound else ""
        row = (_text(drift.slice, 40), f"{bound}{number(drift.kl.mean)}", number(floors.get(drift.slice)))
        counts = (percent(drift.top1_agreement), count(drift.decisive_flips), f"{drift.perplexity_ratio:.6f}")
        rows.append((*row, *counts, count(drift.positions)))
    headings = (">KL, mean (nats)", ">Noise floor", ">Same most likely token", ">Decisive flips", ">Perplexity ratio")
    return _table("Drift", ("Slice", *headings, ">Positions"), rows)


def _failures(report: Report) -> str:
    rows = [
        (check.group, _text(check.name, 80), f"{_ICONS[check.outcome]} {check.outcome}", _text(check.message))
        for check in report.checks
        if check.outcome in ("failed", "inconclusive")
    ]
    return _table("Checks that did not pass", ("Group", "Check", "Outcome", "Found"), rows)


def _culprit(report: Report) -> str:
    found = report.localisation
    if found is None:
        return ""
    return f"### Where it drifts\n\n{_text(found.message)}"


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A heading that begins with ">" is of a column of numbers."""
    if not rows:
        return ""
    lines: list[Sequence[str]] = [tuple(text.lstrip(">") for text in headings)]
    lines.append(tuple("---:" if text.startswith(">") else "---" for text in headings))
    lines += rows[:_MOST_ROWS]
    more = f"\n\n{len(rows) - _MOST_ROWS} more are in report.html." if len(rows) > _MOST_ROWS else ""
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + more


def _text(text: str, limit: int = 300) -> str:
    """Text from outside on one line, its punctuation as character references."""
    plain = visible(shortened(clean(text), limit))
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", plain)
