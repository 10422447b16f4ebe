"""A matrix that is quantised while it is written."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_codes import BlockCodes, require_finite_scales
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.quantisers import RowQuantiser
from gemma_export.precision.row_pieces import converted_rows, converted_stored_rows
from gemma_export.weights import Weight, widened_parts

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
        parts, row = widened_parts(self._weight), 0
        # float16 is widened on its way, the other types by the quantiser
        stored = bool(parts) and all(part.dtype != torch.float16 for part in parts)
        rows = converted_stored_rows(parts, self._quantise) if stored else converted_rows(self._weight, self._quantise)
        for codes in rows:
            self._require_finite(codes, row)
            yield codes
            row += len(codes.data)

    def _require_finite(self, codes: BlockCodes, first_row: int) -> None:
        try:
            require_finite_scales(codes, self.name, first_row, self.layout)
        except NonFiniteError:
            # where a weight is the reason, its expression names it
            for _ in self._weight.chunks():
                pass
            raise
