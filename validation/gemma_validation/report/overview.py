"""The upper part of the page: the verdict, the budget's gates, and the drift of each slice beside the noise floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemma_validation.findings import Drift, Report
from gemma_validation.report.charts import bound_bar
from gemma_validation.report.markup import Markup, joined, tag
from gemma_validation.report.tables import Column, badge, shown, table
from gemma_validation.report.text import count, measure, metric, number, percent, public_name

__all__ = ["VERDICTS", "gates", "header", "slices"]

VERDICTS = {
    "passed": "The export computes what the reference computes, within the budget.",
    "drift": "The export drifts further from the reference than the budget allows.",
    "inconclusive": "The measurement does not decide. This is no pass.",
    "broken": "The folder is not sound: its structure is wrong, or it computes values that are not finite.",
}

# every quantity of a slice: words with the unit, and how it is written
_ROWS: tuple[tuple[str, Callable[[Drift], str]], ...] = (
    ("KL, mean (nats)", lambda drift: number(drift.kl.mean)),
    ("KL, mean, upper 95 % bound (nats)", lambda drift: number(drift.kl_mean_upper)),
    ("KL, median (nats)", lambda drift: number(drift.kl.median)),
    ("KL, median, upper 95 % bound (nats)", lambda drift: number(drift.kl_median_upper)),
    ("KL, 95th percentile (nats)", lambda drift: number(drift.kl.p95)),
    ("KL, 95th percentile, upper 95 % bound (nats)", lambda drift: number(drift.kl_p95_upper)),
    ("KL, 99th percentile (nats)", lambda drift: number(drift.kl.p99)),
    ("KL, 99th percentile, upper 95 % bound (nats)", lambda drift: number(drift.kl_p99_upper)),
    ("KL, 99.9th percentile (nats)", lambda drift: number(drift.kl.p999)),
    ("KL, 99.9th percentile, upper 95 % bound (nats)", lambda drift: number(drift.kl_p999_upper)),
    ("KL, largest (nats)", lambda drift: number(drift.kl.max)),
    ("Probability shift, mean", lambda drift: number(drift.probability_shift_mean)),
    ("Probability shift, RMS", lambda drift: number(drift.probability_shift_rms)),
    ("Probability shift, RMS, upper 95 % bound", lambda drift: number(drift.probability_shift_rms_upper)),
    ("NLL of the reference (nats a token)", lambda drift: number(drift.nll_reference)),
    ("NLL of the test (nats a token)", lambda drift: number(drift.nll_test)),
    ("Perplexity ratio", lambda drift: f"{drift.perplexity_ratio:.6f}"),
    ("Perplexity ratio, upper 95 % bound", lambda drift: measure("perplexity_ratio", drift.perplexity_ratio_upper)),
    ("Most likely token the same", lambda drift: percent(drift.top1_agreement)),
    ("Most likely token differs, upper 95 % bound", lambda drift: percent(drift.top1_disagreement_upper)),
    ("Decisive flips (positions)", lambda drift: count(drift.decisive_flips)),
    ("Decisive flips, upper 95 % bound", lambda drift: percent(drift.decisive_flips_upper)),
    ("Near ties (positions)", lambda drift: count(drift.near_ties)),
    ("Ten most likely tokens shared", lambda drift: percent(drift.top10_overlap)),
    ("Ten most likely tokens missed, upper 95 % bound", lambda drift: percent(drift.top10_misses_upper)),
    ("Normalised squared error of logits", lambda drift: number(drift.normalised_mse)),
    ("Normalised squared error of logits, upper 95 % bound", lambda drift: number(drift.normalised_mse_upper)),
    ("Largest logit difference (std. dev.)", lambda drift: number(drift.max_difference)),
)


def header(report: Report) -> Markup:
    """What was validated against what, the verdict and its reasons."""
    subject, reference = report.subject, report.reference
    against = "without a reference" if reference.kind == "none" else "against "
    line: list[str] = [
        tag("strong", shown(subject.variant or subject.family, 80)),
        " in ",
        shown(subject.precision, 80),
    ]
    line += [" for ", shown(subject.target, 80), " on ", shown(subject.provider, 80), ", ", against]
    if reference.kind != "none":
        line += [shown(public_name(reference.name), 80), f" ({reference.kind}, ", shown(reference.dtype, 40), ")"]
    line += [f"; {report.suite} suite, ", shown(report.started, 40), "."]
    reasons = tag("ul", *(tag("li", shown(reason, 600)) for reason in report.reasons)) if report.reasons else ""
    verdict = tag(
        "div",
        tag("strong", report.verdict.upper()),
        f" (exit code {report.exit_code})",
        tag("p", VERDICTS[report.verdict]),
        reasons,
        class_=f"verdict {report.verdict}",
    )
    return joined(tag("h1", "Validation of an exported Gemma"), tag("p", *line, class_="soft"), verdict)


def gates(report: Report) -> Markup:
    """Each bound of the budget beside what was measured."""
    if not report.gates:
        return joined(tag("h2", "Gates"), tag("p", "No bound was measured."))
    columns = [Column(heading="Gate", style="name"), Column(heading="Outcome"), Column(heading="Against the bound")]
    columns += [Column(heading=text, style="n") for text in ("Measured", "Upper 95 %", "Bound")]
    columns += [Column(heading="Unit"), Column(heading="Slice"), Column(heading="Why this bound", style="long")]
    rows = []
    for gate in report.gates:
        name, unit = metric(gate.metric)
        best = 1.0 if gate.metric.endswith("_ratio") else 0.0
        bar = bound_bar(measured=gate.measured, upper=gate.upper, bound=gate.bound, outcome=gate.outcome, best=best)
        values = (measure(gate.metric, value) for value in (gate.measured, gate.upper, gate.bound))
        rows.append((shown(name), badge(gate.outcome), bar, *values, unit, shown(gate.slice), shown(gate.reason)))
    note = "The upper end of the 95 % interval decides; largest values have none and are held as they are. "
    note += "The dashed line is the bound."
    return joined(tag("h2", "Gates"), tag("p", note, class_="soft"), table("Gates", columns, rows))


def slices(report: Report) -> Markup:
    """Key numbers of every slice in one table, and all numbers of each slice below it."""
    if not report.drift:
        return Markup("")
    floors = {drift.slice: drift for drift in report.noise_floor}
    parts: list[str] = [tag("h2", "Drift by slice of the text")]
    if any(drift.lower_bound for drift in report.drift):
        parts.append(tag("p", "The reference knows only its most likely tokens: every KL here is a lower bound."))
    floor = "The noise floor is the reference's own bfloat16 run, measured in the same way."
    parts.append(tag("p", floor if floors else "There is no noise floor for this reference.", class_="soft"))
    parts.append(_key_numbers(report.drift, floors))
    parts += [_all_numbers(drift, floors.get(drift.slice)) for drift in report.drift]
    return joined(*parts)


def _key_numbers(drifts: Sequence[Drift], floors: dict[str, Drift]) -> Markup:
    headings = ["KL, mean (nats)", "noise floor", "Same most likely token", "noise floor", "Decisive flips"]
    headings += ["Perplexity ratio", "Positions", "Documents"]
    columns = [Column(heading="Slice", style="name"), *(Column(heading=text, style="n") for text in headings)]
    rows = []
    for drift in drifts:
        floor = floors.get(drift.slice)
        bound = "≥ " if drift.lower_bound else ""
        row = [shown(drift.slice), f"{bound}{number(drift.kl.mean)}", number(floor.kl.mean if floor else None)]
        row += [percent(drift.top1_agreement), percent(floor.top1_agreement) if floor else number(None)]
        row += [count(drift.decisive_flips), f"{drift.perplexity_ratio:.6f}"]
        rows.append([*row, count(drift.positions), count(drift.documents)])
    return table("Key numbers of each slice", columns, rows)


def _all_numbers(drift: Drift, floor: Drift | None) -> Markup:
    columns = [
        Column(heading="Quantity"),
        Column(heading="Export", style="n"),
        Column(heading="Noise floor", style="n"),
    ]
    rows = [(words, written(drift), written(floor) if floor else number(None)) for words, written in _ROWS]
    about = f": {count(drift.positions)} positions of {count(drift.documents)} documents"
    summary = tag("summary", "All numbers of ", shown(drift.slice), about)
    return tag("details", summary, table(f"All numbers of {drift.slice}", columns, rows))
