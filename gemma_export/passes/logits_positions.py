"""Which positions get logits: what the passes that lower LastTokens share."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import (
    attributes_of,
    drop_unused_initializers,
    insert_before,
    int64_constant,
    nodes_of,
    output_like,
    refuse,
    replace,
)

__all__ = ["declare_logits", "logits_positions", "select_positions"]

_SOFT_CAP = frozenset({"Div", "Mul", "SoftCap", "Tanh"})
# (graph, tape) -> int64 [batch_size, positions]: rows of the hidden states; None takes them all as they are
Index = Callable[[ir.Graph, ir.tape.Tape], ir.Value | None]


def logits_positions(keep: int) -> int | str:
    """The logits' second dimension for `keep` positions per row (0 means all): a number or the contract's symbol."""
    symbols: dict[int, int | str] = {0: "sequence_length", 1: 1}
    return symbols.get(keep, "logits_length")


def declare_logits(model: ir.Model, keep: int) -> None:
    """Declares the shape of the output `logits` for `keep` positions per row."""
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    assert logits.shape is not None
    shape = ir.Shape(["batch_size", logits_positions(keep), logits.shape[2]])
    logits.shape = shape
    # soft-capping stands between the head and the output
    node = logits.producer()
    while node is not None and node.op_type in _SOFT_CAP and node.inputs[0] is not None:
        node.inputs[0].shape = shape
        node = node.inputs[0].producer()


def select_positions(model: ir.Model, keep: int, index: Index, pass_name: str) -> ir.passes.PassResult:
    """Replaces LastTokens by a gather of the indexed rows and declares the logits' shape.

    Args:
        model: changed in place.
        keep: positions per row; 0 means all.
        index: makes the rows' numbers.
        pass_name: for errors.

    Raises:
        PassError: the node keeps fewer positions than are wanted, or has an unknown attribute.
    """
    nodes = nodes_of(model, "LastTokens")
    for node in nodes:
        found = attributes_of(node, {"keep": 0}, pass_name)["keep"]
        if found not in (0, keep):
            raise refuse(node, pass_name, f"keep is {found}, expected 0 (all) or {keep}")
        _lower(model.graph, node, keep, index)
    if nodes:
        declare_logits(model, keep)
        drop_unused_initializers(model.graph)
    return ir.passes.PassResult(model, modified=bool(nodes))


def _lower(graph: ir.Graph, node: ir.Node, keep: int, index: Index) -> None:
    hidden = node.inputs[0]
    assert hidden is not None
    assert hidden.shape is not None
    tape = ir.tape.Tape()
    rows = index(graph, tape)
    if rows is None:
        ir.convenience.replace_all_uses_with(list(node.outputs), [hidden], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        return
    axis_2 = int64_constant(graph, "constant.[2]", [2])
    selected = tape.op(
        "GatherND",
        [hidden, tape.op("Unsqueeze", [rows, axis_2])],
        {"batch_dims": 1},
        output=output_like(node.outputs[0]),
    )
    selected.shape = ir.Shape(["batch_size", logits_positions(keep), hidden.shape[2]])
    insert_before(graph, node, tape, "logits_positions")
    replace(graph, node, [], [selected])
