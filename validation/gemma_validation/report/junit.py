"""JUnit XML: every gate, check and slice as a test case, for CI that shows such files."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from gemma_validation.findings import Check, Drift, Gate, Outcome, Report
from gemma_validation.report.text import count, measure, metric, number, percent

__all__ = ["junit_text"]

# https://www.w3.org/TR/xml/#charsets
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# an undecided gate must not look like a pass: readers know passed, skipped, failure and error
_ELEMENTS: dict[Outcome, str] = {"failed": "failure", "inconclusive": "error", "skipped": "skipped"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Case:
    name: str
    outcome: Outcome
    message: str
    output: str = ""


def junit_text(report: Report) -> str:
    """The report as JUnit XML, characters that XML cannot hold replaced.

    The suites are verdict, gates, slices, structure and invariances. Inconclusive is an error, never a pass.
    """
    suites = {
        "verdict": [_verdict_case(report)],
        "gates": [_gate_case(gate) for gate in report.gates],
        "slices": [_slice_case(drift, report.gates) for drift in report.drift],
        "structure": [_check_case(check) for check in report.checks if check.group == "structure"],
        "invariances": [_check_case(check) for check in report.checks if check.group == "invariance"],
    }
    cases = [case for found in suites.values() for case in found]
    seconds = f"{sum(report.seconds.values()):.3f}"
    root = ET.Element("testsuites", {"name": "gemma-validate", **_counts(cases), "time": seconds})
    for name, found in suites.items():
        # the time of a single check is not known: the run's stands at the verdict
        own = seconds if name == "verdict" else "0"
        attributes = {"name": name, **_counts(found), "time": own, "timestamp": _legal(report.started)}
        suite = ET.SubElement(root, "testsuite", attributes)
        if name == "verdict":
            _add_properties(suite, report)
        for case in found:
            _add_case(suite, name, case, own)
    ET.indent(root, " ")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _counts(cases: Sequence[_Case]) -> dict[str, str]:
    outcomes = [case.outcome for case in cases]
    return {
        "tests": str(len(cases)),
        "failures": str(outcomes.count("failed")),
        "errors": str(outcomes.count("inconclusive")),
        "skipped": str(outcomes.count("skipped")),
    }


def _add_case(suite: ET.Element, name: str, case: _Case, seconds: str) -> None:
    attributes = {"classname": f"gemma_validate.{name}", "name": _legal(case.name), "time": seconds}
    element = ET.SubElement(suite, "testcase", attributes)
    if case.outcome != "passed":
        found = ET.SubElement(element, _ELEMENTS[case.outcome], {"message": _legal(case.message)})
        if case.outcome != "skipped":
            found.set("type", case.outcome)
    if case.output:
        ET.SubElement(element, "system-out").text = _legal(case.output)


def _add_properties(suite: ET.Element, report: Report) -> None:
    values = {
        "verdict": report.verdict,
        "exit_code": str(report.exit_code),
        "suite": report.suite,
        "tau": number(report.tau),
        **{f"subject.{key}": str(value or "") for key, value in dataclasses.asdict(report.subject).items()},
        **{f"reference.{key}": getattr(report.reference, key) for key in ("kind", "name", "dtype")},
        **{f"reference.version.{key}": value for key, value in sorted(report.reference.versions.items())},
    }
    properties = ET.SubElement(suite, "properties")
    for key, value in values.items():
        ET.SubElement(properties, "property", {"name": _legal(key), "value": _legal(value)})


def _verdict_case(report: Report) -> _Case:
    outcomes: dict[str, Outcome] = {"passed": "passed", "inconclusive": "inconclusive"}
    message = "; ".join(report.reasons) or report.verdict
    return _Case(name=report.verdict, outcome=outcomes.get(report.verdict, "failed"), message=message)


def _gate_case(gate: Gate) -> _Case:
    _, unit = metric(gate.metric)
    upper = "" if gate.upper is None else f", upper 95 % bound {measure(gate.metric, gate.upper)}"
    measured, bound = measure(gate.metric, gate.measured), measure(gate.metric, gate.bound)
    text = f"measured {measured}{upper}, at most {bound} {unit}".rstrip()
    name = f"{gate.metric} of {gate.slice}"
    return _Case(name=name, outcome=gate.outcome, message=text, output=f"{text}\nwhy: {gate.reason}")


def _slice_case(drift: Drift, gates: Sequence[Gate]) -> _Case:
    own = [gate for gate in gates if gate.slice == drift.slice]
    order: tuple[Outcome, ...] = ("failed", "inconclusive", "passed")
    worst = next((gate for wanted in order for gate in own if gate.outcome == wanted), None)
    # what no bound is set for was only measured
    outcome: Outcome = worst.outcome if worst else "skipped"
    message = f"{worst.metric}: {outcome}" if worst else "the budget has no bound for this slice"
    bound = " (a lower bound)" if drift.lower_bound else ""
    output = (
        f"{count(drift.positions)} positions of {count(drift.documents)} documents\n"
        f"KL mean {number(drift.kl.mean)}, 99th percentile {number(drift.kl.p99)}, "
        f"largest {number(drift.kl.max)} nats{bound}\n"
        f"most likely token the same at {percent(drift.top1_agreement)}, {count(drift.decisive_flips)} decisive flips\n"
        f"perplexity ratio {number(drift.perplexity_ratio)}"
    )
    return _Case(name=drift.slice, outcome=outcome, message=message, output=output)


def _check_case(check: Check) -> _Case:
    numbers = "" if check.measured is None else f"\nmeasured {number(check.measured)}, at most {number(check.bound)}"
    return _Case(name=check.name, outcome=check.outcome, message=check.message, output=f"{check.message}{numbers}")


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
