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
    import torch

    from gemma_export.precision.block_codes import BlockCodes, blocks_of, encode, reciprocal, stored_scales

    def quantise(rows: torch.Tensor) -> BlockCodes:
        blocks = blocks_of(rows, layout)
        # two reductions: torch's aminmax over short rows is ten times slower than amin and amax
        low, high = blocks.amin(-1, keepdim=True).clamp_(max=0), blocks.amax(-1, keepdim=True).clamp_(min=0)
        if layout.symmetric:
            extreme = torch.where(high >= -low, high, low)
            scales = stored_scales(extreme / -layout.middle, scale_dtype)
            zero_points = torch.full_like(low, layout.middle)
        else:
            # divided before the subtraction, which could overflow
            scales = stored_scales(high / layout.top - low / layout.top, scale_dtype)
            zero_points = (-low * reciprocal(scales.float())).round_().clamp_(0, layout.top)
        return encode(blocks, scales, zero_points, layout)

    return quantise


RTN = Quantiser(name="rtn", prepare=_prepare)
