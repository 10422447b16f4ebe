"""Compiled loops over blocks: rounding of codes and scales, and packing.

float32 throughout, each step rounded once, nothing reordered: every machine gets the same bits. Compiling takes part of
a second, in each process: a cache on the disk would be one more thing that can be full, read-only or stale.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gemma_export.precision.block_format import SMALLEST_SCALE

__all__ = ["WHOLE", "as_stored", "compiled", "inner", "reciprocal", "round_blocks", "round_scales"]

_SMALLEST = np.float32(SMALLEST_SCALE)
# float32 numbers around it are whole: adding and subtracting it rounds to the nearest, ties to even
WHOLE = np.float32(12582912.0)
_ZERO, _ONE, _SIXTEEN = np.float32(0.0), np.float32(1.0), np.float32(16.0)
# bits of float32 that float16 has not, its smallest normal number, and its steps below that
_FLOAT16, _NORMAL, _STEP, _STEPS = 13, np.float32(2.0**-14), np.float32(2.0**-24), np.float32(2.0**24)

Floats = npt.NDArray[np.float32]

# called from Python, and from compiled functions
compiled = numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)
# called from compiled functions alone
inner = numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _code(weight: np.float32, reciprocal: np.float32, least: np.float32, most: np.float32) -> np.float32:
    """The nearest whole number of scales, within a range of whole numbers."""
    code = weight * reciprocal
    code = least if code < least else code
    code = most if code > most else code
    return (code + WHOLE) - WHOLE


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _round_block(
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
    """`_round_block` for each of some blocks.

    Args:
        blocks: [n, block size].
        scales, zero_points: [n].
        top: the largest code.
        nibbles: whether two codes go into a byte.
        codes: [n, bytes of a block], written.
    """
    for block in range(len(blocks)):
        _round_block(blocks[block], scales[block], zero_points[block], top, nibbles, codes[block])


@compiled  # type: ignore[untyped-decorator]
def round_scales(scales: Floats, dropped_bits: int, found: Floats) -> None:
    """`as_stored` for each of some scales.

    Args:
        scales: [n].
        dropped_bits: see there.
        found: [n], written; may be the same memory.
    """
    for index in range(len(scales)):
        found[index] = as_stored(scales[index], dropped_bits)


@inner  # type: ignore[untyped-decorator]
def as_stored(scale: np.float32, dropped_bits: int) -> np.float32:
    """The nearest scale of its type, as float32; see `block_codes.stored_scales`.

    Args:
        scale: any number, or NaN.
        dropped_bits: how many bits of float32 the type has not: 0, 13 of float16, 16 of bfloat16.
    """
    if abs(scale) < _SMALLEST:
        return _ZERO
    # a carry could make a number of NaN
    if np.isnan(scale):
        return scale
    if dropped_bits == _FLOAT16 and abs(scale) < _NORMAL:
        return np.float32(np.copysign(np.ceil(abs(scale) * _STEPS) * _STEP, scale))
    if dropped_bits:
        bits = np.float32(scale).view(np.uint32)
        half = (np.uint32(1) << np.uint32(dropped_bits - 1)) - np.uint32(1)
        odd = (bits >> np.uint32(dropped_bits)) & np.uint32(1)
        kept = (np.uint32(bits + half + odd) >> np.uint32(dropped_bits)) << np.uint32(dropped_bits)
        return np.uint32(kept).view(np.float32)
    return scale
