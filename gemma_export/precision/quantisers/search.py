"""Per-block search of scale and zero point for the least squared error of the weights; needs no data.

Each candidate range (the block's own, shrunk or stretched by a factor) gives codes q; the scale is then refitted to
them by least squares, s = <q, w> / <q, q>, whose squared error is <w, w> - s <q, w>: no second pass over the block.
The best candidate's scale and zero point round the block once more, which never adds error.

Weighting the error by |w| or w^2 gave no lower KL on the built-in model; twelve candidates with two refits each gave
0.5 % less error than these four with one. A block's largest weights lose by a smaller range, all to one side: factors
down to 0.76 gave less squared error and more KL (two trained models, blocks of 128: 0.0289 and 0.00318, these 0.0286
and 0.00288, rounding alone 0.0327 and 0.00290).

Blocks that lie on Q4_0's grid already keep its codes and scale: see `grid`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_export.precision.quantisers.grid import grid_scales, may_be_on_grid
from gemma_export.precision.quantisers.quantiser import Quantiser, RowQuantiser

if TYPE_CHECKING:
    import torch

    from gemma_export.precision.block_format import BlockFormat

__all__ = ["FACTORS", "SEARCH", "search_scales"]

# Symmetric -> factors on the block's range. Without zero points one above 1 too: the shorter side may use its extra
# code.
FACTORS = {True: (1.12, 1.0, 0.9, 0.8), False: (1.0, 0.97, 0.94, 0.91)}


def _prepare(name: str, layout: BlockFormat, scale_dtype: torch.dtype) -> RowQuantiser:
    import torch

    from gemma_export.precision.block_codes import BlockCodes, blocks_of, encode, encode_rows, stored_scales

    def quantise(rows: torch.Tensor) -> BlockCodes:
        if not may_be_on_grid(rows, layout):
            return encode_rows(rows, layout, scale_dtype, FACTORS[layout.symmetric])
        blocks = blocks_of(rows.float(), layout)
        found, explained = grid_scales(blocks)
        if explained.all():
            scales, zero_points = found, torch.full_like(found, layout.middle)
        else:
            scales, zero_points = search_scales(blocks, layout)
            scales = torch.where(explained, found, scales)
        return encode(blocks, stored_scales(scales, scale_dtype), zero_points, layout)

    return quantise


def search_scales(
    blocks: torch.Tensor,
    layout: BlockFormat,
    importance: torch.Tensor | None = None,
    *,
    asymmetric: tuple[float, ...] = FACTORS[False],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best float32 scales and zero points, [rows, blocks, 1] each.

    Args:
        blocks: float32 [rows, blocks, block size]; of any size, as a last one that is not padded may be.
        layout: bits and symmetry.
        importance: of each weight's squared error, [block size]; all alike if not given.
        asymmetric: four factors on the range of blocks with zero points.
    """
    import numpy as np
    import torch

    from gemma_export.precision.block_search import CANDIDATES, LANES, search_blocks

    factors = FACTORS[True] if layout.symmetric else asymmetric
    if len(factors) != CANDIDATES:
        raise ValueError(f"expected {CANDIDATES} factors, found {len(factors)}")
    missing = -blocks.shape[-1] % LANES
    if missing:
        # zeros, which change neither a range nor what codes explain
        blocks = torch.nn.functional.pad(blocks, (0, missing))
        importance = None if importance is None else torch.nn.functional.pad(importance, (0, missing))
    rows, count, size = blocks.shape
    scales, zero_points = torch.empty(rows, count, 1), torch.empty(rows, count, 1)
    search_blocks(
        blocks.contiguous().view(rows * count, size).numpy(),
        None if importance is None else importance.contiguous().numpy(),
        np.array(factors, np.float32),
        np.float32(layout.middle),
        np.float32(layout.top),
        layout.symmetric,
        scales.view(-1).numpy(),
        zero_points.view(-1).numpy(),
    )
    return scales, zero_points


SEARCH = Quantiser(name="search", prepare=_prepare)
