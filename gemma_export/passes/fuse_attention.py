"""Attention with its three projections becomes one packed projection and GroupQueryAttention."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from gemma_export.passes.align_rows import QUERY_LENGTHS, SEQLENS_K, TOTAL
from gemma_export.passes.semantic_nodes import (
    DOMAIN,
    attributes_of,
    drop_unused_initializers,
    insert_before,
    int64_constant,
    nodes_of,
    refuse,
    replace,
    require_none,
    value_named,
    weight_of,
    weight_value,
)
from gemma_export.weights import Concat

__all__ = ["QUERY_SEQLENS", "FuseGroupQueryAttention", "kernel_limits", "query_seqlens"]

_NAME = "FuseGroupQueryAttention"
# zero-based input positions of GroupQueryAttention; query_seqlens is the last of 17
QUERY_SEQLENS = 16


class FuseGroupQueryAttention(ir.passes.InPlacePass):
    """com.microsoft GroupQueryAttention over a packed query-key-value projection.

    Before: Attention(Linear(x, Wq), Linear(x, Wk), Linear(x, Wv), past_key, past_value, mask, cos, sin)
    After:  GroupQueryAttention(Linear(x, [Wq; Wk; Wv]), "", "", past_key, past_value, seqlens_k, total, cos, sin,
            ..., query_seqlens) with do_rotary, scale, softcap and local_window_size

    Preconditions: `AlignRows` ran; the three projections read the same value and nobody else reads them.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuses every Attention node, or raises PassError with the node and the reason."""
        nodes = nodes_of(model, "Attention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        lengths = query_seqlens(model.graph, nodes[0])
        for node in nodes:
            _fuse(model.graph, node, lengths)
        drop_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No Attention node is left."""
        require_none(model, "Attention", _NAME)


def kernel_limits(attributes: Mapping[str, int | float | str]) -> dict[str, int | float]:
    """The operator's attributes for softcap and window."""
    window = int(attributes["window"])
    return {
        "softcap": float(attributes["softcap"]),
        # the kernel counts the tokens seen besides the current one's own position the same way: window tokens
        "local_window_size": window if window > 0 else -1,
    }


def query_seqlens(graph: ir.Graph, anchor: ir.Node) -> ir.Value:
    """int32 [batch_size]: real tokens of each row in this step."""
    tape = ir.tape.Tape()
    axis_1 = int64_constant(graph, "constant.[1]", [1])
    flat = tape.op("Squeeze", [value_named(graph, QUERY_LENGTHS), axis_1])
    lengths = tape.op("Cast", [flat], {"to": int(ir.DataType.INT32)})
    lengths.name, lengths.type = "rows.query_seqlens", ir.TensorType(ir.DataType.INT32)
    lengths.shape = ir.Shape(["batch_size"])
    insert_before(graph, anchor, tape, "rows.query_seqlens")
    return lengths


def _fuse(graph: ir.Graph, node: ir.Node, lengths: ir.Value) -> None:
    expected = {"num_heads": None, "kv_num_heads": None, "scale": None, "softcap": 0.0, "window": 0}
    attributes = attributes_of(node, expected, _NAME)
    query, key, value, past_key, past_value, mask, cos, sin = node.inputs
    if mask is None or mask.name != "attention_mask":
        raise refuse(node, _NAME, f"its mask is {mask.name if mask else None}, expected attention_mask")
    projections = [_projection(node, tensor) for tensor in (query, key, value)]
    sources = {id(projection.inputs[0]) for projection in projections}
    if len(sources) != 1:
        raise refuse(node, _NAME, "its projections read different values")
    packed = _pack(graph, projections, str(node.name).removesuffix(".Attention"))

    fused = ir.node(
        "GroupQueryAttention",
        inputs=[
            packed.outputs[0],
            None,
            None,
            past_key,
            past_value,
            value_named(graph, SEQLENS_K),
            value_named(graph, TOTAL),
            cos,
            sin,
            *[None] * (QUERY_SEQLENS - 9),
            lengths,
        ],
        attributes={
            "num_heads": int(attributes["num_heads"]),
            "kv_num_heads": int(attributes["kv_num_heads"]),
            "scale": float(attributes["scale"]),
            "do_rotary": 1,
            "rotary_interleaved": 0,
            **kernel_limits(attributes),
        },
        domain="com.microsoft",
        num_outputs=3,
        name=str(node.name).replace(".Attention", ".GroupQueryAttention"),
    )
    replace(graph, node, [packed, fused], fused.outputs)
    for projection in projections:
        graph.remove(projection, safe=True)


def _projection(node: ir.Node, value: ir.Value | None) -> ir.Node:
    producer = value.producer() if value is not None else None
    if value is None or producer is None or (producer.domain, producer.op_type) != (DOMAIN, "Linear"):
        raise refuse(node, _NAME, f"input {value.name if value else None} is not a Linear projection")
    if len(value.uses()) != 1 or value.is_graph_output():
        raise refuse(node, _NAME, f"projection {producer.name} is read by others too")
    return producer


def _pack(graph: ir.Graph, projections: list[ir.Node], prefix: str) -> ir.Node:
    weights = [weight_of(projection.inputs[1], projection, _NAME) for projection in projections]
    source = projections[0].inputs[0]
    assert source is not None
    assert source.dtype is not None
    weight = weight_value(graph, f"{prefix}.qkv_proj.weight", Concat(tuple(weights)), source.dtype)
    packed = ir.node("Linear", inputs=[source, weight], domain=DOMAIN, name=f"{prefix}.qkv_proj.Linear")
    output = packed.outputs[0]
    output.name, output.type = packed.name, source.type
    output.shape = ir.Shape(["batch_size", "sequence_length", weight.shape[0]])  # type: ignore[index]
    return packed
