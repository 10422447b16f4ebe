"""Attention becomes two rotary embeddings and GroupQueryAttention without one, for kernels that cannot rotate."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.align_rows import POSITION_IDS, QUERY_LENGTHS, SEQLENS_K, SEQUENCE, TOTAL
from gemma_export.passes.fuse_attention import QUERY_SEQLENS, kernel_limits, query_seqlens
from gemma_export.passes.semantic_nodes import (
    DOMAIN,
    attributes_of,
    insert_before,
    int64_constant,
    nodes_of,
    refuse,
    replace,
    require_none,
    value_named,
)

__all__ = ["FuseAttentionRotaryOutside"]

_NAME = "FuseAttentionRotaryOutside"
_CONTRIB = "com.microsoft"


class FuseAttentionRotaryOutside(ir.passes.InPlacePass):
    """com.microsoft RotaryEmbedding on query and key, then GroupQueryAttention over separate inputs.

    Before: Attention(query, key, value, past_key, past_value, mask, cos, sin)
    After:  GroupQueryAttention(RotaryEmbedding(query, positions, cos, sin), RotaryEmbedding(key, ...), value,
            past_key, past_value, seqlens_k, total) with scale

    Args:
        plain: for DirectML, whose kernel drops softcap and local_window_size silently (a node that has either is
            refused), has no query_seqlens, and takes a step of several tokens with a cache for a new prompt.
        normalised: only nodes whose queries come from a HeadNorm, which no packed projection can hold.

    Preconditions: `AlignRows` ran.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention,
    RotaryEmbedding) and
    https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/providers/dml/DmlExecutionProvider/src/Operators/DmlOperatorGroupQueryAttention.cpp
    """

    def __init__(self, *, plain: bool = True, normalised: bool = False) -> None:
        super().__init__()
        self.plain, self.normalised = plain, normalised

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the Attention nodes, or raises PassError with the node and the reason."""
        nodes = self._nodes(model)
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        positions = _positions(model.graph, nodes[0])
        lengths = None if self.plain else query_seqlens(model.graph, nodes[0])
        for node in nodes:
            _fuse(model.graph, node, positions, lengths)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """None of the Attention nodes is left."""
        if self._nodes(model):
            require_none(model, "Attention", _NAME)

    def _nodes(self, model: ir.Model) -> list[ir.Node]:
        return [node for node in nodes_of(model, "Attention") if not self.normalised or _is_normalised(node)]


def _is_normalised(node: ir.Node) -> bool:
    query = node.inputs[0]
    producer = query.producer() if query is not None else None
    return producer is not None and (producer.domain, producer.op_type) == (DOMAIN, "HeadNorm")


def _positions(graph: ir.Graph, anchor: ir.Node) -> ir.Value:
    """int64 [batch_size, sequence_length]: a row's tokens before this step, and one more for each of this step's."""
    zero, one = int64_constant(graph, "constant.0", 0), int64_constant(graph, "constant.1", 1)
    axis_0, axis_1 = int64_constant(graph, "constant.[0]", [0]), int64_constant(graph, "constant.[1]", [1])
    tape = ir.tape.Tape()
    seqlens = tape.op("Cast", [value_named(graph, SEQLENS_K)], {"to": int(ir.DataType.INT64)})
    tokens = tape.op("Unsqueeze", [tape.op("Add", [seqlens, one]), axis_1])
    past = tape.op("Sub", [tokens, value_named(graph, QUERY_LENGTHS)])
    steps = tape.op("Range", [zero, tape.op("Squeeze", [value_named(graph, SEQUENCE), axis_0]), one])
    # the padding behind a row's tokens stays within the tables
    last = tape.op("Unsqueeze", [seqlens, axis_1])
    positions = tape.op("Min", [tape.op("Add", [past, steps]), last])
    positions.name = POSITION_IDS
    positions.shape = ir.Shape(["batch_size", "sequence_length"])
    insert_before(graph, anchor, tape, "rows.position_ids")
    return positions


def _fuse(graph: ir.Graph, node: ir.Node, positions: ir.Value, lengths: ir.Value | None) -> None:
    expected = {"num_heads": None, "kv_num_heads": None, "scale": None, "softcap": 0.0, "window": 0}
    attributes = attributes_of(node, expected, _NAME)
    more: dict[str, int | float] = {}
    if lengths is not None:
        more = kernel_limits(attributes)
    for name in ("softcap", "window"):
        if attributes[name] and lengths is None:
            raise refuse(node, _NAME, f"its kernel would ignore {name} = {attributes[name]}")
    query, key, value, past_key, past_value, mask, cos, sin = node.inputs
    if mask is None or mask.name != "attention_mask":
        raise refuse(node, _NAME, f"its mask is {mask.name if mask else None}, expected attention_mask")
    prefix = str(node.name).removesuffix(".Attention")
    rotations = []
    for name, x in (("query", query), ("key", key)):
        if x is None or x.dtype is None:
            raise refuse(node, _NAME, f"its {name} has no type")
        rotations.append(
            ir.Node(
                _CONTRIB,
                "RotaryEmbedding",
                inputs=[x, positions, cos, sin],
                attributes=[ir.AttrInt64("interleaved", 0)],
                outputs=[ir.Value(name=f"{prefix}.{name}_rotary", shape=x.shape, type=x.type)],
                name=f"{prefix}.{name}_rotary.RotaryEmbedding",
            )
        )
    fused = ir.node(
        "GroupQueryAttention",
        inputs=[
            rotations[0].outputs[0],
            rotations[1].outputs[0],
            value,
            past_key,
            past_value,
            value_named(graph, SEQLENS_K),
            value_named(graph, TOTAL),
            *([] if lengths is None else [*[None] * (QUERY_SEQLENS - 7), lengths]),
        ],
        attributes={
            "num_heads": int(attributes["num_heads"]),
            "kv_num_heads": int(attributes["kv_num_heads"]),
            "scale": float(attributes["scale"]),
            **more,
        },
        domain=_CONTRIB,
        num_outputs=3,
        name=str(node.name).replace(".Attention", ".GroupQueryAttention"),
    )
    replace(graph, node, [*rotations, fused], fused.outputs)
