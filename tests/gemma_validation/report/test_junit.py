"""junit.xml: readable by any reader, and no outcome that is not a pass looks like one."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
from example_reports import REPORTS, inconclusive, passed

from gemma_validation.findings import Check, Report
from gemma_validation.report import junit_text


def parsed(report: Report) -> ET.Element:
    return ET.fromstring(junit_text(report).encode())


def tally(element: ET.Element) -> dict[str, str]:
    tags = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    return {name: str(len(list(element.iter(tag)))) for name, tag in tags.items()}


@pytest.mark.parametrize("name", REPORTS)
def test_counts_are_those_of_the_elements(name: str) -> None:
    root = parsed(REPORTS[name])
    assert root.tag == "testsuites"
    for element in (root, *root.iter("testsuite")):
        assert {key: element.get(key) for key in tally(element)} == tally(element), element.get("name")
        assert float(element.get("time", "")) >= 0
    report = REPORTS[name]
    cases = 1 + len(report.gates) + len(report.checks) + len(report.drift)
    assert len(list(root.iter("testcase"))) == cases
    for case in root.iter("testcase"):
        assert {"classname", "name", "time"} <= set(case.attrib)


def test_only_a_pass_is_green() -> None:
    verdicts = {name: parsed(report).find("testsuite/testcase") for name, report in REPORTS.items()}
    found = {name: [child.tag for child in case] for name, case in verdicts.items() if case is not None}
    assert found["passed"] == found["golden"] == []
    assert found["drifted"] == found["broken"] == ["failure"]
    assert found["inconclusive"] == ["error"]


def test_gates_tell_numbers_and_reason() -> None:
    root = parsed(inconclusive())
    case = root.find("testsuite[@name='gates']/testcase[@name='kl_mean of all']")
    assert case is not None
    error = case.find("error")
    assert error is not None
    assert error.attrib == {
        "message": "measured 0.0018, upper 95 % bound 0.0024, at most 0.002 nats",
        "type": "inconclusive",
    }
    assert "why: int4 of the tiny model" in case.findtext("system-out", "")


def test_slices_follow_their_gates() -> None:
    root = parsed(REPORTS["drifted"])
    slices = {case.get("name"): [child.tag for child in case] for case in root.findall("testsuite[@name='slices']/*")}
    assert slices["all"] == ["failure", "system-out"]
    # what no bound is set for was not judged
    assert slices["code"] == ["skipped", "system-out"]


def test_properties_say_what_was_validated() -> None:
    found = {item.get("name"): item.get("value") for item in parsed(passed()).iter("property")}
    assert found["verdict"] == "passed"
    assert found["subject.precision"] == "int4"
    assert found["reference.version.torch"] == "2.13.0"


def test_characters_that_xml_cannot_hold_are_replaced() -> None:
    text = junit_text(REPORTS["hostile"])
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", text)
    assert "<script>" not in text
    message = parsed(REPORTS["hostile"]).find("testsuite[@name='gates']/testcase/failure")
    assert message is not None
    assert len(list(parsed(REPORTS["hostile"]).iter("script"))) == 0


def test_line_ends_and_markup_survive_in_values() -> None:
    check = Check(group="structure", name="a\n<b>", outcome="failed", message='"]]>&\t')
    root = parsed(dataclasses.replace(passed(), checks=(check,)))
    case = root.find("testsuite[@name='structure']/testcase")
    assert case is not None
    assert case.get("name") == "a\n<b>"
    assert case[0].get("message") == '"]]>&\t'
