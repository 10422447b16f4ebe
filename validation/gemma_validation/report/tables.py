"""Tables of the page: each scrolls within its own box, by keyboard too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gemma_validation.findings import Outcome
from gemma_validation.report.markup import Markup, joined, tag
from gemma_validation.report.text import number, shortened, visible

__all__ = ["Column", "badge", "shown", "table"]

# with a sign, so that colour is not the only difference
_SIGNS = {"passed": "\u2713", "failed": "\u2717", "drift": "\u2717", "broken": "\u2717", "inconclusive": "?"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column's heading, and the class of its cells: "n" numbers at the right, "long" sentences, "name", ""."""

    heading: str
    style: str = ""


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Markup:
    """A table in a box; the first cell of each row is its heading.

    Args:
        caption: read aloud for the box.
        columns: one for each cell of a row.
        rows: text, which is escaped, or Markup.
    """
    head = tag("tr", *(tag("th", column.heading, scope="col", class_=column.style) for column in columns))
    body = [tag("tr", *(_cell(columns[index], index, cell) for index, cell in enumerate(row))) for row in rows]
    content = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", content, class_="box", role="region", aria_label=visible(shortened(caption, 120)), tabindex=0)


def badge(outcome: Outcome | str) -> Markup:
    """An outcome with its sign and colour."""
    return tag("span", f"{_SIGNS.get(outcome, number(None))} {outcome}", class_=f"badge {outcome}")


def shown(text: str, limit: int = 300) -> Markup:
    """Text from outside: cut, nothing hidden, its direction kept apart from that of the text around it."""
    return tag("bdi", visible(shortened(text, limit)))


def _cell(column: Column, index: int, content: str) -> Markup:
    if index == 0:
        return tag("th", joined(content), scope="row", class_=column.style)
    return tag("td", joined(content), class_=column.style)
