"""Bars beside bars: one panel a headline metric, one bar a program, whiskers from the lowest to the highest round."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.machine import one_line
from benchmarks.harness.report import format_value
from benchmarks.harness.results import Metric, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_SUBJECT_COLOUR, _PEER_COLOUR, _TEXT_COLOUR = "#1a73e8", "#9aa0a6", "#3c4043"
_BAR_INCHES, _PANEL_INCHES = 0.5, 4.0
# more panels than this go into several rows
_PANELS_IN_A_ROW = 4


def draw(results: Results, path: Path) -> bool:
    """Writes a PNG; False, and no file, when no program has figures."""
    metrics = {name: metric for name, metric in results.metrics.items() if metric.headline}
    metrics = {name: m for name, m in metrics.items() if any(results.spread(p.name, name) for p in results.programs)}
    if not metrics:
        return False
    # a canvas of its own: no display, and no state shared with whoever imports this
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(metrics) // _PANELS_IN_A_ROW)
    columns = -(-len(metrics) // rows)
    size = (1.8 + _PANEL_INCHES * columns, 1.4 + rows * (0.6 + _BAR_INCHES * len(results.programs)))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for panel, (name, metric) in zip(panels, metrics.items(), strict=False):
        _panel(panel, results, name, metric)
    for empty in panels[len(metrics) :]:
        empty.set_axis_off()
    panels[0].set_yticks(range(len(results.programs)), [program.name for program in results.programs])
    panels[0].invert_yaxis()
    foot = (
        f"{one_line(dict(results.machine))}\n"
        f"bar: median of the interleaved rounds (at most {results.settings['rounds']}); whiskers: lowest to highest; "
        f"(ratio): {results.subject} / the program, pair by pair"
    )
    figure.suptitle(results.title, fontsize=12, fontweight="bold", color=_TEXT_COLOUR)
    figure.supxlabel(foot, fontsize=8, color=_TEXT_COLOUR)
    figure.savefig(path, metadata={"Software": None})
    return True


def _panel(panel: Axes, results: Results, name: str, metric: Metric) -> None:
    highest = max(spread.maximum for p in results.programs if (spread := results.spread(p.name, name)))
    for row, program in enumerate(results.programs):
        spread = results.spread(program.name, name)
        if spread is None:
            reason = textwrap.shorten(results.failure(program.name) or "no figure", 44, placeholder=" …")
            panel.text(highest * 0.01, row, reason, va="center", fontsize=7, style="italic", color=_TEXT_COLOUR)
            continue
        colour = _SUBJECT_COLOUR if program.name == results.subject else _PEER_COLOUR
        whiskers = [[spread.median - spread.minimum], [spread.maximum - spread.median]]
        panel.barh(row, spread.median, height=0.62, color=colour)
        if spread.maximum > spread.minimum:
            panel.errorbar(spread.median, row, xerr=whiskers, color=_TEXT_COLOUR, capsize=3, linewidth=1)
        ratio = results.ratio(program.name, name) if program.name != results.subject else None
        text = format_value(spread.median, metric.unit) + (f"  (ratio {ratio.median:.2f})" if ratio else "")
        panel.text(spread.maximum + highest * 0.03, row, text, va="center", fontsize=8, color=_TEXT_COLOUR)
    # room for the text beside the longest bar
    panel.set_xlim(0, highest * 1.6 or 1)
    panel.set_title(f"{metric.label} ({metric.better} is better)", fontsize=10, color=_TEXT_COLOUR)
    panel.set_xticks([])
    panel.tick_params(axis="y", length=0, labelsize=9)
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)
