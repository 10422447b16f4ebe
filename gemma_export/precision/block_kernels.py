"""Compiled loops over blocks: rounding and packing.

float32 throughout, each step rounded once, nothing reordered: every machine gets the same bits. Compiling takes part of
a second, in each process: a cache on the disk would be one more thing that can be full, read-only or stale.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gemma_export.precision.block_format import SMALLEST_SCALE

__all__ = ["WHOLE", "compiled", "round_blocks", "round_to_nibbles"]

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


@compiled  # type: ignore[untyped-decorator]
def round_blocks(
    blocks: Floats, scales: Floats, zero_points: Floats, top: np.float32, codes: npt.NDArray[np.uint8]
) -> None:
    """code = clamp(round(w / scale) + zero point, 0, top).

    Args:
        blocks: [n, block size].
        scales: [n]; a weight is multiplied by the reciprocal.
        zero_points: [n], whole numbers.
        top: the largest code.
        codes: [n, block size], written.
    """
    for block in range(len(blocks)):
        inverse = _ZERO if abs(scales[block]) < _SMALLEST else _ONE / scales[block]
        zero_point = zero_points[block]
        least, most = -zero_point, top - zero_point
        weights, found = blocks[block], codes[block]
        for index in range(len(weights)):
            found[index] = np.int32(_code(weights[index], inverse, least, most) + zero_point)


@compiled  # type: ignore[untyped-decorator]
def round_to_nibbles(
    blocks: Floats, scales: Floats, zero_points: Floats, top: np.float32, data: npt.NDArray[np.uint8]
) -> None:
    """`round_blocks` for codes of 4 bits, two to a byte, the first one low.

    Args:
        blocks: [n, block size].
        scales, zero_points: [n].
        top: 15.
        data: [n, block size / 2], written.
    """
    for block in range(len(blocks)):
        inverse = _ZERO if abs(scales[block]) < _SMALLEST else _ONE / scales[block]
        zero_point = zero_points[block]
        least, most = -zero_point, top - zero_point
        weights, found = blocks[block], data[block]
        for index in range(len(found)):
            first = _code(weights[2 * index], inverse, least, most) + zero_point
            second = _code(weights[2 * index + 1], inverse, least, most) + zero_point
            found[index] = np.int32(first + second * _SIXTEEN)
