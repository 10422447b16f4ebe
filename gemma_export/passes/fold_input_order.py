"""The order of down projections' input features moves into what makes those features, where it costs nothing."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import DOMAIN, nodes_of, weight_of
from gemma_export.stored_codes import stored_matrix, with_columns_in_order, with_rows
from gemma_export.weights import Weight, WeightTensor

__all__ = ["FoldInputOrder"]

_NAME = "FoldInputOrder"


class FoldInputOrder(ir.passes.InPlacePass):
    """A quantised checkpoint's activation order, folded into neighbouring weights, exactly.

    Before: Linear(GeGLU(Linear(x, gate), Linear(x, up)), down)
    After:  the same with the rows of gate and up in the order of down's columns, and down's columns in that order

    GeGLU works on each feature alone, so its features may come in any order. A Gather in front of a 16384 x 2048
    product instead (what `ordered_input` adds for the others) adds half of the product's time at 128 rows.

    Precondition: semantic nodes with bound weights, before anything computes with these. What is shared with other
    readers, or is in floating point, stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds every order that it can."""
        folded = [_fold(node) for node in nodes_of(model, "GeGLU")]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold(node: ir.Node) -> bool:
    uses = node.outputs[0].uses()
    readers = [use.node for use in uses if _is_linear(use.node) and use.idx == 0]
    own = [value for value in node.inputs if value is not None and len(value.uses()) == 1]
    producers = [value.producer() for value in own if not value.is_graph_output()]
    makers = [producer for producer in producers if producer is not None and _is_linear(producer)]
    if len(uses) != 1 or len(readers) != 1 or len(makers) != 2 or node.outputs[0].is_graph_output():
        return False
    weights = [_own_weight(linear) for linear in (*readers, *makers)]
    if any(weight is None or stored_matrix(weight, _NAME) is None for weight in weights):
        return False
    down, *others = (weight for weight in weights if weight is not None)
    matrix = stored_matrix(down, _NAME)
    order = None if matrix is None else matrix.order()
    if order is None:
        return False
    _bind(readers[0], with_columns_in_order(down))
    for maker, weight in zip(makers, others, strict=True):
        _bind(maker, with_rows(weight, order))
    return True


def _is_linear(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "Linear")


def _own_weight(node: ir.Node) -> Weight | None:
    """The weight of a projection, None where others read it too."""
    value = node.inputs[1]
    return weight_of(value, node, _NAME) if value is not None and len(value.uses()) == 1 else None


def _bind(node: ir.Node, weight: Weight) -> None:
    value = node.inputs[1]
    assert value is not None
    value.const_value = WeightTensor(weight, value.name)
