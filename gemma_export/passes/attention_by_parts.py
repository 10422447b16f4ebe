"""Attention with a window or soft-capping by elementary operators, for providers whose kernel would drop both."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from gemma_export.passes.align_rows import PAST_LENGTHS, SEQUENCE, position_ids
from gemma_export.passes.fuse_attention_rotary_outside import ATTRIBUTES, is_limited, rotations
from gemma_export.passes.semantic_nodes import (
    attributes_of,
    insert_before,
    int64_constant,
    nodes_of,
    output_like,
    refuse,
    replace,
    require_none,
    tensor_value,
    value_named,
)

__all__ = ["AttentionByParts"]

_NAME = "AttentionByParts"
_CONTRIB = "com.microsoft"
_FLOAT = ir.DataType.FLOAT
# Values that layers share; B: batch_size, S: sequence_length, P: past_sequence_length, N: query heads,
# K: key-value heads, G: N / K, D: head_dim, C: columns of present, max(P, columns of the attention mask)
# int64 [B, K, C, 1]: which of the P columns of past and the S new ones stands in a column of present
_SOURCES_BKC1 = "attention.sources"
# bool [B, 1, S, 1, C]: which columns of present a token sees
_VISIBLE = "attention.visible"


class AttentionByParts(ir.passes.InPlacePass):
    """Attention over a cache whose rows are compacted, as GroupQueryAttention keeps it: real tokens at [0, T_b).

    Before: Attention(query, key, value, past_key, past_value, mask, cos, sin) with a softcap or a window
    After:  present = GatherND(Concat(past, new), sources), of key (rotated) and of value
            scores = FusedMatMul(RotaryEmbedding(query), present_key, transB=1, alpha=scale)
            FusedMatMul(Softmax(Where(visible, softcap * Tanh(scores / softcap), lowest)), present_value)

    The query heads that share a key head are rows of one product. From softcap to softmax all is float32, as in the
    reference. A buffer that is past and present in one, longer than the text, is written in place as the kernel does:
    only Concat reads it. What stands behind a row's tokens is never visible.

    Preconditions: `AlignRows` ran; the precision is applied; opset 21 or earlier. Nodes with neither softcap nor
    window are left to `FuseAttentionRotaryOutside`.
    Source: https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaAttention); operators that DirectML
    has: https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the limited Attention nodes, or raises PassError with the node and the reason."""
        nodes = [node for node in nodes_of(model, "Attention") if is_limited(node)]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        attributes = [attributes_of(node, ATTRIBUTES, _NAME) for node in nodes]
        positions = position_ids(model.graph)
        prelude = _Prelude(model.graph, nodes[0], _heads(attributes[0]), positions)
        for window in sorted({int(found["window"]) for found in attributes}):
            prelude.add_mask(window)
        insert_before(model.graph, nodes[0], prelude.tape, "attention")
        for node, found in zip(nodes, attributes, strict=True):
            _lower(model.graph, node, found, positions, prelude)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No limited Attention is left."""
        if any(is_limited(node) for node in nodes_of(model, "Attention")):
            require_none(model, "Attention", _NAME)


def _heads(attributes: Mapping[str, int | float | str]) -> tuple[int, int]:
    return int(attributes["num_heads"]), int(attributes["kv_num_heads"])


