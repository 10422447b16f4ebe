"""report.html: one page that needs nothing beside itself."""

from __future__ import annotations

from pathlib import Path

from gemma_validation.findings import Report
from gemma_validation.report.details import checks, environment, flips, greedy
from gemma_validation.report.drawings import layers, positions
from gemma_validation.report.markup import Markup, tag
from gemma_validation.report.overview import gates, header, slices
from gemma_validation.report.text import shortened, visible

__all__ = ["html_text"]

# text that a tokenizer decoded must never run or load anything, should its escaping ever fail
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html_text(report: Report) -> str:
    """The whole page as text; the same report gives the same page."""
    subject = report.subject
    name = visible(shortened(f"{subject.variant or subject.family} {subject.precision}", 80))
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{report.verdict}: {name}"),
        tag("style", Markup(style)),
    )
    sections = (header, gates, slices, positions, layers, flips, greedy, checks, environment)
    body = tag("main", *(section(report) for section in sections))
    footer = tag("footer", "Written by gemma-validate; report.json beside this page has every number.")
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body, footer), lang='en')}\n"
