"""Attention becomes the standard RotaryEmbedding and Attention, with one mask for all layers that share a window."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from gemma_export.passes.semantic_nodes import (
    attributes_of,
    insert_before,
    int64_constant,
    nodes_of,
    output_like,
    refuse,
    replace,
    require_none,
    value_named,
)

__all__ = ["LowerAttention"]

_NAME = "LowerAttention"
_FAR = 2**63 - 1
# values that layers share; B: batch_size, S: sequence_length, P: past_sequence_length, T: P + S
# int64 [B, S] and [B, T]: the number of real tokens before a column
_POSITIONS_BS, _POSITIONS_BT = "attention.position_ids", "attention.positions"
# bool [B, 1, S, T]: which columns a row sees
_VISIBLE = "attention.visible"
_ATTRIBUTES = {"num_heads": None, "kv_num_heads": None, "scale": None, "softcap": 0.0, "window": 0}


class LowerAttention(ir.passes.InPlacePass):
    """Attention over a cache that keeps the mask's columns.

    Before: Attention(query, key, value, past_key, past_value, mask, cos, sin)
    After:  Attention(RotaryEmbedding(query, cos, sin, position_ids), RotaryEmbedding(key, ...), value, visible,
            past_key, past_value) of ai.onnx

    Positions and masks come from the attention mask, once per graph and once per distinct window. A row sees the real
    columns up to its own, within the window counted in real tokens, and always itself: an empty softmax would be NaN.
    Precondition: opset 23 or later.
    Source: https://onnx.ai/onnx/operators/onnx__Attention.html, https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every Attention node."""
        nodes = nodes_of(model, "Attention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        attributes = [attributes_of(node, _ATTRIBUTES, _NAME) for node in nodes]
        prelude = _Prelude(model.graph, nodes[0], {int(found["window"]) for found in attributes})
        for node, found in zip(nodes, attributes, strict=True):
            _lower(model.graph, node, found, prelude)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No semantic Attention node is left."""
        require_none(model, "Attention", _NAME)


class _Prelude:
    """Index arithmetic before the first layer: positions, and a mask for each distinct window (0 means none)."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node, windows: set[int]) -> None:
        self._graph = graph
        self._zero, self._one = int64_constant(graph, "constant.0", 0), int64_constant(graph, "constant.1", 1)
        self._axis_1 = int64_constant(graph, "constant.[1]", [1])
        self._far = int64_constant(graph, "constant.[end]", [_FAR])
        self._mask = value_named(graph, "attention_mask")
        tape = ir.tape.Tape()
        start = tape.op("Neg", [tape.op("Shape", [value_named(graph, "input_ids")], {"start": 1, "end": 2})])
        self._positions(tape, start)
        self._columns(tape, start)
        # window -> bool [B, 1, S, T]
        self.masks = {window: self._visible(tape, window) for window in sorted(windows)}
        insert_before(graph, anchor, tape, "attention")

    def _positions(self, tape: ir.tape.Tape, start: ir.Value) -> None:
        before = tape.op("Sub", [tape.op("CumSum", [self._mask, self._one]), self._one])
        self._positions_BT = tape.op("Max", [before, self._zero])
        self._positions_BT.name = _POSITIONS_BT
        self.position_ids_BS = tape.op("Slice", [self._positions_BT, start, self._far, self._axis_1])
        self.position_ids_BS.name = _POSITIONS_BS
        self.position_ids_BS.shape = ir.Shape(["batch_size", "sequence_length"])

    def _columns(self, tape: ir.tape.Tape, start: ir.Value) -> None:
        total = tape.op("Squeeze", [tape.op("Shape", [self._mask], {"start": 1, "end": 2})])
        column_T = tape.op("Range", [self._zero, total, self._one])
        row_S1 = tape.op("Unsqueeze", [tape.op("Slice", [column_T, start, self._far]), self._axis_1])
        causal_ST = tape.op("LessOrEqual", [column_T, row_S1])
        real_BT = tape.op("Cast", [self._mask], {"to": int(ir.DataType.BOOL)})
        self._seen_BST = tape.op("And", [causal_ST, tape.op("Unsqueeze", [real_BT, self._axis_1])])
        self._self_ST = tape.op("Equal", [column_T, row_S1])

    def _visible(self, tape: ir.tape.Tape, window: int) -> ir.Value:
        seen = self._seen_BST
        if window > 0:
            limit = int64_constant(self._graph, f"attention.window_{window}", window)
            axis_2 = int64_constant(self._graph, "constant.[2]", [2])
            row = tape.op("Unsqueeze", [self.position_ids_BS, axis_2])
            distance = tape.op("Sub", [row, tape.op("Unsqueeze", [self._positions_BT, self._axis_1])])
            seen = tape.op("And", [seen, tape.op("Less", [distance, limit])])
        visible = tape.op("Unsqueeze", [tape.op("Or", [seen, self._self_ST]), self._axis_1])
        visible.name = _VISIBLE if window == 0 else f"{_VISIBLE}_window_{window}"
        visible.shape = ir.Shape(["batch_size", 1, "sequence_length", "total_sequence_length"])
        return visible


def _lower(graph: ir.Graph, node: ir.Node, attributes: Mapping[str, int | float | str], prelude: _Prelude) -> None:
    query, key, value, past_key, past_value, mask, cos, sin = node.inputs
    if mask is None or mask.name != "attention_mask":
        raise refuse(node, _NAME, f"its mask is {mask.name if mask else None}, expected attention_mask")
    prefix = str(node.name).removesuffix(".Attention")
    heads = {"query": int(attributes["num_heads"]), "key": int(attributes["kv_num_heads"])}
    rotations = []
    for name, x in (("query", query), ("key", key)):
        if x is None or x.dtype is None:
            raise refuse(node, _NAME, f"its {name} has no type")
        rotation = ir.Node(
            "",
            "RotaryEmbedding",
            inputs=[x, cos, sin, prelude.position_ids_BS],
            attributes=[ir.AttrInt64("num_heads", heads[name]), ir.AttrInt64("interleaved", 0)],
            outputs=[ir.Value(name=f"{prefix}.{name}_rotary", shape=x.shape, type=x.type)],
            name=f"{prefix}.{name}_rotary.RotaryEmbedding",
        )
        rotations.append(rotation)
    attention = ir.Node(
        "",
        "Attention",
        inputs=[
            rotations[0].outputs[0],
            rotations[1].outputs[0],
            value,
            prelude.masks[int(attributes["window"])],
            past_key,
            past_value,
        ],
        attributes=[
            ir.AttrInt64("q_num_heads", heads["query"]),
            ir.AttrInt64("kv_num_heads", heads["key"]),
            ir.AttrFloat32("scale", float(attributes["scale"])),
            ir.AttrFloat32("softcap", float(attributes["softcap"])),
        ],
        outputs=[output_like(output) for output in node.outputs],
        name=node.name,
    )
    replace(graph, node, [*rotations, attention], attention.outputs)
