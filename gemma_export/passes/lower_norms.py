"""RMSNorm becomes the standard RMSNormalization, ResidualAdd an Add."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import (
    attributes_of,
    drop_unused_initializers,
    gain_value,
    nodes_of,
    replace,
    require_none,
)

__all__ = ["LowerNorms"]

_NAME = "LowerNorms"


class LowerNorms(ir.passes.InPlacePass):
    """Norms and residual adds by standard operators.

    Before: RMSNorm(x, w)             After: RMSNormalization(x, (1 + w) * gain_scale), statistics in float32
    Before: ResidualAdd(x, branch)    After: Add(x, branch), the sum keeps its name

    Precondition: opset 23 or later.
    Source: https://onnx.ai/onnx/operators/onnx__RMSNormalization.html.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every RMSNorm and every ResidualAdd."""
        norms, adds = nodes_of(model, "RMSNorm"), nodes_of(model, "ResidualAdd")
        for node in norms:
            epsilon = float(attributes_of(node, {"epsilon": None, "gain_scale": 1.0}, _NAME)["epsilon"])
            norm = ir.node(
                "RMSNormalization",
                inputs=[node.inputs[0], gain_value(model.graph, node, _NAME)],
                # stash_type 1: statistics in float32
                attributes={"axis": -1, "epsilon": epsilon, "stash_type": 1},
                name=str(node.name).replace(".RMSNorm", ".RMSNormalization"),
            )
            replace(model.graph, node, [norm], norm.outputs)
        for node in adds:
            attributes_of(node, {}, _NAME)
            plain = ir.node("Add", inputs=list(node.inputs), name=node.name)
            replace(model.graph, node, [plain], plain.outputs)
        if norms:
            drop_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(norms or adds))

    def ensures(self, model: ir.Model) -> None:
        """No RMSNorm and no ResidualAdd is left."""
        require_none(model, "RMSNorm", _NAME)
        require_none(model, "ResidualAdd", _NAME)
