"""RMSNorm becomes SimplifiedLayerNormalization; with the residual add before it, the Skip form."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import (
    DOMAIN,
    attributes_of,
    drop_unused_initializers,
    gain_value,
    nodes_of,
    output_like,
    replace,
    require_none,
)

__all__ = ["FuseNorms"]

_NAME = "FuseNorms"


class FuseNorms(ir.passes.InPlacePass):
    """RMSNorm with gain 1 + w by onnxruntime's fused kernels.

    Before: RMSNorm(x, w)                                     After: SimplifiedLayerNormalization(x, 1 + w)
    Before: RMSNorm(p, w) with p = ResidualAdd(x, branch)     After: SkipSimplifiedLayerNormalization(x, branch, 1 + w)
            whose fourth output is the sum and keeps the name p

    The gain is added in float32 from the stored weight, and multiplied by the node's gain_scale, a power of two, where
    it has one. A sum that a norm does not read stays an Add.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    (SkipSimplifiedLayerNormalization; SimplifiedLayerNormalization is registered in the default domain).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every RMSNorm and every ResidualAdd."""
        norms, adds = nodes_of(model, "RMSNorm"), nodes_of(model, "ResidualAdd")
        for node in norms:
            _fuse(model.graph, node)
        for node in nodes_of(model, "ResidualAdd"):
            plain = ir.node("Add", inputs=list(node.inputs), name=node.name)
            replace(model.graph, node, [plain], plain.outputs)
        if norms:
            drop_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(norms or adds))

    def ensures(self, model: ir.Model) -> None:
        """No RMSNorm and no ResidualAdd is left."""
        require_none(model, "RMSNorm", _NAME)
        require_none(model, "ResidualAdd", _NAME)


def _fuse(graph: ir.Graph, node: ir.Node) -> None:
    epsilon = float(attributes_of(node, {"epsilon": None, "gain_scale": 1.0}, _NAME)["epsilon"])
    gain = gain_value(graph, node, _NAME)
    x = node.inputs[0]
    assert x is not None
    add = x.producer()
    if add is not None and (add.domain, add.op_type) == (DOMAIN, "ResidualAdd"):
        _fuse_skip(graph, node, add, gain, epsilon)
        return
    fused = ir.node(
        "SimplifiedLayerNormalization",
        inputs=[x, gain],
        # stash_type 1: statistics in float32
        attributes={"axis": -1, "epsilon": epsilon, "stash_type": 1},
        name=str(node.name).replace(".RMSNorm", ".SimplifiedLayerNormalization"),
    )
    replace(graph, node, [fused], fused.outputs)


def _fuse_skip(graph: ir.Graph, node: ir.Node, add: ir.Node, gain: ir.Value, epsilon: float) -> None:
    total = add.outputs[0]
    normed, summed = output_like(node.outputs[0]), output_like(total)
    stream, branch = add.inputs
    fused = ir.Node(
        "com.microsoft",
        "SkipSimplifiedLayerNormalization",
        inputs=[stream, branch, gain],
        attributes=[ir.AttrFloat32("epsilon", epsilon)],
        # mean and inverse deviation are not computed
        outputs=[normed, ir.Value(name=""), ir.Value(name=""), summed],
        name=str(node.name).replace(".RMSNorm", ".SkipSimplifiedLayerNormalization"),
    )
    # where the sum was: others may read it before the norm does
    graph.insert_before(add, [fused])
    replace(graph, node, [], [normed])
    ir.convenience.replace_all_uses_with(total, summed, replace_graph_outputs=True)
    graph.remove(add, safe=True)
