"""Codes that a checkpoint brings along, in the layout of blocks: packed anew, never quantised again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gemma_export.errors import InternalError
from gemma_export.precision.block_codes import BlockCodes, pack, require_finite_scales, stored_scales
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.row_pieces import in_order
from gemma_export.stored_codes import CodeRows, StoredMatrix, stored_matrix
from gemma_export.weights import Weight

__all__ = ["StoredBlocks"]


class StoredBlocks(BlockWeight):
    """A matrix of the checkpoint's own codes, scales and zero points.

    Args:
        weight: its float32 expression.
        name: of the stored tensor.
        layout: blocks of the checkpoint's groups, or of equal parts of them: those repeat the group's scale.
        scale_dtype: of the scales: the activations' type.

    Raises:
        CheckpointError: its parts are not ordered alike.
    """

    def __init__(self, weight: Weight, name: str, layout: BlockFormat, scale_dtype: torch.dtype) -> None:
        matrix = stored_matrix(weight, name)
        if matrix is None:
            raise InternalError(
                f"{name} is planned as the checkpoint's own integers, but is {type(weight).__name__}",
                hint="A pass computes with it. Report this with --debug.",
            )
        super().__init__(name, weight.shape, layout, scale_dtype)
        self.order = matrix.order()
        self._matrix: StoredMatrix = matrix
        self._group_of_block = torch.arange(layout.blocks(self.columns)) * layout.block_size // matrix.group_size

    def rounded_scales(self) -> tuple[int, int, float]:
        """How many scales the activations' type rounds, of how many, and the largest relative change."""
        count = total = 0
        worst = 0.0
        for scales in self._matrix.scales():
            change = (stored_scales(scales, self.scale_dtype).float() - scales).abs()
            count, total = count + int((change > 0).sum()), total + scales.numel()
            worst = max(worst, float((change / scales.abs()).nan_to_num(0.0).max()))
        return count, total, worst

    def _codes(self) -> Iterator[BlockCodes]:
        """See BlockWeight; converted on several threads."""
        row = 0
        for codes in in_order(self._matrix.pieces(), self._convert):
            require_finite_scales(codes, self.name, row, self.layout)
            yield codes
            row += len(codes.data)

    def _convert(self, rows: CodeRows) -> BlockCodes:
        layout, groups = self.layout, self._group_of_block
        codes = rows.codes
        if self.order is not None:
            # numpy takes bytes four times faster
            codes = torch.from_numpy(np.take(codes.numpy(), self.order, axis=1))
        zero_points = rows.zero_points[:, groups]
        missing = len(groups) * layout.block_size - self.columns
        if missing:
            # features that are not there weigh nothing
            codes = torch.cat((codes, zero_points[:, -1:].expand(-1, missing)), dim=1)
        return BlockCodes(
            data=pack(codes, layout.bits).view(len(codes), len(groups), -1),
            scales=stored_scales(rows.scales[:, groups], self.scale_dtype),
            zero_points=None if layout.symmetric else pack(zero_points.contiguous(), layout.bits),
        )
