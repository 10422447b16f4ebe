"""HeadNorm becomes a norm kernel between two reshapes."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import (
    attributes_of,
    drop_unused_initializers,
    gain_value,
    int64_constant,
    nodes_of,
    replace,
    require_none,
)

__all__ = ["LowerHeadNorms"]

_NAME = "LowerHeadNorms"


class LowerHeadNorms(ir.passes.InPlacePass):
    """The norms of query and key heads.

    Before: HeadNorm(x, w, num_heads)                x [B, S, num_heads * head_dim]
    After:  Reshape(norm(Reshape(x, [0, 0, num_heads, head_dim]), 1 + w), [0, 0, num_heads * head_dim])

    Args:
        kernel: "SimplifiedLayerNormalization" or "RMSNormalization"; both take statistics in float32.

    GroupQueryAttention's own norms (q_norm_weight, k_norm_weight) have no kernel on the CPU.
    Source: https://onnx.ai/onnx/operators/onnx__RMSNormalization.html and
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention).
    """

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.kernel = kernel

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every HeadNorm."""
        nodes = nodes_of(model, "HeadNorm")
        for node in nodes:
            self._lower(model.graph, node)
        if nodes:
            drop_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No HeadNorm is left."""
        require_none(model, "HeadNorm", _NAME)

    def _lower(self, graph: ir.Graph, node: ir.Node) -> None:
        found = attributes_of(node, {"num_heads": None, "epsilon": None}, _NAME)
        heads, gain, x = int(found["num_heads"]), gain_value(graph, node, _NAME), node.inputs[0]
        assert x is not None
        assert gain.shape is not None
        head_dim = int(gain.shape[0])  # type: ignore[arg-type]
        prefix = str(node.name).removesuffix(".HeadNorm")
        by_head = int64_constant(graph, f"constant.[0,0,{heads},{head_dim}]", [0, 0, heads, head_dim])
        joined = int64_constant(graph, f"constant.[0,0,{heads * head_dim}]", [0, 0, heads * head_dim])
        split = ir.node("Reshape", inputs=[x, by_head], name=f"{prefix}.split.Reshape")
        norm = ir.node(
            self.kernel,
            inputs=[split.outputs[0], gain],
            # stash_type 1: statistics in float32
            attributes={"axis": -1, "epsilon": float(found["epsilon"]), "stash_type": 1},
            name=f"{prefix}.{self.kernel}",
        )
        join = ir.node("Reshape", inputs=[norm.outputs[0], joined], name=f"{prefix}.join.Reshape")
        for inner in (split, norm):
            value = inner.outputs[0]
            value.name, value.type = inner.name, x.type
            value.shape = ir.Shape(["batch_size", "sequence_length", heads, head_dim])
        replace(graph, node, [split, norm, join], join.outputs)