class _Prelude:
    """Index arithmetic before the first layer: where present comes from, and a mask for each distinct window."""

    def __init__(self, graph: ir.Graph, first: ir.Node, heads: tuple[int, int], positions: ir.Value) -> None:
        self._graph, self.heads = graph, heads
        self.tape = ir.tape.Tape()
        # window -> bool [B, 1, S, 1, C]
        self.masks: dict[int, ir.Value] = {}
        self.lowest = _float_constant(graph, "attention.lowest", float(np.finfo(np.float32).min))
        self._column_C = self._columns(first)
        self._row_B1S11 = self.tape.op("Unsqueeze", [positions, self._shape(1, 3, 4)])
        self._causal = self.tape.op("LessOrEqual", [self._column_C, self._row_B1S11])

    def _columns(self, first: ir.Node) -> ir.Value:
        """int64 [C]: 0, 1, ...; and what stands in them, `sources`."""
        zero, one = int64_constant(self._graph, "constant.0", 0), int64_constant(self._graph, "constant.1", 1)
        axis_0 = int64_constant(self._graph, "constant.[0]", [0])
        sequence, before_B1 = value_named(self._graph, SEQUENCE), value_named(self._graph, PAST_LENGTHS)
        op = self.tape.op
        past = op("Shape", [first.inputs[3]], {"start": 2, "end": 3})
        total = op("Shape", [value_named(self._graph, "attention_mask")], {"start": 1, "end": 2})
        # a buffer of full capacity is longer than the mask
        columns = op("Max", [past, total])
        column_C = op("Range", [zero, op("Squeeze", [columns, axis_0]), one])
        # a row's new tokens, which stand behind the whole of past, move up to its old ones
        moved_BC = op("Add", [column_C, op("Sub", [past, before_B1])])
        source_BC = op("Where", [op("Less", [column_C, before_B1]), column_C, moved_BC])
        last = op("Sub", [op("Add", [past, sequence]), one])
        source_BC = op("Min", [source_BC, last])
        heads, kv_heads = self.heads
        each = self._shape(1, kv_heads, 1, 1)
        self.sources = op("Expand", [op("Unsqueeze", [source_BC, self._shape(1, 3)]), each])
        self.sources.name = _SOURCES_BKC1
        # between [B, K, S * G, C] and [B, K, S, G, C]
        self.by_token = op("Concat", [self._shape(0, 0, -1, heads // kv_heads), columns], {"axis": 0})
        self.by_row = op("Concat", [self._shape(0, 0, -1), columns], {"axis": 0})
        return column_C

    def _shape(self, *sizes: int) -> ir.Value:
        return _constant(self._graph, *sizes)

    def add_mask(self, window: int) -> None:
        """Makes the mask of a window, 0 for none: columns up to a token's own, as many as the window has."""
        visible = self._causal
        if window > 0:
            limit = int64_constant(self._graph, f"attention.window_{window}", window)
            distance = self.tape.op("Sub", [self._row_B1S11, self._column_C])
            visible = self.tape.op("And", [visible, self.tape.op("Less", [distance, limit])])
        visible.name = _VISIBLE if window == 0 else f"{_VISIBLE}_window_{window}"
        visible.shape = ir.Shape(["batch_size", 1, "sequence_length", 1, None])
        self.masks[window] = visible


def _constant(graph: ir.Graph, *sizes: int) -> ir.Value:
    return int64_constant(graph, f"constant.[{','.join(map(str, sizes))}]", sizes)


def _float_constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    return tensor_value(graph, name, ir.tensor(np.asarray(number, dtype=np.float32)))


class _Parts:
    """Collects the nodes of one layer under readable names, typed."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.nodes: list[ir.Node] = []

    def op(
        self,
        name: str,
        op_type: str,
        inputs: list[ir.Value | None],
        dtype: ir.DataType,
        attributes: Mapping[str, int | float | list[int]] | None = None,
        *,
        output: ir.Value | None = None,
    ) -> ir.Value:
        value = output or ir.Value(name=f"{self._prefix}.{name}", type=ir.TensorType(dtype))
        node = ir.node(
            op_type,
            inputs=inputs,
            attributes=attributes,
            outputs=[value],
            domain=_CONTRIB if op_type == "FusedMatMul" else "",
            name=f"{self._prefix}.{name}.{op_type}",
        )
        self.nodes.append(node)
        return value


def _lower(
    graph: ir.Graph,
    node: ir.Node,
    attributes: Mapping[str, int | float | str],
    positions: ir.Value,
    prelude: _Prelude,
) -> None:
    heads = _heads(attributes)
    if heads != prelude.heads:
        raise refuse(node, _NAME, f"its heads are {heads}, another layer's {prelude.heads}")
    query, key = rotations(node, positions, _NAME)
    value, past = node.inputs[2], node.inputs[3:5]
    dtype, state = query.outputs[0].dtype, past[0].shape if past[0] is not None else None
    if dtype is None or state is None or not isinstance(state[3], int):
        raise refuse(node, _NAME, "its query has no type, or its cache no head_dim")
    parts = _Parts(str(node.name).removesuffix(".Attention"))
    shapes = _Shapes(graph, *heads, state[3])
    present = [
        _present(parts, shapes, name, new, old, output, prelude)
        for name, new, old, output in zip(
            ("key", "value"), (key.outputs[0], value), past, node.outputs[1:], strict=True
        )
    ]
    grouped = parts.op("query_groups", "Reshape", [query.outputs[0], shapes.groups], dtype)
    grouped = parts.op("query_heads", "Transpose", [grouped], dtype, {"perm": [0, 2, 1, 3]})
    grouped = parts.op("query", "Reshape", [grouped, shapes.rows], dtype)
    scale = {"transB": 1, "alpha": float(attributes["scale"])}
    scores = parts.op("products", "FusedMatMul", [grouped, present[0]], dtype, scale)
    softcap = float(attributes["softcap"])
    limit = None if softcap == 0 else _float_constant(graph, f"attention.softcap_{softcap!r}", softcap)
    weights = _weights(parts, scores, limit, prelude, int(attributes["window"]))
    seen = parts.op("mixed", "FusedMatMul", [weights, present[1]], dtype)
    seen = parts.op("mixed_groups", "Reshape", [seen, shapes.by_token], dtype)
    seen = parts.op("mixed_heads", "Transpose", [seen], dtype, {"perm": [0, 2, 1, 3]})
    output = parts.op("joined", "Reshape", [seen, shapes.joined], dtype, output=output_like(node.outputs[0]))
    replace(graph, node, [query, key, *parts.nodes], [output, *present])


class _Shapes:
    """Targets of reshapes: 0 keeps a dimension, -1 is what is left."""

    def __init__(self, graph: ir.Graph, heads: int, kv_heads: int, head_dim: int) -> None:
        group = heads // kv_heads
        shape = functools.partial(_constant, graph)
        # [B, S, N * D] -> [B, S, K, G * D]
        self.groups = shape(0, 0, kv_heads, group * head_dim)
        # [B, K, S, G * D] -> [B, K, S * G, D]
        self.rows = shape(0, 0, -1, head_dim)
        # [B, S, K * D] -> [B, S, K, D]
        self.heads = shape(0, 0, kv_heads, head_dim)
        # [B, K, S * G, D] -> [B, K, S, G * D]
        self.by_token = shape(0, 0, -1, group * head_dim)
        # [B, S, K, G * D] -> [B, S, N * D]
        self.joined = shape(0, 0, heads * head_dim)


def _present(
    parts: _Parts,
    shapes: _Shapes,
    name: str,
    new: ir.Value | None,
    past: ir.Value | None,
    output: ir.Value,
    prelude: _Prelude,
) -> ir.Value:
    """[B, K, C, D]: each row's old tokens, then its new ones."""
    assert new is not None
    assert new.dtype is not None
    split = parts.op(f"{name}_split", "Reshape", [new, shapes.heads], new.dtype)
    split = parts.op(f"{name}_heads", "Transpose", [split], new.dtype, {"perm": [0, 2, 1, 3]})
    both = parts.op(f"{name}_both", "Concat", [past, split], new.dtype, {"axis": 2})
    batched = {"batch_dims": 2}
    return parts.op(name, "GatherND", [both, prelude.sources], new.dtype, batched, output=output_like(output))


def _weights(parts: _Parts, scores: ir.Value, softcap: ir.Value | None, prelude: _Prelude, window: int) -> ir.Value:
    """[B, K, S * G, C]: how much of each value; the products' type, in float32 on the way."""
    dtype = scores.dtype
    assert dtype is not None
    if dtype != _FLOAT:
        scores = parts.op("products_float32", "Cast", [scores], _FLOAT, {"to": int(_FLOAT)})
    if softcap is not None:
        scores = parts.op("shares", "Div", [scores, softcap], _FLOAT)
        scores = parts.op("bent", "Tanh", [scores], _FLOAT)
        scores = parts.op("capped", "Mul", [scores, softcap], _FLOAT)
    scores = parts.op("by_token", "Reshape", [scores, prelude.by_token], _FLOAT)
    scores = parts.op("seen", "Where", [prelude.masks[window], scores, prelude.lowest], _FLOAT)
    scores = parts.op("by_row", "Reshape", [scores, prelude.by_row], _FLOAT)
    weights = parts.op("weights", "Softmax", [scores], _FLOAT, {"axis": -1})
    return weights if dtype == _FLOAT else parts.op("weights_cast", "Cast", [weights], dtype, {"to": int(dtype)})
