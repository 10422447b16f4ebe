"""Linear becomes MatMul over a transposed weight; the head becomes Gemm over the weight as it is stored."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import (
    DOMAIN,
    attributes_of,
    drop_unused_initializers,
    insert_before,
    int64_constant,
    nodes_of,
    output_like,
    refuse,
    replace,
    require_none,
    weight_of,
    weight_value,
)
from gemma_export.weights import Transpose

__all__ = ["LowerLinear"]

_NAME = "LowerLinear"


class LowerLinear(ir.passes.InPlacePass):
    """Projections in floating point.

    Before: Linear(x, W)
    After:  MatMul(x, transposed W), the layout that kernels prepack fastest, transposed while it streams to disk
    Before: Linear(LastTokens(...), table), the head
    After:  Reshape, Gemm(transB=1), Reshape over the table as it is stored: a tied head shares the embedding's bytes

    Source: https://onnx.ai/onnx/operators/onnx__MatMul.html and https://onnx.ai/onnx/operators/onnx__Gemm.html.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every Linear node."""
        nodes = nodes_of(model, "Linear")
        for node in nodes:
            attributes_of(node, {}, _NAME)
            producer = node.inputs[0].producer() if node.inputs[0] is not None else None
            if producer is not None and (producer.domain, producer.op_type) == (DOMAIN, "LastTokens"):
                _lower_head(model.graph, node)
            else:
                _lower(model.graph, node)
        if nodes:
            drop_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No Linear node is left."""
        require_none(model, "Linear", _NAME)


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    x, stored = node.inputs
    weight = weight_of(stored, node, _NAME)
    assert x is not None
    assert stored is not None
    if x.dtype is None:
        raise refuse(node, _NAME, "its input has no type")
    transposed = weight_value(graph, f"{stored.name}_transposed", Transpose(weight), x.dtype)
    product = ir.node("MatMul", inputs=[x, transposed], name=str(node.name).replace(".Linear", ".MatMul"))
    replace(graph, node, [product], product.outputs)


def _lower_head(graph: ir.Graph, node: ir.Node) -> None:
    hidden, table = node.inputs
    weight = weight_of(table, node, _NAME)
    vocab_size, hidden_size = weight.shape
    prefix = str(node.name).removesuffix(".Linear")
    tape = ir.tape.Tape()
    rows = tape.op("Reshape", [hidden, int64_constant(graph, "lm_head.rows", [-1, hidden_size])])
    flat = tape.op("Gemm", [rows, table], {"transB": 1})
    leading = tape.op("Shape", [hidden], {"start": 0, "end": 2})
    shape = tape.op("Concat", [leading, int64_constant(graph, "lm_head.columns", [vocab_size])], {"axis": 0})
    for value, size in ((rows, hidden_size), (flat, vocab_size)):
        value.type, value.shape = node.outputs[0].type, ir.Shape([None, size])
    leading.type = shape.type = ir.TensorType(ir.DataType.INT64)
    logits = tape.op("Reshape", [flat, shape], output=output_like(node.outputs[0]))
    insert_before(graph, node, tape, prefix)
    replace(graph, node, [], [logits])
