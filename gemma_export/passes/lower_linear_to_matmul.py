"""Linear becomes Transpose and MatMul: what every runtime reads."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import attributes_of, nodes_of, refuse, replace, require_none, weight_of

__all__ = ["LowerLinearToMatMul"]

_NAME = "LowerLinearToMatMul"


class LowerLinearToMatMul(ir.passes.InPlacePass):
    """Projections and the head by standard operators.

    Before: Linear(x, W)
    After:  MatMul(x, Transpose(W))

    W stays [out_features, in_features] as the checkpoint stores it: a tied head reads the embedding's bytes, and
    runtimes fold the transposition into their kernels (onnxruntime when a session loads, OpenVINO as transpose_b).
    Source: https://onnx.ai/onnx/operators/onnx__MatMul.html.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every Linear node."""
        nodes = nodes_of(model, "Linear")
        for node in nodes:
            attributes_of(node, {}, _NAME)
            _lower(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No Linear node is left."""
        require_none(model, "Linear", _NAME)


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    x, stored = node.inputs
    weight = weight_of(stored, node, _NAME)
    if x is None or x.dtype is None:
        raise refuse(node, _NAME, "its input has no type")
    prefix = str(node.name).removesuffix(".Linear")
    transpose = ir.node("Transpose", inputs=[stored], attributes={"perm": [1, 0]}, name=f"{prefix}.Transpose")
    transposed = transpose.outputs[0]
    transposed.name, transposed.shape, transposed.type = transpose.name, ir.Shape(weight.shape[::-1]), x.type
    product = ir.node("MatMul", inputs=[x, transposed], name=f"{prefix}.MatMul")
    replace(graph, node, [transpose, product], product.outputs)
