"""The page's charts: KL by position, and the residual stream layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from gemma_validation.findings import LayerPoint, Localisation, PositionDrift, Report
from gemma_validation.report.charts import Line, Point, line_chart
from gemma_validation.report.markup import Markup, joined, tag
from gemma_validation.report.tables import Column, shown, table
from gemma_validation.report.text import count, number, shortened, visible

__all__ = ["layers", "positions"]

# more than a phone has pixels for
_MOST_POINTS = 300


def positions(report: Report) -> Markup:
    """A chart of each slice."""
    if not report.positions:
        return Markup("")
    note = "One document of each slice: KL(reference ‖ test) at every position, on a logarithmic scale."
    charts = [_position_chart(drift) for drift in report.positions]
    return joined(tag("h2", "Drift by position"), tag("p", note, class_="soft"), tag("div", *charts, class_="charts"))


def layers(report: Report) -> Markup:
    """Error and headroom along the residual stream, with the culprit."""
    found = report.localisation
    if found is None:
        return Markup("")
    parts: list[str] = [tag("h2", "Drift by layer"), tag("p", shown(found.message, 600))]
    if found.culprit is not None:
        parts.append(tag("p", "Culprit: ", tag("code", shown(found.culprit)), ", circled in the chart."))
    if found.points:
        charts = [_layer_chart(found)]
        if any(point.headroom_bits is not None for point in found.points):
            charts.append(_headroom_chart(found.points))
        parts += [tag("div", *charts, class_="charts"), _layer_table(found)]
    return joined(*parts)


def _position_chart(drift: PositionDrift) -> Markup:
    binned = _binned(drift)
    lines = [Line(name="largest", style="s2", points=tuple(Point(x=x, y=high) for x, _, high in binned))]
    middle = Line(name="median", style="s1", points=tuple(Point(x=x, y=low) for x, low, _ in binned))
    each = math.ceil(len(drift.kl) / max(len(binned), 1))
    lines = [*lines, middle] if each > 1 else [Line(name="each position", style="s1", points=middle.points)]
    finite = [value for value in drift.kl if math.isfinite(value)]
    missing = len(drift.kl) - len(finite)
    gaps = f"; {count(missing)} values are not finite" if missing else ""
    middle_value, largest = (median(finite), max(finite)) if finite else (None, None)
    chart = line_chart(
        lines,
        title=f"KL by position, {drift.slice}",
        description=f"{count(len(drift.kl))} positions, median {number(middle_value)} nats, largest "
        f"{number(largest)} nats{gaps}",
        x_label="position (tokens)",
        y_label="KL (nats)",
        log=True,
    )
    about = f", {count(len(drift.kl))} positions" + (f", {each} in each point" if each > 1 else "") + gaps
    caption = tag("figcaption", tag("strong", shown(drift.slice)), ": ", shown(drift.document, 80), about)
    return tag("figure", caption, _keys(lines), chart)


def _binned(drift: PositionDrift) -> list[tuple[float, float, float]]:
    """(position, median, largest) of equal runs of positions; NaN where no value is finite."""
    size = max(1, math.ceil(len(drift.kl) / _MOST_POINTS))
    found = []
    for start in range(0, len(drift.kl), size):
        values = [value for value in drift.kl[start : start + size] if math.isfinite(value)]
        place = drift.first + start + (min(size, len(drift.kl) - start) - 1) / 2
        found.append((place, median(values), max(values)) if values else (place, math.nan, math.nan))
    return found


def _layer_chart(found: Localisation) -> Markup:
    lines = [_layer_line("cumulative", "s1", [point.cumulative for point in found.points], found)]
    if any(point.injected is not None for point in found.points):
        lines.append(_layer_line("injected", "s2", [point.injected for point in found.points], found))
    named = f", culprit {found.culprit}" if found.culprit else ""
    chart = line_chart(
        lines,
        title="Relative squared error along the residual stream",
        description=f"{len(found.points)} points{named}; the table below has the numbers",
        x_label="layer (after attention, after MLP)",
        y_label="relative squared error",
        log=True,
        x_ticks=_layer_ticks(found.points),
    )
    words = "Error along the residual stream: cumulative with the test's own stream"
    words += ", injected with the reference's stream fed into each layer." if len(lines) > 1 else "."
    return tag("figure", tag("figcaption", words), _keys(lines), chart)


def _layer_line(name: str, style: str, values: Sequence[float | None], found: Localisation) -> Line:
    drawn = []
    for index, (point, value) in enumerate(zip(found.points, values, strict=True)):
        label = f"{shortened(point.point, 80)}: {name} {number(value)}"
        # the injected error is what names a culprit, where it was measured
        marked = point.point == found.culprit and (name == "injected" or point.injected is None)
        drawn.append(Point(x=index, y=math.nan if value is None else value, label=label, marked=marked))
    return Line(name=name, style=style, points=tuple(drawn))


def _layer_ticks(points: Sequence[LayerPoint]) -> list[tuple[float, str]]:
    first: dict[int, int] = {}
    for index, point in enumerate(points):
        if point.layer is not None:
            first.setdefault(point.layer, index)
    step = max(1, math.ceil(len(first) / 8))
    return [(float(index), str(layer)) for layer, index in first.items() if layer % step == 0]


def _headroom_chart(points: Sequence[LayerPoint]) -> Markup:
    drawn = tuple(
        Point(x=index, y=point.headroom_bits, label=f"{shortened(point.point, 80)}: {number(point.headroom_bits)} bits")
        for index, point in enumerate(points)
        if point.headroom_bits is not None
    )
    least = min(drawn, key=lambda point: point.y)
    chart = line_chart(
        [Line(name="headroom", style="s1", points=drawn)],
        title="Headroom of the residual stream in bits",
        description=f"least {least.label}",
        x_label="layer (after attention, after MLP)",
        y_label="headroom (bits)",
        x_ticks=_layer_ticks(points),
    )
    words = "Headroom to the largest number of the activations' format, of float16 where that is float32; below 0 the "
    words += f"stream overflows; least {visible(least.label)}."
    return tag("figure", tag("figcaption", words), chart)


def _layer_table(found: Localisation) -> Markup:
    headings = ("Cumulative error", "Injected error", "Largest |value|", "Headroom (bits)")
    columns = [Column(heading="Point", style="name"), *(Column(heading=text, style="n") for text in headings)]
    rows = []
    for point in found.points:
        values = (point.cumulative, point.injected, point.peak, point.headroom_bits)
        rows.append((shown(point.point, 80), *map(number, values)))
    return tag(
        "details", tag("summary", "All points in numbers"), table("Points of the residual stream", columns, rows)
    )


def _keys(lines: Sequence[Line]) -> Markup:
    if len(lines) < 2:
        return Markup("")
    keys = []
    for line in lines:
        stroke = tag("line", class_=f"line {line.style}", x1=0, y1=5, x2=26, y2=5)
        swatch = tag("svg", stroke, viewBox="0 0 26 10", aria_hidden="true")
        keys.append(tag("span", swatch, line.name, class_="key"))
    return tag("div", *keys)
