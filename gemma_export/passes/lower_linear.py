"""Linear becomes FusedMatMul over the weight as the checkpoint stores it."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import attributes_of, nodes_of, refuse, replace, require_none, weight_of

__all__ = ["LowerLinear"]

_NAME = "LowerLinear"


class LowerLinear(ir.passes.InPlacePass):
    """Projections and the head in floating point.

    Before: Linear(x, W)
    After:  FusedMatMul(x, W, transB=1)

    W stays [out_features, in_features]: kernels repack it anyway when a session loads, at the same speed, an export
    need not transpose gigabytes, and a tied head reads the embedding's bytes.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (FusedMatMul).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every Linear node."""
        nodes = nodes_of(model, "Linear")
        for node in nodes:
            attributes_of(node, {}, _NAME)
            x, stored = node.inputs
            weight_of(stored, node, _NAME)
            if x is None or x.dtype is None:
                raise refuse(node, _NAME, "its input has no type")
            product = ir.node(
                "FusedMatMul",
                inputs=[x, stored],
                attributes={"transB": 1},
                domain="com.microsoft",
                name=str(node.name).replace(".Linear", ".FusedMatMul"),
            )
            replace(model.graph, node, [product], product.outputs)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No Linear node is left."""
        require_none(model, "Linear", _NAME)
