"""A report for programs and for people; all of it is made from `gemma_validation.findings.Report` alone.

json_report, junit   report.json (schemas/report.schema.json) and junit.xml
page                 report.html: overview, drawings and details, from markup, tables and charts
summary              the step summary of a GitHub workflow
terminal             what the command prints
verdict              the verdict in the folder's manifest
writing              the files of a report in their directory
"""

from __future__ import annotations

from gemma_validation.report.json_report import json_document, json_text
from gemma_validation.report.junit import junit_text
from gemma_validation.report.page import html_text
from gemma_validation.report.summary import append_step_summary, step_summary
from gemma_validation.report.terminal import terminal_text
from gemma_validation.report.verdict import record_verdict, verdict_entry
from gemma_validation.report.writing import prepare_directory, write_reports

__all__ = [
    "append_step_summary",
    "html_text",
    "json_document",
    "json_text",
    "junit_text",
    "prepare_directory",
    "record_verdict",
    "step_summary",
    "terminal_text",
    "verdict_entry",
    "write_reports",
]
