"""ScaledEmbedding becomes Gather and Mul."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gemma_export.passes.semantic_nodes import attributes_of, nodes_of, refuse, replace, require_none

__all__ = ["EMBEDDING_SCALE", "LowerEmbedding"]

_NAME = "LowerEmbedding"
# initializer that holds sqrt(hidden_size)
EMBEDDING_SCALE = "model.embed_tokens.scale"


class LowerEmbedding(ir.passes.InPlacePass):
    """Token embedding by Gather, its scale kept apart from the table that a tied head shares.

    Before: ScaledEmbedding(ids, table, scale)
    After:  Mul(Gather(table, ids), scale)

    Source: https://onnx.ai/onnx/operators/onnx__Gather.html.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the ScaledEmbedding node."""
        nodes = nodes_of(model, "ScaledEmbedding")
        for node in nodes:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No ScaledEmbedding node is left."""
        require_none(model, "ScaledEmbedding", _NAME)


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    scale = float(attributes_of(node, {"scale": None}, _NAME)["scale"])
    ids, table = node.inputs
    if table is None or table.dtype != ir.DataType.FLOAT:
        raise refuse(node, _NAME, "its table is not float32: precisions are applied after the target's passes")
    factor = ir.Value(
        name=EMBEDDING_SCALE,
        shape=ir.Shape([]),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(np.asarray(scale, dtype=np.float32)),
    )
    graph.register_initializer(factor)
    prefix = str(node.name).removesuffix(".ScaledEmbedding")
    gather = ir.node("Gather", inputs=[table, ids], attributes={"axis": 0}, name=f"{prefix}.Gather")
    rows = gather.outputs[0]
    rows.name, rows.shape, rows.type = gather.name, node.outputs[0].shape, node.outputs[0].type
    product = ir.node("Mul", inputs=[rows, factor], name=f"{prefix}.Mul")
    replace(graph, node, [gather, product], product.outputs)
