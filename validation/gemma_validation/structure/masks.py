"""Masks: which positions a token sees, as comparisons of positions say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_validation.structure.facts import scalar_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["compacted_causal", "mask_window"]

# what a mask is joined of
_JOINED = frozenset({"And", "Or", "Unsqueeze"})


def mask_window(mask: ir.Value | None) -> int:
    """The number that the distance of two positions is held against; 0 where a mask holds it against none."""
    values, seen = [mask], set()
    for value in values:
        producer = value.producer() if value is not None else None
        if producer is None or id(producer) in seen:
            continue
        seen.add(id(producer))
        limit = scalar_of(producer.inputs[1]) if producer.op_type in ("Less", "LessOrEqual") else None
        if limit is not None:
            return int(limit) + (producer.op_type == "LessOrEqual")
        if producer.op_type in _JOINED:
            values.extend(producer.inputs)
    return 0


def compacted_causal(mask: ir.Value | None) -> bool:
    """Whether a mask over compacted rows is columns <= positions, and in a window positions - columns < a number."""
    node = mask.producer() if mask is not None else None
    window = None
    if node is not None and node.op_type == "And":
        node, window = (None if value is None else value.producer() for value in node.inputs)
        if window is None or window.op_type != "Less":
            return False
    if node is None or node.op_type != "LessOrEqual":
        return False
    columns, positions = node.inputs
    if not _come_from(positions, "rows.position_ids"):
        return False
    if window is None:
        return True
    distance = None if window.inputs[0] is None else window.inputs[0].producer()
    return distance is not None and distance.op_type == "Sub" and list(distance.inputs) == [positions, columns]


def _come_from(value: ir.Value | None, name: str) -> bool:
    node = None if value is None else value.producer()
    return (
        node is not None and node.op_type == "Unsqueeze" and node.inputs[0] is not None and node.inputs[0].name == name
    )
