"""The block-quantised matrices of a lowered graph."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.precision.block_weight import BlockPart, BlockWeight
from gemma_export.precision.scale_counts import ScaleCounts
from gemma_export.precision.stored_blocks import StoredBlocks
from gemma_export.precision.transposed_weight import TransposedWeight

__all__ = ["graph_blocks", "rounded_scales", "scale_counts"]


def graph_blocks(model: ir.Model) -> list[BlockWeight]:
    """Each matrix once, however many initializers and readers it has."""
    matrices: dict[int, BlockWeight] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, BlockPart):
            group = tensor.group.blocks if isinstance(tensor.group, TransposedWeight) else tensor.group
            if isinstance(group, BlockWeight):
                matrices[id(group)] = group
    return list(matrices.values())


def rounded_scales(model: ir.Model) -> tuple[int, int, float]:
    """`StoredBlocks.rounded_scales` over all matrices of a graph that are the checkpoint's own."""
    found = [matrix.rounded_scales() for matrix in graph_blocks(model) if isinstance(matrix, StoredBlocks)]
    return sum(item[0] for item in found), sum(item[1] for item in found), max((item[2] for item in found), default=0.0)


def scale_counts(model: ir.Model) -> ScaleCounts:
    """Scales of all matrices that were quantised here, once they are written; the checkpoint's own are no choice."""
    own = (matrix for matrix in graph_blocks(model) if not isinstance(matrix, StoredBlocks))
    return sum((matrix.scale_counts for matrix in own), ScaleCounts())
