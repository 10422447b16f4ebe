"""Charts as inline SVG: no script, colours from the page's style sheet, a title and a description for screen readers.

They are drawn 360 units wide, a phone's width, so that their text is never scaled down to less than it can be read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from gemma_validation.report.markup import Markup, joined, tag
from gemma_validation.report.text import number, visible

__all__ = ["Line", "Point", "bound_bar", "line_chart", "superscript"]

_WIDTH, _HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 36
_EXPONENTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One value; `label` is what a pointer over it shows."""

    x: float
    y: float
    label: str = ""
    marked: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A named series; `style` is one of the page's classes s1, s2, s3. Dots are drawn where points have labels."""

    name: str
    style: str
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    transform: Callable[[float], float]

    def place(self, value: float) -> float:
        """Between 0 (low) and 1 (high); what lies beyond is drawn at the edge."""
        low, high = self.transform(self.low), self.transform(self.high)
        found = self.transform(min(max(value, self.low), self.high))
        return (found - low) / (high - low) if high > low else 0.5


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    x_ticks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """An SVG of lines over a common x.

    Args:
        lines: values that are not finite leave gaps; on a log axis 0 is drawn at the lower edge.
        title, description: read aloud instead of the drawing.
        x_label, y_label: what the axes show, with units.
        log: the y axis is logarithmic.
        x_ticks: places and labels on the x axis; none: round numbers.
    """
    xs = [point.x for line in lines for point in line.points]
    ys = [point.y for line in lines for point in line.points if math.isfinite(point.y)]
    across = _linear(min(xs, default=0), max(xs, default=1))
    if x_ticks:
        across = dataclasses.replace(across, low=min(xs), high=max(xs), ticks=tuple(x_ticks))
    up = _logarithmic(ys) if log else _linear(min(0.0, *ys) if ys else 0.0, max(ys, default=1))
    plot = [_grid(across, up), *(_drawn(line, across, up) for line in lines)]
    labels = [
        tag("text", x_label, class_="axis", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, text_anchor="middle"),
        tag("text", y_label, class_="axis", transform=f"translate(11 {_middle()}) rotate(-90)", text_anchor="middle"),
    ]
    return _svg(_WIDTH, _HEIGHT, title, description, *plot, *labels)


def bound_bar(*, measured: float, upper: float | None, bound: float, outcome: str, best: float = 0.0) -> Markup:
    """A bar of what was measured, a whisker to its upper 95 % bound, and a line at the budget's bound.

    Args:
        measured, upper, bound: of the gate; NaN is drawn beyond the scale.
        outcome: the bar's colour.
        best: the value of an export that computes the same, where the bar begins: 1 for ratios.
    """
    width, height, full = 150, 16, max((bound - best) * 1.5, 1e-300)

    def place(value: float) -> float:
        # beyond the scale, and what is not a number, ends at the right edge
        return float(width) if math.isnan(value) else width * min(max((value - best) / full, 0.0), 1.0)

    parts = [
        tag("rect", class_="track", x=0, y=3, width=width, height=10),
        tag("rect", class_=f"bar {outcome}", x=0, y=3, width=max(place(measured), 1.0), height=10),
    ]
    if upper is not None:
        start, end = place(measured), place(upper)
        parts += [
            tag("line", class_="whisker", x1=start, y1=8, x2=end, y2=8),
            tag("line", class_="whisker", x1=end, y1=5, x2=end, y2=11),
        ]
    if not all(value - best <= full for value in (measured, upper) if value is not None):
        parts.append(tag("polygon", class_="beyond", points=f"{width - 7},2 {width},8 {width - 7},14"))
    parts.append(tag("line", class_="bound", x1=place(bound), y1=0, x2=place(bound), y2=height))
    text = f"measured {number(measured)}, upper {number(upper)}, bound {number(bound)}"
    return _svg(width, height, f"{outcome}: {text}", "", *parts, small=True)


def superscript(exponent: int) -> str:
    """A power of ten."""
    return f"10{str(exponent).translate(_EXPONENTS)}"


def _svg(width: int, height: int, title: str, description: str, *parts: str, small: bool = False) -> Markup:
    about = [tag("title", visible(title))]
    if description:
        about.append(tag("desc", visible(description)))
    return tag(
        "svg",
        *about,
        *parts,
        viewBox=f"0 0 {width} {height}",
        class_="small" if small else "chart",
        role="img",
        aria_label=visible(f"{title}. {description}" if description else title),
    )


def _middle() -> float:
    return (_TOP + _HEIGHT - _BOTTOM) / 2


def _x(axis: _Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: _Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(across: _Axis, up: _Axis) -> Markup:
    parts = []
    for value, label in up.ticks:
        y = _y(up, value)
        parts.append(tag("line", class_="grid", x1=_LEFT, y1=y, x2=_WIDTH - _RIGHT, y2=y))
        parts.append(tag("text", label, class_="tick", x=_LEFT - 4, y=y + 4, text_anchor="end"))
    for value, label in across.ticks:
        if not across.low <= value <= across.high:
            continue
        x = _x(across, value)
        parts.append(tag("line", class_="grid", x1=x, y1=_HEIGHT - _BOTTOM, x2=x, y2=_HEIGHT - _BOTTOM + 3))
        parts.append(tag("text", label, class_="tick", x=x, y=_HEIGHT - _BOTTOM + 14, text_anchor="middle"))
    return joined(*parts)


def _drawn(line: Line, across: _Axis, up: _Axis) -> Markup:
    parts, run = [], []
    for point in (*line.points, None):
        if point is not None and math.isfinite(point.y):
            run.append(f"{_x(across, point.x):.5g},{_y(up, point.y):.5g}")
            continue
        if len(run) == 1:
            x, y = run[0].split(",")
            parts.append(tag("circle", class_=f"dot {line.style}", cx=x, cy=y, r=2))
        elif run:
            parts.append(tag("polyline", class_=f"line {line.style}", points=" ".join(run)))
        run = []
    for point in line.points:
        if point.label and math.isfinite(point.y):
            place = {"cx": _x(across, point.x), "cy": _y(up, point.y)}
            if point.marked:
                parts.append(tag("circle", class_="mark", r=6, **place))
            label = tag("title", visible(point.label))
            parts.append(tag("circle", label, class_=f"dot {line.style}", r=2.2, **place))
    return joined(*parts)


def _logarithmic(values: Sequence[float]) -> _Axis:
    positive = [value for value in values if value > 0] or [1e-1]
    # powers of ten that a float can hold
    low = max(math.floor(math.log10(min(positive))), -307)
    high = max(min(math.ceil(math.log10(max(positive))), 308), low + 1)
    step = math.ceil((high - low) / 6)
    ticks = tuple((10.0**power, superscript(power)) for power in range(low, high + 1, step))
    return _Axis(low=10.0**low, high=10.0**high, ticks=ticks, transform=math.log10)


def _linear(low: float, high: float) -> _Axis:
    """Ticks at multiples of 1, 2 or 5 times a power of ten, about five of them."""
    high = high if high > low else low + 1
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple((index * step, f"{index * step:,.10g}") for index in range(first, last + 1))
    return _Axis(low=low, high=high, ticks=ticks, transform=float)
