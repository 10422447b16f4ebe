"""GeGLU becomes Gelu and Mul."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import attributes_of, nodes_of, replace, require_none

__all__ = ["LowerGeGLU"]


class LowerGeGLU(ir.passes.InPlacePass):
    """GeGLU by the standard tanh Gelu kernel.

    Before: GeGLU(gate, up)
    After:  Mul(Gelu(gate, approximate="tanh"), up)

    Precondition: opset 20 or later.
    Source: https://onnx.ai/onnx/operators/onnx__Gelu.html.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every GeGLU node."""
        nodes = nodes_of(model, "GeGLU")
        for node in nodes:
            attributes_of(node, {}, "LowerGeGLU")
            gate, up = node.inputs
            prefix = str(node.name).removesuffix(".GeGLU")
            gelu = ir.node("Gelu", inputs=[gate], attributes={"approximate": "tanh"}, name=f"{prefix}.Gelu")
            activated = gelu.outputs[0]
            activated.name, activated.shape, activated.type = gelu.name, node.outputs[0].shape, node.outputs[0].type
            product = ir.node("Mul", inputs=[activated, up], name=f"{prefix}.Mul")
            replace(model.graph, node, [gelu, product], product.outputs)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No GeGLU node is left."""
        require_none(model, "GeGLU", "LowerGeGLU")
