"""Compiled loops over blocks: the search for scales, and rounding.

float32 throughout, each step rounded once, nothing contracted or reordered: every machine gets the same bits. The
search takes many blocks at a time, one in each lane, so that no sum runs across lanes. One core: the search 0.95 G
weights/s, rounding 6; with packing and the rest of the quantiser 0.69, where torch, an operation at a time, reached
0.085. Compiling takes a second, in each process: a cache on the disk would be one more thing that can be full,
read-only or stale.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gemma_export.precision.block_format import SMALLEST_SCALE

__all__ = ["round_blocks", "search_blocks"]

# blocks that are searched at a time: 32 KiB of blocks of 128
_GROUP = 64
_SMALLEST = np.float32(SMALLEST_SCALE)
# float32 numbers around it are whole: adding and subtracting it rounds to the nearest, ties to even
_WHOLE = np.float32(12582912.0)
# further than any code, near enough for that
_FAR = np.float32(1024.0)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)

Floats = npt.NDArray[np.float32]


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
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
        weights, found = blocks[block], codes[block]
        for index in range(len(weights)):
            value = weights[index] * inverse
            value = _FAR if value > _FAR else value
            value = -_FAR if value < -_FAR else value
            value = (value + _WHOLE) - _WHOLE + zero_point
            value = _ZERO if value < _ZERO else value
            value = top if value > top else value
            found[index] = np.int32(value)


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _code(weight: np.float32, reciprocal: np.float32, least: np.float32, most: np.float32) -> np.float32:
    """The nearest whole number of scales, within a range."""
    code = (weight * reciprocal + _WHOLE) - _WHOLE
    code = least if code < least else code
    return most if code > most else code


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def search_blocks(
    blocks: Floats,
    importance: Floats,
    factors: Floats,
    middle: np.float32,
    top: np.float32,
    symmetric: bool,
    scales: Floats,
    zero_points: Floats,
) -> None:
    """For each block the scale and zero point, of some candidates, whose refitted codes explain most of it.

    Args:
        blocks: [n, block size].
        importance: [block size], of each weight's squared error.
        factors: of the candidates, on the block's own range.
        middle, top: codes of zero, where it is symmetric, and of the largest number.
        symmetric: without zero points.
        scales, zero_points: [n], written.
    """
    count, size = blocks.shape
    group = np.zeros((size, _GROUP), np.float32)
    low, high = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    scale, inverse = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    zero_point, explained = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    # of codes less their zero point
    lowest, highest = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    fit, norm = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    best_scale, best_zero_point = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    for first in range(0, count, _GROUP):
        filled = min(_GROUP, count - first)
        for start in range(0, filled, 8):
            for index in range(size):
                for lane in range(start, start + 8):
                    # lanes past the end repeat the last block
                    group[index, lane] = blocks[min(first + lane, count - 1), index]
        low[:] = _ZERO
        high[:] = _ZERO
        for index in range(0, size, 2):
            first_row, second_row = group[index], group[index + 1]
            for lane in range(_GROUP):
                least, most = min(first_row[lane], second_row[lane]), max(first_row[lane], second_row[lane])
                low[lane] = least if least < low[lane] else low[lane]
                high[lane] = most if most > high[lane] else high[lane]
        for candidate in range(len(factors)):
            factor = factors[candidate]
            for lane in range(_GROUP):
                zero = middle
                if symmetric:
                    extreme = high[lane] if high[lane] >= -low[lane] else low[lane]
                    width = extreme * (factor / -middle)
                else:
                    # divided before the subtraction, which could overflow
                    width = high[lane] * (factor / top) - low[lane] * (factor / top)
                reciprocal = _ONE / width
                reciprocal = _ZERO if abs(width) < _SMALLEST else reciprocal
                if not symmetric:
                    zero = (low[lane] * -factor * reciprocal + _WHOLE) - _WHOLE
                    zero = _ZERO if zero < _ZERO else zero
                    zero = top if zero > top else zero
                scale[lane], inverse[lane], zero_point[lane] = width, reciprocal, zero
                lowest[lane], highest[lane] = -zero, top - zero
                fit[lane] = norm[lane] = _ZERO
            for index in range(0, size, 2):
                first_row, second_row = group[index], group[index + 1]
                first_count, second_count = importance[index], importance[index + 1]
                for lane in range(_GROUP):
                    code = _code(first_row[lane], inverse[lane], lowest[lane], highest[lane])
                    later = _code(second_row[lane], inverse[lane], lowest[lane], highest[lane])
                    counted, later_counted = code * first_count, later * second_count
                    fit[lane] = fit[lane] + counted * first_row[lane] + later_counted * second_row[lane]
                    norm[lane] = norm[lane] + counted * code + later_counted * later
            for lane in range(_GROUP):
                refitted = fit[lane] / norm[lane]
                refitted = refitted if norm[lane] > _ZERO else scale[lane]
                # what the codes explain of the block: the larger, the smaller the error
                share = refitted * fit[lane]
                better = candidate == 0 or share > explained[lane]
                explained[lane] = share if better else explained[lane]
                best_scale[lane] = refitted if better else best_scale[lane]
                best_zero_point[lane] = zero_point[lane] if better else best_zero_point[lane]
        for lane in range(filled):
            scales[first + lane], zero_points[first + lane] = best_scale[lane], best_zero_point[lane]
