"""The step summary: small, complete rows, no markup from outside."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from example_reports import REPORTS, drifted, passed

from gemma_validation.errors import ReportDirectoryError
from gemma_validation.report import append_step_summary, step_summary


@pytest.mark.parametrize("name", REPORTS)
def test_summaries_are_small_and_their_rows_are_whole(name: str) -> None:
    text = step_summary(REPORTS[name])
    assert len(text.encode()) < 64 << 10
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert tables
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_it_begins_with_the_verdict_and_its_reasons() -> None:
    text = step_summary(drifted())
    assert text.startswith("## ❌ gemma-validate: drift\n")
    assert "layer 2 injects 300 times the error" in text
    assert "| KL&#44; mean | all | ❌ failed | 0.08 | 0.11 | 0.002 | nats |" in text
    assert "| all | 0.0011 | 2.20e-5 | 99.100 % | 14 | 1.000550 | 20,480 |" in text


def test_inconclusive_is_no_pass() -> None:
    text = step_summary(REPORTS["inconclusive"])
    assert text.startswith("## ❓ gemma-validate: inconclusive\n")
    assert "This is no pass." in text


def test_nothing_from_outside_is_markup() -> None:
    text = step_summary(REPORTS["hostile"])
    assert not re.search(r"[<`*@\\\[\]]", text)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", text)
    # headings and lists are ours alone
    assert {line.split(" ")[0] for line in text.splitlines() if line.startswith("#")} == {"##", "###"}
    assert len([line for line in text.splitlines() if line.startswith("- ")]) == len(REPORTS["hostile"].reasons)
    assert "&#60;script&#62;" in text


def test_too_much_is_cut_at_a_line() -> None:
    reason = "'" * 300
    checks = tuple(
        dataclasses.replace(passed().checks[0], name=f"{reason}{index}", outcome="failed", message=reason)
        for index in range(60)
    )
    report = passed(reasons=(reason,) * 60, checks=checks, verdict="broken")
    text = step_summary(report)
    assert len(text.encode()) < 64 << 10
    assert text.endswith("\n\nShortened: report.html has the rest.\n")
    assert text.rsplit("\n\n", 1)[0].splitlines()[-1].endswith((" |", ";"))


def test_it_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert not append_step_summary(passed())
    file = tmp_path / "summary.md"
    file.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    assert append_step_summary(REPORTS["hostile"])
    assert file.read_bytes() == b"before\n" + step_summary(REPORTS["hostile"]).encode()


def test_a_summary_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(ReportDirectoryError, match="step summary") as caught:
        append_step_summary(passed())
    assert caught.value.exit_code == 7
    assert "GITHUB_STEP_SUMMARY" in caught.value.hint
