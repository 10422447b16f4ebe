"""The report on a terminal: what decided, then the figures."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_validation.findings import Drift, Report
from gemma_validation.report.overview import VERDICTS
from gemma_validation.report.text import count, measure, metric, number, percent, public_name, shortened, visible

__all__ = ["terminal_text"]

_FLIPS = 3


def terminal_text(report: Report) -> str:
    """Lines of at most about a hundred characters."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    subject, reference = report.subject, report.reference
    against = f"against {public_name(reference.name)} ({reference.kind})" if reference.kind != "none" else "alone"
    what = f"{subject.variant or subject.family} {subject.precision}"
    yield f"{what} on {subject.provider}, {against}, {report.suite} suite"
    yield ""
    yield from _drift_table(report)
    yield from _gates(report)
    yield from _checks(report)
    yield from _flips(report)
    parted = [text for text in report.greedy if text.first is not None]
    if report.greedy:
        yield f"greedy text: {len(report.greedy) - len(parted)} of {len(report.greedy)} continuations are the same"
    if report.localisation is not None:
        yield f"where: {visible(report.localisation.message)}"
    yield ""
    yield f"{report.verdict}: {VERDICTS[report.verdict]}"
    for reason in report.reasons:
        yield f"  {shortened(visible(reason), 300)}"


def _drift_table(report: Report) -> Iterator[str]:
    if not report.drift:
        return
    floors = {drift.slice: drift for drift in report.noise_floor}
    yield f"{'slice':9}{'positions':>10}{'mean KL':>11}{'p99 KL':>11}{'top-1':>10}{'flips':>7}{'bf16 KL':>11}"
    for drift in report.drift:
        yield _drift_row(drift, floors.get(drift.slice))
    if report.drift[0].lower_bound:
        yield "KL is a lower bound: the golden pack knows the most likely tokens only"
    yield ""


def _drift_row(drift: Drift, floor: Drift | None) -> str:
    return (
        f"{drift.slice:9}{count(drift.positions):>10}{number(drift.kl.mean):>11}{number(drift.kl.p99):>11}"
        f"{percent(drift.top1_agreement):>10}{drift.decisive_flips:>7}"
        f"{number(floor.kl.mean) if floor is not None else '':>11}"
    ).rstrip()


def _gates(report: Report) -> Iterator[str]:
    for gate in report.gates:
        if gate.outcome in ("failed", "inconclusive"):
            name, unit = metric(gate.metric)
            values = [measure(gate.metric, value) for value in (gate.measured, gate.upper, gate.bound)]
            measured = "{}, upper 95 % {}, bound {} ".format(*values) + unit
            yield f"{gate.outcome}: {name} of {gate.slice}: {measured}".rstrip()


def _checks(report: Report) -> Iterator[str]:
    passed = sum(check.outcome == "passed" for check in report.checks)
    yield f"checks: {passed} of {len(report.checks)} passed"
    for check in report.checks:
        if check.outcome != "passed":
            yield f"  {check.outcome}: {check.name}: {shortened(visible(check.message), 300)}"


def _flips(report: Report) -> Iterator[str]:
    for flip in report.flips[:_FLIPS]:
        context = visible(shortened(flip.context, 50, keep_end=True))
        wanted, found = flip.reference[0], flip.test[0]
        yield (
            f"flip: {flip.document}, position {flip.position}, margin {number(flip.margin)}: "
            f"{context} -> {visible(found.text)} instead of {visible(wanted.text)}"
        )
