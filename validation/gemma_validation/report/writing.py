"""The files of a report in their directory."""

from __future__ import annotations

from pathlib import Path

from gemma_validation.errors import ReportDirectoryError
from gemma_validation.findings import Report
from gemma_validation.report.files import replace_file
from gemma_validation.report.json_report import json_text
from gemma_validation.report.junit import junit_text
from gemma_validation.report.page import html_text

__all__ = ["prepare_directory", "write_reports"]


def prepare_directory(directory: Path) -> None:
    """Makes the directory and tries to write there, so that a long run never ends without its reports.

    Raises:
        ReportDirectoryError: reports could not be written there.
    """
    probe = directory / ".gemma-validate"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(probe, b"")
        probe.unlink()
    except OSError as error:
        raise _refused(directory, error) from error


def write_reports(report: Report, directory: Path) -> tuple[Path, ...]:
    """Writes report.json, junit.xml and report.html, each whole or not at all.

    Returns:
        The three paths.

    Raises:
        ReportDirectoryError: it is no directory, may not be written, or its disk is full.
    """
    contents = {
        "report.json": json_text(report),
        "junit.xml": junit_text(report),
        "report.html": html_text(report),
    }
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
