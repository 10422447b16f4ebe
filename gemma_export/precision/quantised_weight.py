"""A matrix that is quantised while it is written."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gemma_export.precision.block_codes import BlockCodes, require_finite_scales
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.quantisers import RowQuantiser
from gemma_export.precision.row_pieces import converted_rows
from gemma_export.weights import Weight

__all__ = ["QuantisedWeight"]


class QuantisedWeight(BlockWeight):
    """A lazy float32 expression and what chooses its rows' codes; each source is read once.

    Args:
        weight: float32 [rows, columns], finite: its expression refuses NaN and infinity by tensor and position.
        name: of the stored tensor.
        layout: bits, block size, symmetry.
        scale_dtype: of the scales: the activations' type.
        quantise: rows -> their codes.
    """

    def __init__(
        self, weight: Weight, name: str, layout: BlockFormat, scale_dtype: torch.dtype, quantise: RowQuantiser
    ) -> None:
        super().__init__(name, weight.shape, layout, scale_dtype)
        self._weight, self._quantise = weight, quantise

    def _codes(self) -> Iterator[BlockCodes]:
        """See BlockWeight; quantised on several threads."""
        row = 0
        for codes in converted_rows(self._weight, self._quantise):
            require_finite_scales(codes, self.name, row, self.layout)
            yield codes
            row += len(codes.data)
