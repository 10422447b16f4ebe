"""Round to nearest: the block's extremes decide its scale, no search.

Symmetric: the element of largest magnitude m (the positive one of two) becomes code 0 exactly: scale = m / -2^(bits-1).
That uses the whole range; scaling by 2^(bits-1) - 1 leaves one code unused and measures 15 to 20 % more mean KL.
With zero points: scale = (max - min) / (2^bits - 1) over the block and 0, zero point = round(-min / scale).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_export.precision.quantisers.quantiser import Quantiser, RowQuantiser

if TYPE_CHECKING:
    import torch

    from gemma_export.precision.block_format import BlockFormat

__all__ = ["RTN"]


def _prepare(name: str, layout: BlockFormat, scale_dtype: torch.dtype) -> RowQuantiser:
    from gemma_export.precision.block_codes import BlockCodes, encode_rows

    def quantise(rows: torch.Tensor) -> BlockCodes:
        return encode_rows(rows, layout, scale_dtype)

    return quantise


RTN = Quantiser(name="rtn", prepare=_prepare)
