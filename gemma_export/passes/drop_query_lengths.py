"""Takes `query_seqlens` from GroupQueryAttention, for onnxruntime releases whose schema lacks it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gemma_export.passes.fuse_attention import QUERY_SEQLENS
from gemma_export.passes.semantic_nodes import nodes_of, remove_unused

__all__ = ["DropQueryLengths"]


class DropQueryLengths(ir.passes.InPlacePass):
    """The same graph without batched chunks.

    Before: GroupQueryAttention(qkv, ..., cos, sin, ..., query_seqlens)
    After:  GroupQueryAttention(qkv, ..., cos, sin)

    Without the input the kernel takes min(sequence_length, seqlens_k + 1) tokens of each row: right for whole prompts
    of a padded batch, for chunks of a single row and for decode steps. It refuses a chunk of several rows with a cache.

    Precondition: `FuseGroupQueryAttention` ran.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shortens every GroupQueryAttention's inputs and removes what only fed the last one."""
        modified = False
        for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
            if len(node.inputs) > QUERY_SEQLENS:
                lengths = node.inputs[QUERY_SEQLENS]
                node.resize_inputs(_last_used(node.inputs[:QUERY_SEQLENS]) + 1)
                remove_unused(model.graph, lengths)
                modified = True
        return ir.passes.PassResult(model, modified)


def _last_used(inputs: Sequence[ir.Value | None]) -> int:
    return max(index for index, value in enumerate(inputs) if value is not None)
