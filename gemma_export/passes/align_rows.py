"""Makes every row of a padded batch start at index 0, where GroupQueryAttention expects it."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import insert_before, int64_constant, nodes_of, refuse, value_named

__all__ = [
    "ALIGNED_IDS",
    "FIRST",
    "PAST_LENGTHS",
    "POSITION_IDS",
    "QUERY_LENGTHS",
    "SEQLENS_K",
    "SEQUENCE",
    "TOTAL",
    "AlignRows",
    "position_ids",
]

# values that later passes look up by name
# int32 [batch_size]: real tokens of a row after this step, minus one
SEQLENS_K = "rows.seqlens_k"
# int32 scalar: columns of the attention mask
TOTAL = "rows.total_sequence_length"
# int64 [batch_size, 1]: real tokens of a row in this step, at least one for a row that has none at all
QUERY_LENGTHS = "rows.query_lengths"
# int64 [batch_size, 1]: column of a row's first real token among this step's columns
FIRST = "rows.first"
# int64 [batch_size, sequence_length]: positions of this step's tokens, where rotary embedding is a node of its own
POSITION_IDS = "rows.position_ids"
# int64 [batch_size, 1]: real tokens of a row before this step, where there are positions
PAST_LENGTHS = "rows.past_lengths"
# int64 [1]: sequence_length
SEQUENCE = "rows.sequence_length"
# int64 [batch_size, sequence_length]: token ids, each row's real ones first
ALIGNED_IDS = "rows.input_ids"

_INT32, _INT64 = int(ir.DataType.INT32), int(ir.DataType.INT64)
_FAR = 2**63 - 1


class AlignRows(ir.passes.InPlacePass):
    """Rolls each row's padding to its right end, once, on the token ids.

    Before: ScaledEmbedding(input_ids, ...)
    After:  ScaledEmbedding(GatherElements(input_ids, (range(S) + first) mod S), ...) and the row lengths that
            GroupQueryAttention takes. `SelectLogits` rolls the hidden states back.

    With n = ReduceSum(mask) and cm its last S columns: T = max(n, 1); seqlens_k = T - 1;
    query length Q = sum(cm) + (n == 0); first = ArgMax(cm). A row without any real token still needs one key, hence
    the clamps. Everything between is token-wise or masked by length, so the roll is exact.

    Preconditions: one ScaledEmbedding reading the graph's `input_ids`; real tokens of a step are contiguous per row.
    Source: GroupQueryAttention in
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (seqlens_k, query_seqlens).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inserts the prelude; raises PassError unless there is one embedding and it reads `input_ids`."""
        graph = model.graph
        if any(value.name == SEQLENS_K for node in graph for value in node.outputs):
            return ir.passes.PassResult(model, modified=False)
        embeddings = nodes_of(model, "ScaledEmbedding")
        if len(embeddings) != 1:
            raise PassError(
                f"AlignRows: expected one ScaledEmbedding, found {len(embeddings)}",
                hint="A pass ran out of order. Report this with --debug.",
            )
        embedding = embeddings[0]
        ids = embedding.inputs[0]
        if ids is None or ids.name != "input_ids":
            raise refuse(embedding, "AlignRows", f"its ids are {ids.name if ids else None}, expected input_ids")
        rolled = _prelude(graph, embedding, ids, value_named(graph, "attention_mask"))
        embedding.replace_input_with(0, rolled)
        return ir.passes.PassResult(model, modified=True)


def _prelude(graph: ir.Graph, anchor: ir.Node, ids: ir.Value, mask: ir.Value) -> ir.Value:
    zero = int64_constant(graph, "constant.0", 0)
    one = int64_constant(graph, "constant.1", 1)
    axis_0 = int64_constant(graph, "constant.[0]", [0])
    axis_1 = int64_constant(graph, "constant.[1]", [1])
    far = int64_constant(graph, "constant.[end]", [_FAR])
    tape = ir.tape.Tape()

    def named(value: ir.Value, name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        return value

    count = tape.op("ReduceSum", [mask, axis_1], {"keepdims": 0})
    tokens = tape.op("Max", [count, one])
    seqlens = tape.op("Cast", [tape.op("Sub", [tokens, one])], {"to": _INT32})
    named(seqlens, SEQLENS_K, ir.DataType.INT32, ["batch_size"])
    columns = tape.op("Squeeze", [tape.op("Shape", [mask], {"start": 1, "end": 2})])
    named(tape.op("Cast", [columns], {"to": _INT32}), TOTAL, ir.DataType.INT32, [])

    sequence = named(tape.op("Shape", [ids], {"start": 1, "end": 2}), SEQUENCE, ir.DataType.INT64, [1])
    own = tape.op("Slice", [mask, tape.op("Neg", [sequence]), far, axis_1])
    empty = tape.op("Cast", [tape.op("Equal", [count, zero])], {"to": _INT64})
    real = tape.op("Add", [tape.op("ReduceSum", [own, axis_1], {"keepdims": 0}), empty])
    named(tape.op("Unsqueeze", [real, axis_1]), QUERY_LENGTHS, ir.DataType.INT64, ["batch_size", 1])
    first = tape.op("ArgMax", [own], {"axis": 1, "keepdims": 1})
    named(first, FIRST, ir.DataType.INT64, ["batch_size", 1])
    positions = tape.op("Range", [zero, tape.op("Squeeze", [sequence, axis_0]), one])
    index = tape.op("Mod", [tape.op("Add", [positions, first]), sequence])
    rolled = tape.op("GatherElements", [ids, index], {"axis": 1})
    named(rolled, ALIGNED_IDS, ir.DataType.INT64, ["batch_size", "sequence_length"])
    insert_before(graph, anchor, tape, "rows")
    return rolled


def position_ids(graph: ir.Graph) -> ir.Value:
    """int64 [batch_size, sequence_length]: a row's tokens before this step, and one more for each of this step's.

    Computed before the first attention, once.
    """
    anchor = next((node for node in graph if node.op_type == "Attention"), None)
    for node in graph:
        for value in node.outputs:
            if value.name == POSITION_IDS:
                return value
    assert anchor is not None
    zero, one = int64_constant(graph, "constant.0", 0), int64_constant(graph, "constant.1", 1)
    axis_0, axis_1 = int64_constant(graph, "constant.[0]", [0]), int64_constant(graph, "constant.[1]", [1])
    tape = ir.tape.Tape()
    seqlens = tape.op("Cast", [value_named(graph, SEQLENS_K)], {"to": _INT64})
    tokens = tape.op("Unsqueeze", [tape.op("Add", [seqlens, one]), axis_1])
    past = tape.op("Sub", [tokens, value_named(graph, QUERY_LENGTHS)])
    past.name, past.shape = PAST_LENGTHS, ir.Shape(["batch_size", 1])
    steps = tape.op("Range", [zero, tape.op("Squeeze", [value_named(graph, SEQUENCE), axis_0]), one])
    # the padding behind a row's tokens stays within the tables
    last = tape.op("Unsqueeze", [seqlens, axis_1])
    positions = tape.op("Min", [tape.op("Add", [past, steps]), last])
    positions.name, positions.shape = POSITION_IDS, ir.Shape(["batch_size", "sequence_length"])
    insert_before(graph, anchor, tape, "rows.position_ids")
    return positions
