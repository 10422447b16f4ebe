"""The lower part of the page: flips, greedy text, checks, environment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gemma_validation.findings import Alternative, Check, Flip, Report
from gemma_validation.report.markup import Markup, joined, tag
from gemma_validation.report.tables import Column, badge, shown, table
from gemma_validation.report.text import count, number, percent, public_name, shortened, visible

__all__ = ["checks", "environment", "flips", "greedy"]

_OPEN_FLIPS, _MOST_FLIPS = 8, 40
_CONTEXT = 400
_TOKEN = 60


def flips(report: Report) -> Markup:
    """The decisive flips: what stood before, and what either side expected next."""
    if not report.drift:
        return Markup("")
    apart = f"more than {number(report.tau)} apart (logits)"
    note = f"The most likely token changed although the reference's best two were {apart}."
    parts: list[str] = [tag("h2", "Decisive flips"), tag("p", note, class_="soft")]
    if not report.flips:
        parts.append(tag("p", "None."))
    parts += [_flip(flip) for flip in report.flips[:_OPEN_FLIPS]]
    folded = [_flip(flip) for flip in report.flips[_OPEN_FLIPS:_MOST_FLIPS]]
    if folded:
        parts.append(tag("details", tag("summary", f"{count(len(folded))} more flips"), *folded))
    if len(report.flips) > _MOST_FLIPS:
        parts.append(tag("p", f"{count(len(report.flips) - _MOST_FLIPS)} more are in report.json."))
    return joined(*parts)


def greedy(report: Report) -> Markup:
    """Where free-running greedy text parts."""
    if not report.greedy:
        return Markup("")
    columns = [Column(heading="Document", style="name"), Column(heading="Slice")]
    columns += [
        Column(heading=text, style="n") for text in ("Tokens compared", "First difference", "Margin there (logits)")
    ]
    rows = []
    for found in report.greedy:
        first = "none" if found.first is None else f"token {count(found.first)}"
        row = (shown(found.document, 80), shown(found.slice), count(found.tokens), first, number(found.margin))
        rows.append(row)
    note = "Both sides continue each document by their own most likely tokens; a small margin is a tie."
    return joined(tag("h2", "Greedy text"), tag("p", note, class_="soft"), table("Greedy text", columns, rows))


def checks(report: Report) -> Markup:
    """What was looked at without a reference, by group; a group with a failure is open."""
    parts: list[str] = [tag("h2", "Checks")]
    for group, words in (
        ("structure", "Structure of graphs and folder"),
        ("invariance", "The artifact against itself"),
    ):
        found = [check for check in report.checks if check.group == group]
        if found:
            parts.append(_check_group(words, found))
    if not report.checks:
        parts.append(tag("p", "None were made."))
    return joined(*parts)


def environment(report: Report) -> Markup:
    """What ran, on what, for how long."""
    subject, reference = report.subject, report.reference
    entries = [
        ("Folder", public_name(subject.directory)),
        ("Variant", subject.variant or number(None)),
        ("Family", subject.family),
        ("Precision", subject.precision),
        ("Target", subject.target),
        ("Execution provider", subject.provider),
        ("onnxruntime", subject.onnxruntime),
        ("Weights, SHA-256", subject.weights_sha256),
        ("Reference", f"{public_name(reference.name)} ({reference.kind}, {reference.dtype})"),
        *((f"Reference: {package}", version) for package, version in sorted(reference.versions.items())),
        ("Started", report.started),
        *((f"{stage} (s)", f"{seconds:,.1f}") for stage, seconds in report.seconds.items()),
        ("All stages (s)", f"{math.fsum(report.seconds.values()):,.1f}"),
    ]
    pairs = [part for words, value in entries for part in (tag("dt", shown(words, 80)), tag("dd", shown(value, 200)))]
    return joined(tag("h2", "Environment"), tag("dl", *pairs))


def _flip(flip: Flip) -> Markup:
    about = f", position {count(flip.position)}, margin {number(flip.margin)}"
    heading = tag("h3", shown(flip.slice, 40), " · ", shown(flip.document, 80), tag("span", about, class_="soft"))
    context = visible(shortened(flip.context, _CONTEXT, keep_end=True), lines=True)
    sides = [_side("Reference", flip.reference), _side("Test", flip.test)]
    return tag("article", heading, tag("pre", context, dir="auto"), tag("div", *sides, class_="sides"), class_="flip")


def _side(words: str, alternatives: Sequence[Alternative]) -> Markup:
    columns = [Column(heading=words, style="file"), Column(heading="Token", style="n")]
    columns.append(Column(heading="Probability", style="n"))
    rows = []
    for found in alternatives:
        probability = percent(math.exp(found.logprob)) if found.logprob <= 0 else number(found.logprob)
        rows.append((tag("code", shown(_token(found.text), _TOKEN)), str(found.token_id), probability))
    return tag("div", table(f"Most likely tokens: {words}", columns, rows))


def _token(text: str) -> str:
    """Spaces at its ends can be seen."""
    body = text.strip(" ")
    if not body:
        return "␣" * len(text)
    start = len(text) - len(text.lstrip(" "))
    return "␣" * start + body + "␣" * (len(text) - start - len(body))


def _check_group(words: str, found: Sequence[Check]) -> Markup:
    columns = [Column(heading="Check", style="name"), Column(heading="Outcome")]
    columns += [Column(heading="Measured", style="n"), Column(heading="At most", style="n")]
    columns.append(Column(heading="Found", style="long"))
    rows = [
        (shown(check.name, 80), badge(check.outcome), number(check.measured), number(check.bound), shown(check.message))
        for check in found
    ]
    tally = ", ".join(
        f"{sum(check.outcome == outcome for check in found)} {outcome}"
        for outcome in ("failed", "inconclusive", "passed", "skipped")
        if any(check.outcome == outcome for check in found)
    )
    wrong = any(check.outcome in ("failed", "inconclusive") for check in found)
    return tag("details", tag("summary", f"{words}: {tally}"), table(words, columns, rows), open=wrong)
