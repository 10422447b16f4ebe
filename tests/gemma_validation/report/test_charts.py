"""Charts: what is drawn where."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from gemma_validation.report.charts import Line, Point, bound_bar, line_chart


def chart(*values: float, log: bool = True, labels: bool = False) -> ET.Element:
    points = tuple(
        Point(x=index, y=value, label=f"point {index}" if labels else "") for index, value in enumerate(values)
    )
    line = Line(name="a", style="s1", points=points)
    text = line_chart([line], title="T <1>", description="D", x_label="x", y_label="y (nats)", log=log)
    return ET.fromstring(text)


def drawn(root: ET.Element) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", line.get("points", ""))]
        for line in root.iter("polyline")
    ]


def tick_labels(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter("text") if text.get("class") == "tick"]


def test_decades_are_equally_far_apart() -> None:
    ((first, second, third),) = drawn(chart(1e-6, 1e-4, 1e-2))
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.1)
    assert third[1] < first[1]
    assert (first[0], third[0]) == (46, 352)
    labels = tick_labels(chart(1e-6, 1e-4, 1e-2))
    assert labels[:5] == ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²"]


def test_zero_lies_at_the_lower_edge_of_a_log_axis() -> None:
    ((zero, other, _),) = drawn(chart(0.0, 1e-3, 1e-2))
    assert zero[1] == pytest.approx(other[1])
    assert drawn(chart(0.0, 0.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_leaves_a_gap(bad: float) -> None:
    root = chart(1.0, 2.0, bad, 3.0, 4.0, bad, 5.0)
    assert [len(run) for run in drawn(root)] == [2, 2]
    # a single value between gaps is a dot
    assert len(list(root.iter("circle"))) == 1
    assert "nan" not in ET.tostring(root, encoding="unicode")


def test_a_linear_axis_begins_at_zero_and_has_round_ticks() -> None:
    ((low, high),) = drawn(chart(5.0, 10.0, log=False))
    assert (180 - low[1]) * 2 == pytest.approx(180 - high[1], abs=0.1)
    assert tick_labels(chart(5.0, 10.0, log=False))[:6] == ["0", "2", "4", "6", "8", "10"]


@pytest.mark.parametrize("values", [(), (math.nan,), (0.0,), (7.0,), (1e-300, 1e300), (5e-324, 1.7e308)])
def test_odd_data_makes_a_chart(values: tuple[float, ...]) -> None:
    for log in (True, False):
        for run in drawn(chart(*values, log=log)):
            assert all(0 <= x <= 360 and 0 <= y <= 216 for x, y in run)


def test_ticks_beyond_the_data_are_not_drawn() -> None:
    line = Line(name="a", style="s1", points=(Point(x=1, y=1.0), Point(x=2, y=2.0)))
    options = {"title": "T", "description": "D", "x_label": "x", "y_label": "y"}
    root = ET.fromstring(line_chart([line], **options, x_ticks=[(0.0, "before"), (1.0, "first"), (9.0, "behind")]))
    assert {"before", "first", "behind"} & set(tick_labels(root)) == {"first"}


def test_titles_are_read_aloud_and_escaped() -> None:
    root = chart(1.0, 2.0, labels=True)
    assert (root.get("role"), root.get("aria-label")) == ("img", "T <1>. D")
    assert (root.findtext("title"), root.findtext("desc")) == ("T <1>", "D")
    assert [circle.findtext("title") for circle in root.iter("circle")] == ["point 0", "point 1"]


def test_a_bar_shows_measured_upper_and_bound() -> None:
    root = ET.fromstring(bound_bar(measured=1.0, upper=1.5, bound=2.0, outcome="passed"))
    bar = next(rect for rect in root.iter("rect") if rect.get("class") == "bar passed")
    assert float(bar.get("width", "")) == pytest.approx(50)
    lines = {(line.get("class"), line.get("x2")) for line in root.iter("line")}
    assert lines == {("whisker", "75"), ("bound", "100")}
    assert list(root.iter("polygon")) == []
    assert root.get("aria-label") == "passed: measured 1, upper 1.5, bound 2"


@pytest.mark.parametrize(("measured", "upper"), [(9.0, None), (1.0, 9.0), (math.nan, None), (math.inf, math.nan)])
def test_a_bar_beyond_its_scale_has_an_arrow(measured: float, upper: float | None) -> None:
    root = ET.fromstring(bound_bar(measured=measured, upper=upper, bound=2.0, outcome="failed"))
    assert len(list(root.iter("polygon"))) == 1
    assert all(float(line.get("x2", "")) <= 150 for line in root.iter("line"))


def test_a_bar_of_a_ratio_begins_at_one() -> None:
    root = ET.fromstring(bound_bar(measured=1.001, upper=None, bound=1.002, outcome="passed", best=1.0))
    bar = next(rect for rect in root.iter("rect") if rect.get("class") == "bar passed")
    assert float(bar.get("width", "")) == pytest.approx(50)


def test_a_bound_of_zero() -> None:
    root = ET.fromstring(bound_bar(measured=0.0, upper=0.0, bound=0.0, outcome="passed"))
    assert list(root.iter("polygon")) == []
    assert (
        len(list(ET.fromstring(bound_bar(measured=1.0, upper=None, bound=0.0, outcome="failed")).iter("polygon"))) == 1
    )
