"""GeGLU becomes Gelu and Mul."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import attributes_of, nodes_of, replace, require_none

__all__ = ["LowerGeGLU"]


class LowerGeGLU(ir.passes.InPlacePass):
    """GeGLU by a tanh GELU kernel.

    Before: GeGLU(gate, up)
    After:  Mul(Gelu(gate, approximate="tanh"), up)
    After, contrib: Mul(com.microsoft FastGelu(gate), up), which is the tanh form by definition

    Args:
        contrib: for targets without a kernel for the standard Gelu.

    Precondition: opset 20 or later, unless contrib.
    Source: https://onnx.ai/onnx/operators/onnx__Gelu.html,
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (FastGelu).
    """

    def __init__(self, *, contrib: bool = False) -> None:
        super().__init__()
        self.contrib = contrib

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every GeGLU node."""
        nodes = nodes_of(model, "GeGLU")
        for node in nodes:
            attributes_of(node, {}, "LowerGeGLU")
            gate, up = node.inputs
            prefix = str(node.name).removesuffix(".GeGLU")
            gelu = self._gelu(gate, prefix)
            activated = gelu.outputs[0]
            activated.name, activated.shape, activated.type = gelu.name, node.outputs[0].shape, node.outputs[0].type
            product = ir.node("Mul", inputs=[activated, up], name=f"{prefix}.Mul")
            replace(model.graph, node, [gelu, product], product.outputs)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _gelu(self, gate: ir.Value | None, prefix: str) -> ir.Node:
        if self.contrib:
            return ir.node("FastGelu", inputs=[gate], domain="com.microsoft", name=f"{prefix}.FastGelu")
        return ir.node("Gelu", inputs=[gate], attributes={"approximate": "tanh"}, name=f"{prefix}.Gelu")

    def ensures(self, model: ir.Model) -> None:
        """No GeGLU node is left."""
        require_none(model, "GeGLU", "LowerGeGLU")
