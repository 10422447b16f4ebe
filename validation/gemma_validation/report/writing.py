"""The files of a report in their directory."""

from __future__ import annotations

from pathlib import Path

from gemma_validation.errors import ReportDirectoryError
from gemma_validation.files import replace_file
from gemma_validation.findings import Report
from gemma_validation.report.json_report import json_text
from gemma_validation.report.junit import junit_text
from gemma_validation.report.page import html_text

__all__ = ["prepare_directory", "write_reports"]

_FILES = ("report.json", "junit.xml", "report.html")


def prepare_directory(directory: Path) -> None:
    """Makes the directory, tries to write there and removes the reports of an earlier run.

    So a long run never ends without its reports, and one that was interrupted leaves none that say "passed".

    Raises:
        ReportDirectoryError: reports could not be written there.
    """
    probe = directory / ".gemma-validate"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(probe, b"")
        probe.unlink()
        for name in _FILES:
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise _refused(directory, error) from error


def write_reports(report: Report, directory: Path) -> tuple[Path, ...]:
    """Writes report.json, junit.xml and report.html, each whole or not at all.

    Returns:
        The three paths.

    Raises:
        ReportDirectoryError: it is no directory, may not be written, or its disk is full.
    """
    contents = dict(zip(_FILES, (json_text(report), junit_text(report), html_text(report)), strict=True))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            replace_file(directory / name, text.encode())
    except OSError as error:
        raise _refused(directory, error) from error
    return tuple(directory / name for name in contents)


def _refused(directory: Path, error: OSError) -> ReportDirectoryError:
    return ReportDirectoryError(
        f"reports cannot be written to {directory}: {error.strerror or error}",
        hint="Choose another place with --report-dir: a directory that may be written, on a disk with space.",
    )
