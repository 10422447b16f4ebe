"""Compiled loops over blocks: rounding and packing.

float32 throughout, each step rounded once, nothing reordered: every machine gets the same bits. Compiling takes part of
a second, in each process: a cache on the disk would be one more thing that can be full, read-only or stale.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gemma_export.precision.block_format import SMALLEST_SCALE

__all__ = ["WHOLE", "compiled", "reciprocal", "round_block", "round_blocks"]

_SMALLEST = np.float32(SMALLEST_SCALE)
# float32 numbers around it are whole: adding and subtracting it rounds to the nearest, ties to even
WHOLE = np.float32(12582912.0)
_ZERO, _ONE, _SIXTEEN = np.float32(0.0), np.float32(1.0), np.float32(16.0)

Floats = npt.NDArray[np.float32]

# called from Python alone: nothing is compiled for other callers
compiled = numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _code(weight: np.float32, reciprocal: np.float32, least: np.float32, most: np.float32) -> np.float32:
    """The nearest whole number of scales, within a range of whole numbers."""
    code = weight * reciprocal
    code = least if code < least else code
    code = most if code > most else code
    return (code + WHOLE) - WHOLE


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def round_block(
    weights: Floats,
    scale: np.float32,
    zero_point: np.float32,
    top: np.float32,
    nibbles: bool,
    found: npt.NDArray[np.uint8],
) -> None:
    """code = clamp(round(w / scale) + zero point, 0, top) of one block.

    Args:
        weights: [block size]; each is multiplied by the scale's reciprocal.
        scale: as it is stored.
        zero_point: a whole number.
        top: the largest code; 15 for nibbles.
        nibbles: whether two codes go into a byte, the first one low.
        found: [block size / 2] or [block size], written.
    """
    inverse = reciprocal(scale)
    least, most = -zero_point, top - zero_point
    if nibbles:
        for index in range(len(found)):
            first = _code(weights[2 * index], inverse, least, most) + zero_point
            second = _code(weights[2 * index + 1], inverse, least, most) + zero_point
            found[index] = np.int32(first + second * _SIXTEEN)
    else:
        for index in range(len(found)):
            found[index] = np.int32(_code(weights[index], inverse, least, most) + zero_point)


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def reciprocal(scale: np.float32) -> np.float32:
    """1 / scale; 0 for a scale that counts as 0."""
    return _ZERO if abs(scale) < _SMALLEST else _ONE / scale


@compiled  # type: ignore[untyped-decorator]
def round_blocks(
    blocks: Floats,
    scales: Floats,
    zero_points: Floats,
    top: np.float32,
    nibbles: bool,
    codes: npt.NDArray[np.uint8],
) -> None:
    """`round_block` for each of some blocks.

    Args:
        blocks: [n, block size].
        scales, zero_points: [n].
        top: the largest code.
        nibbles: whether two codes go into a byte.
        codes: [n, bytes of a block], written.
    """
    for block in range(len(blocks)):
        round_block(blocks[block], scales[block], zero_points[block], top, nibbles, codes[block])
