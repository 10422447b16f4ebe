"""LastTokens becomes a gather from the mask's columns, for graphs whose rows stay where the mask puts them."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.logits_positions import select_positions
from gemma_export.passes.semantic_nodes import int64_constant, require_none, value_named

__all__ = ["SelectColumns"]

_NAME = "SelectColumns"
_FAR = 2**63 - 1


class SelectColumns(ir.passes.InPlacePass):
    """Chooses the positions that get logits.

    Before: LastTokens(hidden, mask, keep)
    After, keep = 0: hidden itself, every column in place
    After, keep = n: GatherND(hidden, max(last - m + 1 + [0 .. m-1], 0)) with m = min(n, S) and `last` the column of a
            row's last real token in this step, right-aligned

    Args:
        keep: positions per row; 0 means all.

    Source: https://onnx.ai/onnx/operators/onnx__GatherND.html (batch_dims = 1).
    """

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the LastTokens node and declares the logits' shape."""
        return select_positions(model, self.keep, self._index, _NAME)

    def ensures(self, model: ir.Model) -> None:
        """No LastTokens node is left."""
        require_none(model, "LastTokens", _NAME)

    def _index(self, graph: ir.Graph, tape: ir.tape.Tape) -> ir.Value | None:
        """int64 [batch_size, positions]: columns of the hidden states."""
        if self.keep == 0:
            return None
        zero = int64_constant(graph, "constant.0", 0)
        one = int64_constant(graph, "constant.1", 1)
        axis_0 = int64_constant(graph, "constant.[0]", [0])
        axis_1 = int64_constant(graph, "constant.[1]", [1])
        far = int64_constant(graph, "constant.[end]", [_FAR])
        sequence = tape.op("Shape", [value_named(graph, "input_ids")], {"start": 1, "end": 2})
        own_BS = tape.op("Slice", [value_named(graph, "attention_mask"), tape.op("Neg", [sequence]), far, axis_1])
        # a row without real tokens takes its last column: all are equal, and the last index wins
        last_B1 = tape.op("ArgMax", [own_BS], {"axis": 1, "keepdims": 1, "select_last_index": 1})
        if self.keep == 1:
            return last_B1
        wanted = int64_constant(graph, "logits_positions.keep", [self.keep])
        count = tape.op("Min", [wanted, sequence])
        steps = tape.op("Range", [zero, tape.op("Squeeze", [count, axis_0]), one])
        offsets = tape.op("Sub", [steps, tape.op("Sub", [count, one])])
        return tape.op("Max", [tape.op("Add", [last_B1, offsets]), zero])
