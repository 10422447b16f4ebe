"""The compiled pass over blocks, from numbers as a checkpoint stores them to codes, scales and zero points.

Blocks go through a strip that stays in a core's first-level cache: widened, searched, rounded and packed there. In
passes of their own the same steps wait for memory, and for Python's lock between them. The numbers are those of
`block_search` and `block_kernels`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemma_export.precision.block_kernels import (
    WHOLE,
    as_stored,
    compiled,
    inner,
    reciprocal,
    round_blocks,
    round_scales,
)
from gemma_export.precision.block_search import block_range, search_blocks

__all__ = ["quantise_blocks"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_ZERO, _SIXTEEN = np.float32(0.0), np.float32(16.0)


@compiled  # type: ignore[untyped-decorator]
def quantise_blocks(
    numbers: npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
    shift: np.uint32,
    strip: Floats,
    bits: npt.NDArray[np.uint32],
    factors: Floats | None,
    middle: np.float32,
    top: np.float32,
    symmetric: bool,
    dropped_bits: int,
    scales: Floats,
    zero_points: Floats,
    data: Bytes,
) -> None:
    """Quantises blocks; one that is not finite gets a scale that is not.

    Args:
        numbers: bits of bfloat16 or float32: [n * block size].
        shift: makes them those of float32: 16 or 0.
        strip: [blocks that fit a first-level cache, block size], overwritten.
        bits: the same memory, flat.
        factors: of the search's candidates; None where a block's range alone decides.
        middle, top: the zero point where it is symmetric, and the largest code; nibbles where it is 15.
        symmetric: without zero points.
        dropped_bits: how many bits of float32 the scales' type has not: 0, 13 of float16, 16 of bfloat16.
        scales: [n], written; numbers that their type has, or beyond its range.
        zero_points: [n], written.
        data: [n, bytes of a block], written.
    """
    nibbles, size = top < _SIXTEEN, strip.shape[1]
    for first in range(0, len(scales), len(strip)):
        last = min(first + len(strip), len(scales))
        taken = numbers[first * size : last * size]
        for index in range(len(taken)):
            bits[index] = np.uint32(taken[index]) << shift
        blocks, scale, zero_point = strip[: last - first], scales[first:last], zero_points[first:last]
        if factors is None:
            _take_ranges(blocks, middle, top, symmetric, dropped_bits, scale, zero_point)
        else:
            search_blocks(blocks, None, factors, middle, top, symmetric, scale, zero_point)
            round_scales(scale, dropped_bits, scale)
        round_blocks(blocks, scale, zero_point, top, nibbles, data[first:last])


@inner  # type: ignore[untyped-decorator]
def _take_ranges(
    blocks: Floats,
    middle: np.float32,
    top: np.float32,
    symmetric: bool,
    dropped_bits: int,
    scales: Floats,
    zero_points: Floats,
) -> None:
    """The stored scales and the zero points that the ranges of blocks [n, block size] give."""
    for index in range(len(blocks)):
        low, high = block_range(blocks[index])
        if symmetric:
            scales[index] = as_stored((high if high >= -low else low) / -middle, dropped_bits)
            zero_points[index] = middle
        else:
            # divided before the subtraction, which could overflow
            scale = as_stored(high / top - low / top, dropped_bits)
            scales[index] = scale
            zero_point = (-low * reciprocal(scale) + WHOLE) - WHOLE
            # NaN is zero
            zero_points[index] = min(zero_point, top) if zero_point > _ZERO else _ZERO
