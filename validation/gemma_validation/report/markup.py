"""HTML and SVG from Python calls: text is escaped unless it is `Markup` already."""

from __future__ import annotations

import html

from gemma_validation.report.text import clean

__all__ = ["Markup", "joined", "tag"]

_VOID = ("meta", "line", "rect", "circle", "path", "polyline", "polygon")
_SVG = ("line", "rect", "circle", "path", "polyline", "polygon")


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float | bool) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: Markup as it is, other text escaped.
        attributes: `class_` is class, `stroke_width` stroke-width; True writes a bare name, False none.
    """
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID and not children:
        return Markup(f"<{name}{opening}{'/' if name in _SVG else ''}>")
    return Markup(f"<{name}{opening}>{joined(*children)}</{name}>")


def joined(*parts: str) -> Markup:
    """Parts one behind the other, each escaped unless it is Markup."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(clean(part)) for part in parts))


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return f" {name}" if value else ""
    text = f"{value:.6g}" if isinstance(value, float) else clean(str(value))
    return f' {name}="{html.escape(text)}"'
