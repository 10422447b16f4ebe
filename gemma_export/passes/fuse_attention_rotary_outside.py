"""Attention becomes two rotary embeddings and GroupQueryAttention without one, for kernels that cannot rotate."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.align_rows import SEQLENS_K, TOTAL, position_ids
from gemma_export.passes.fuse_attention import QUERY_SEQLENS, kernel_limits, query_seqlens
from gemma_export.passes.semantic_nodes import (
    DOMAIN,
    attributes_of,
    nodes_of,
    refuse,
    replace,
    require_none,
    value_named,
)

__all__ = ["ATTRIBUTES", "FuseAttentionRotaryOutside", "is_limited", "rotations"]

_NAME = "FuseAttentionRotaryOutside"
_CONTRIB = "com.microsoft"
# of the semantic node, and their defaults
ATTRIBUTES = {"num_heads": None, "kv_num_heads": None, "scale": None, "softcap": 0.0, "window": 0}


class FuseAttentionRotaryOutside(ir.passes.InPlacePass):
    """com.microsoft RotaryEmbedding on query and key, then GroupQueryAttention over separate inputs.

    Before: Attention(query, key, value, past_key, past_value, mask, cos, sin)
    After:  GroupQueryAttention(RotaryEmbedding(query, positions, cos, sin), RotaryEmbedding(key, ...), value,
            past_key, past_value, seqlens_k, total) with scale

    Args:
        plain: for DirectML, whose kernel drops softcap and local_window_size silently (a node that has either is
            refused), has no query_seqlens, and takes a step of several tokens with a cache for a new prompt.
        normalised: only nodes whose queries come from a HeadNorm, which no packed projection can hold.
        unlimited: only nodes that have neither; `AttentionByParts` takes the others.

    Preconditions: `AlignRows` ran.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention,
    RotaryEmbedding) and
    https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/providers/dml/DmlExecutionProvider/src/Operators/DmlOperatorGroupQueryAttention.cpp
    """

    def __init__(self, *, plain: bool = True, normalised: bool = False, unlimited: bool = False) -> None:
        super().__init__()
        self.plain, self.normalised, self.unlimited = plain, normalised, unlimited

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the Attention nodes, or raises PassError with the node and the reason."""
        nodes = self._nodes(model)
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        positions = position_ids(model.graph)
        lengths = None if self.plain else query_seqlens(model.graph, nodes[0])
        for node in nodes:
            _fuse(model.graph, node, positions, lengths)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """None of the Attention nodes is left."""
        if self._nodes(model):
            require_none(model, "Attention", _NAME)

    def _nodes(self, model: ir.Model) -> list[ir.Node]:
        return [
            node
            for node in nodes_of(model, "Attention")
            if not (self.normalised and not _is_normalised(node)) and not (self.unlimited and is_limited(node))
        ]


def is_limited(node: ir.Node) -> bool:
    """Whether an Attention node has a softcap or a window."""
    attributes = attributes_of(node, ATTRIBUTES, _NAME)
    return bool(attributes["softcap"] or attributes["window"])


def _is_normalised(node: ir.Node) -> bool:
    query = node.inputs[0]
    producer = query.producer() if query is not None else None
    return producer is not None and (producer.domain, producer.op_type) == (DOMAIN, "HeadNorm")


def rotations(node: ir.Node, positions: ir.Value, pass_name: str) -> list[ir.Node]:
    """RotaryEmbedding nodes of an Attention node's query and key, [batch_size, sequence_length, heads * head_dim] each.

    Raises:
        PassError: an input has no type, or the mask is not the graph's.
    """
    query, key, _, _, _, mask, cos, sin = node.inputs
    if mask is None or mask.name != "attention_mask":
        raise refuse(node, pass_name, f"its mask is {mask.name if mask else None}, expected attention_mask")
    prefix = str(node.name).removesuffix(".Attention")
    found = []
    for name, x in (("query", query), ("key", key)):
        if x is None or x.dtype is None:
            raise refuse(node, pass_name, f"its {name} has no type")
        found.append(
            ir.Node(
                _CONTRIB,
                "RotaryEmbedding",
                inputs=[x, positions, cos, sin],
                attributes=[ir.AttrInt64("interleaved", 0)],
                outputs=[ir.Value(name=f"{prefix}.{name}_rotary", shape=x.shape, type=x.type)],
                name=f"{prefix}.{name}_rotary.RotaryEmbedding",
            )
        )
    return found


def _fuse(graph: ir.Graph, node: ir.Node, positions: ir.Value, lengths: ir.Value | None) -> None:
    attributes = attributes_of(node, ATTRIBUTES, _NAME)
    more: dict[str, int | float] = {}
    if lengths is not None:
        more = kernel_limits(attributes)
    for name in ("softcap", "window"):
        if attributes[name] and lengths is None:
            raise refuse(node, _NAME, f"its kernel would ignore {name} = {attributes[name]}")
    _, _, value, past_key, past_value, _, _, _ = node.inputs
    rotated = rotations(node, positions, _NAME)
    fused = ir.node(
        "GroupQueryAttention",
        inputs=[
            rotated[0].outputs[0],
            rotated[1].outputs[0],
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
    replace(graph, node, [*rotated, fused], fused.outputs)
