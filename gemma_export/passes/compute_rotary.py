"""Rows of the rotary tables computed in each step, for contexts whose tables would weigh too much."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import (
    drop_unused_initializers,
    insert_before,
    int64_constant,
    refuse,
    tensor_value,
)
from gemma_export.weights import Cast, RotaryTable, WeightTensor

__all__ = ["ComputeRotary"]

_NAME = "ComputeRotary"
_FLOAT = int(ir.DataType.FLOAT)
# input positions of (position ids, cosine, sine)
_INPUTS = {"com.microsoft": (1, 2, 3), "": (3, 1, 2)}


class ComputeRotary(ir.passes.InPlacePass):
    """Cosine and sine of the step's own positions.

    Before: RotaryEmbedding(x, position_ids, cos_cache, sin_cache)    tables [positions, head_dim / 2]
    After:  RotaryEmbedding(x, rows, Cos(angles), Sin(angles))        angles [B * S, head_dim / 2]
            with angles = position_ids * frequencies in float32, as the reference computes them, and rows = 0, 1, ...

    For the standard operator, which takes rows directly: angles [B, S, head_dim / 2] and no position ids.
    A table of 131,072 positions weighs 64 MiB in float32, of frequencies 512 bytes.

    Preconditions: rotary embedding is a node of its own; tables are still lazy; the precision is applied, because
    angles are float32 whatever the activations are.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (RotaryEmbedding),
    https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every RotaryEmbedding node with tables."""
        rotations = [node for node in model.graph if node.op_type == "RotaryEmbedding" and _table(node) is not None]
        # (suffix of the tables, domain, position ids) -> what the nodes read instead
        computed: dict[tuple[str, str, int], tuple[ir.Value, ir.Value, ir.Value | None]] = {}
        for node in rotations:
            ids, cos, sin = (node.inputs[position] for position in _INPUTS[node.domain])
            if ids is None or cos is None or sin is None:
                raise refuse(node, _NAME, "it has no position ids")
            suffix = str(cos.name).removeprefix("cos_cache")
            if str(sin.name) != f"sin_cache{suffix}":
                raise refuse(node, _NAME, f"its tables are {cos.name} and {sin.name}")
            key = (suffix, node.domain, id(ids))
            if key not in computed:
                computed[key] = _rows(model.graph, node, ids, suffix)
            for position, value in zip(_INPUTS[node.domain][1:], computed[key][:2], strict=True):
                node.replace_input_with(position, value)
            node.replace_input_with(_INPUTS[node.domain][0], computed[key][2])
        if rotations:
            drop_unused_initializers(model.graph)
        _require_no_tables(model)
        return ir.passes.PassResult(model, modified=bool(rotations))

    def ensures(self, model: ir.Model) -> None:
        """No table is left."""
        _require_no_tables(model)


def _require_no_tables(model: ir.Model) -> None:
    left = [name for name, value in model.graph.initializers.items() if _rotary_table(value) is not None]
    if left:
        raise PassError(
            f"{_NAME}: {', '.join(left)} is still read by a kernel that rotates inside",
            hint="This target's attention needs the tables. Report this with --debug.",
        )


def _rotary_table(value: ir.Value | None) -> RotaryTable | None:
    if value is None or not isinstance(value.const_value, WeightTensor):
        return None
    weight = value.const_value.weight
    while isinstance(weight, Cast):
        weight = weight.weight
    return weight if isinstance(weight, RotaryTable) else None


def _table(node: ir.Node) -> RotaryTable | None:
    return _rotary_table(node.inputs[_INPUTS[node.domain][1]])


def _rows(graph: ir.Graph, anchor: ir.Node, ids: ir.Value, suffix: str) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Cosine, sine and the row numbers of a step's positions."""
    table, x = _table(anchor), anchor.inputs[0]
    assert table is not None
    assert x is not None
    assert x.dtype is not None
    half = table.shape[1]
    flat = anchor.domain != ""
    frequencies = tensor_value(graph, f"rotary.frequencies{suffix}", ir.tensor(table.frequencies.numpy()))
    prefix = f"rotary{suffix}"
    tape = ir.tape.Tape()

    def typed(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        rows: list[str | int] = ["rotary_rows"] if flat else ["batch_size", "sequence_length"]
        value.type, value.shape = ir.TensorType(dtype), ir.Shape([*rows, half])
        value.name = f"{prefix}.{name}"
        return value

    if flat:
        column = tape.op("Reshape", [ids, int64_constant(graph, "constant.[-1,1]", [-1, 1])])
        column.type = ir.TensorType(ir.DataType.INT64)
    else:
        column = tape.op("Unsqueeze", [ids, int64_constant(graph, "constant.[2]", [2])])
    position = tape.op("Cast", [column], {"to": _FLOAT})
    position.type = ir.TensorType(ir.DataType.FLOAT)
    angles = typed(tape.op("Mul", [position, frequencies]), ir.DataType.FLOAT, "angles")
    found = []
    for function in ("Cos", "Sin"):
        value = typed(tape.op(function, [angles]), ir.DataType.FLOAT, function.lower())
        if x.dtype != ir.DataType.FLOAT:
            value.name = f"{prefix}.{function.lower()}_float32"
            value = typed(tape.op("Cast", [value], {"to": int(x.dtype)}), x.dtype, function.lower())
        found.append(value)
    rows = _row_numbers(graph, tape, ids, prefix) if flat else None
    insert_before(graph, anchor, tape, prefix)
    return found[0], found[1], rows


def _row_numbers(graph: ir.Graph, tape: ir.tape.Tape, ids: ir.Value, prefix: str) -> ir.Value:
    """int64 [batch_size, sequence_length]: 0, 1, ... over all rows."""
    zero, one = int64_constant(graph, "constant.0", 0), int64_constant(graph, "constant.1", 1)
    shape = tape.op("Shape", [ids])
    numbers = tape.op("Range", [zero, tape.op("Size", [ids]), one])
    rows = tape.op("Reshape", [numbers, shape])
    rows.name, rows.shape = f"{prefix}.rows", ids.shape
    rows.type = ir.TensorType(ir.DataType.INT64)
    return rows
