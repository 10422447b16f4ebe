"""LastTokens becomes a gather from aligned rows; the pass that makes one graph's twins differ."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.passes.align_rows import FIRST, QUERY_LENGTHS, SEQUENCE
from gemma_export.passes.logits_positions import select_positions
from gemma_export.passes.semantic_nodes import int64_constant, require_none, value_named

__all__ = ["SelectLogits"]

_NAME = "SelectLogits"


class SelectLogits(ir.passes.InPlacePass):
    """Chooses the positions that get logits.

    Before: LastTokens(hidden, mask, keep)
    After, keep = 1: GatherND(hidden, Q - 1), the last real token of each row
    After, keep = n: GatherND(hidden, Q - m + [0 .. m-1]) with m = min(n, S), right-aligned, clamped at 0
    After, keep = 0: GatherND(hidden, (range(S) - first + S) mod S), every position, rolled back to its column

    Args:
        keep: positions per row; 0 means all.

    Precondition: `AlignRows` ran, so row b's Q real tokens are hidden[b, :Q].
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

    def _index(self, graph: ir.Graph, tape: ir.tape.Tape) -> ir.Value:
        """int64 [batch_size, positions]: rows of the aligned hidden states."""
        zero = int64_constant(graph, "constant.0", 0)
        one = int64_constant(graph, "constant.1", 1)
        axis_0 = int64_constant(graph, "constant.[0]", [0])
        sequence, lengths = value_named(graph, SEQUENCE), value_named(graph, QUERY_LENGTHS)
        if self.keep == 0:
            positions = tape.op("Range", [zero, tape.op("Squeeze", [sequence, axis_0]), one])
            behind = tape.op("Sub", [positions, value_named(graph, FIRST)])
            return tape.op("Mod", [tape.op("Add", [behind, sequence]), sequence])
        if self.keep == 1:
            last = tape.op("Sub", [lengths, one])
        else:
            wanted = int64_constant(graph, "logits_positions.keep", [self.keep])
            count = tape.op("Min", [wanted, sequence])
            offsets = tape.op("Range", [zero, tape.op("Squeeze", [count, axis_0]), one])
            last = tape.op("Add", [tape.op("Sub", [lengths, count]), offsets])
        # an idle row of a chunked batch has Q = 0
        return tape.op("Max", [last, zero])
