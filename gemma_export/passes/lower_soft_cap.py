"""SoftCap becomes Div, Tanh and Mul."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gemma_export.passes.semantic_nodes import attributes_of, nodes_of, refuse, replace, require_none, tensor_value

__all__ = ["LowerSoftCap"]

_NAME = "LowerSoftCap"


class LowerSoftCap(ir.passes.InPlacePass):
    """Soft-capping of the logits by three element-wise operators.

    Before: SoftCap(x, cap)
    After:  Mul(Tanh(Div(x, cap)), cap)

    Source: https://onnx.ai/onnx/operators/onnx__Tanh.html.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every SoftCap."""
        nodes = nodes_of(model, "SoftCap")
        for node in nodes:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No SoftCap is left."""
        require_none(model, "SoftCap", _NAME)


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    cap = float(attributes_of(node, {"cap": None}, _NAME)["cap"])
    if cap <= 0:
        raise refuse(node, _NAME, f"cap is {cap:g}, expected a number above 0")
    x, prefix = node.inputs[0], str(node.name).removesuffix(".SoftCap")
    limit = tensor_value(graph, f"{prefix}.softcap", ir.tensor(np.asarray(cap, dtype=np.float32)))
    divide = ir.node("Div", inputs=[x, limit], name=f"{prefix}.softcap.Div")
    bend = ir.node("Tanh", inputs=[divide.outputs[0]], name=f"{prefix}.softcap.Tanh")
    for inner in (divide, bend):
        value = inner.outputs[0]
        value.name, value.shape, value.type = inner.name, node.outputs[0].shape, node.outputs[0].type
    product = ir.node("Mul", inputs=[bend.outputs[0], limit], name=f"{prefix}.softcap.Mul")
    replace(graph, node, [divide, bend, product], product.outputs)
