"""Finds the scale of blocks that are codes times a scale already: fine-tunes that were trained for Q4_0.

Such a checkpoint ("q4_0-unquantized") stores w = round((code - 8) * d) in its own type, d being a float16 number: one
rounding more than the codes explain, in bfloat16 of up to 1/16 of a step. Rounding to the nearest with a scale read off
the largest weight finds other codes where that weight's code is not 0, and another scale where it was rounded.

The largest weight w is (code - 8) * d for one of 15 codes. Each fixes all other codes, and every weight then allows an
interval of scales: what rounds to it, divided by its code. A scale of 11 significant bits in the intersection explains
the block to the last bit.

Source: quantize_row_q4_0_ref in https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_export.precision.block_format import SMALLEST_SCALE

if TYPE_CHECKING:
    import torch

    from gemma_export.precision.block_format import BlockFormat

__all__ = ["BLOCK", "LARGEST_CODES", "grid_scales", "may_be_on_grid"]

# Q4_0's blocks, and the signed codes that its largest weight may have, the usual one first: it takes d from -8. The
# even ones follow the odd ones that they are twice of, so that the smaller scale is found, whose codes reach further.
BLOCK = 32
LARGEST_CODES = (-8, 7, -7, 6, -6, 5, -5, 4, -4, 3, -3, 2, -2, 1, -1)
# significant bits of a stored weight: float32, float16, bfloat16
_BITS = (24, 11, 8)
# significant bits of d
_SCALE_BITS = 11
# a unit in the last place of 1.0
_EPSILON = 2.0**-23


def may_be_on_grid(rows: torch.Tensor, layout: BlockFormat) -> bool:
    """Whether any row's first block has at most 16 values, in Q4_0's layout: a hundredth of a search to see.

    Args:
        rows: [rows, columns], in any type.
        layout: anything but Q4_0's has no such rows.
    """
    if (layout.bits, layout.block_size, layout.symmetric) != (4, BLOCK, True):
        return False
    return bool(_candidates(rows[:, :BLOCK].float()).any())


def grid_scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of blocks that they explain exactly, and which those are.

    Args:
        blocks: float32 [rows, blocks, 32]; a power of two on all of them changes nothing.

    Returns:
        float32 scales [rows, blocks, 1] of 11 significant bits, and bool [rows, blocks, 1].
    """
    import torch

    candidates = _candidates(blocks[:, 0])
    scales, explained = torch.zeros(blocks.shape[:2]), torch.zeros(blocks.shape[:2], dtype=torch.bool)
    scales[candidates], explained[candidates] = _explain(blocks[candidates])
    return scales.unsqueeze(-1), explained.unsqueeze(-1)


def _candidates(first: torch.Tensor) -> torch.Tensor:
    """Which rows' first blocks, float32 [rows, up to 32], have at most 16 values; bool [rows]."""
    import numpy as np
    import torch

    # numpy's sort of short rows takes a tenth of torch's
    ordered = np.sort(first.numpy(), axis=-1)
    return torch.from_numpy((ordered[:, 1:] != ordered[:, :-1]).sum(-1) < 16)


def _explain(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and success of rows [rows, blocks, 32]."""
    import torch

    blocks = rows.reshape(-1, BLOCK)
    scales = torch.zeros(len(blocks))
    low, high = blocks.amin(-1), blocks.amax(-1)
    explained = (low == 0) & (high == 0)
    largest = torch.where(high >= -low, high, low)
    left = (~explained).nonzero().squeeze(-1)
    blocks = blocks[left]
    dropped = _dropped_bits(blocks)
    for code in LARGEST_CODES:
        if not len(left):
            break
        found, fits = _try(blocks, dropped, largest[left] / code)
        scales[left[fits]], explained[left[fits]] = found[fits], True
        left, blocks, dropped = left[~fits], blocks[~fits], dropped[~fits]
    return scales.view(rows.shape[:2]), explained.view(rows.shape[:2])


def _try(blocks: torch.Tensor, dropped: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale near a guess [n] that explains a block, and whether it does."""
    import torch

    codes = (blocks / guess.unsqueeze(-1)).round_()
    weights, sizes = blocks.abs(), codes.abs()
    # What rounds to a weight reaches half a unit in the last place up, and as far down from its predecessor's: that of
    # a power of two is half as large. Codes of 0 divide to infinity or 0, and say nothing.
    bits, unit = weights.view(torch.int32), 0.5 * _EPSILON * (1 << dropped)
    least = ((weights - _power_of_two(bits - 1) * unit) / sizes).amax(-1)
    most = 1 / (sizes / (weights + (_power_of_two(bits) * unit).clamp_(min=SMALLEST_SCALE))).amax(-1)
    # If any number of 11 bits lies in the interval, the nearest to its middle does. Ends belong to it or not, and
    # float32 has rounded them: whether the scale explains the block, the rounded products tell.
    scale = torch.copysign(_rounded((least + most) / 2, torch.tensor(24 - _SCALE_BITS)), guess)
    in_range = (codes.amin(-1) >= -8) & (codes.amax(-1) <= 7)
    # no comparison of elements: torch reduces booleans fifteen times slower than numbers
    differences = _rounded(codes.mul_(scale.unsqueeze(-1)), dropped).sub_(blocks).abs_().amax(-1)
    return scale, in_range & (differences == 0)


def _dropped_bits(blocks: torch.Tensor) -> torch.Tensor:
    """How many bits of float32 the type does not have that each block is stored in, int32 [n, 1]."""
    import torch

    # the lowest bit that is set in any weight
    joined = blocks.view(torch.int32)
    while joined.shape[1] > 1:
        joined = joined[:, ::2] | joined[:, 1::2]
    dropped = torch.zeros_like(joined)
    for bits in _BITS[1:]:
        dropped.masked_fill_(joined & ((1 << (24 - bits)) - 1) == 0, 24 - bits)
    return dropped


def _rounded(values: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """float32 without the lowest bits, rounded to the nearest, ties to even."""
    import torch

    bits = values.view(torch.int32)
    unit = 1 << dropped
    # of no bits there is no half to add
    carry = ((bits >> dropped) & 1).add_((unit >> 1) - 1).mul_(unit > 1)
    return carry.add_(bits).bitwise_and_(-unit).view(torch.float32)


def _power_of_two(bits: torch.Tensor) -> torch.Tensor:
    """The power of two below each float32 number, given as its bits: the exponent alone."""
    import torch

    return (bits & (0xFF << 23)).view(torch.float32)
