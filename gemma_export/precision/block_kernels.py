"""Compiled loops over blocks: the search for scales, rounding and packing.

float32 throughout, each step rounded once, nothing contracted or reordered: every machine gets the same bits. The
search takes many blocks at a time, four lanes for each, so that no sum runs across more than those: laid out four
weights at a time, a piece of blocks is copied three times as fast as one weight at a time. Compiling takes one to four
seconds, in each process: a cache on the disk would be one more thing that can be full, read-only or stale.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gemma_export.precision.block_format import SMALLEST_SCALE

__all__ = ["round_blocks", "round_to_nibbles", "search_blocks"]

# weights that are searched at a time, 16 KiB of them, and lanes that a block has
_GROUP, _LANES = 4096, 4
_SMALLEST = np.float32(SMALLEST_SCALE)
# float32 numbers around it are whole: adding and subtracting it rounds to the nearest, ties to even
_WHOLE = np.float32(12582912.0)
_ZERO, _ONE, _SIXTEEN = np.float32(0.0), np.float32(1.0), np.float32(16.0)
_NOT_A_NUMBER = np.float32(np.nan)

Floats = npt.NDArray[np.float32]

# called from Python, and from one another alone: what else numba would compile for callers costs a quarter of the time
_compiled = numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)
_part = numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _code(weight: np.float32, reciprocal: np.float32, least: np.float32, most: np.float32) -> np.float32:
    """The nearest whole number of scales, within a range of whole numbers."""
    code = weight * reciprocal
    code = least if code < least else code
    code = most if code > most else code
    return (code + _WHOLE) - _WHOLE


@_compiled  # type: ignore[untyped-decorator]
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


@_compiled  # type: ignore[untyped-decorator]
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


def search_blocks(
    blocks: Floats,
    importance: Floats | None,
    factors: Floats,
    middle: np.float32,
    top: np.float32,
    symmetric: bool,
    scales: Floats,
    zero_points: Floats,
) -> None:
    """For each block the scale and zero point, of some candidates, whose refitted codes explain most of it.

    Args:
        blocks: [n, block size], a multiple of 16.
        importance: [block size], of each weight's squared error; None where all count alike.
        factors: of the candidates, on the block's own range.
        middle, top: codes of zero, where it is symmetric, and of the largest number.
        symmetric: without zero points.
        scales, zero_points: [n], written.
    """
    rows, together = blocks.shape[1] // _LANES, max(1, _GROUP // blocks.shape[1])
    group = np.empty((rows, together * _LANES), np.float32)
    counts = None
    if importance is not None:
        counts = np.ascontiguousarray(np.tile(importance.reshape(rows, _LANES), together))
    # four float32 numbers are moved at a time
    _search(
        blocks.view(np.complex128),
        group.view(np.complex128),
        group,
        counts,
        factors,
        (middle, top),
        symmetric,
        np.empty((5, together * _LANES), np.float32),
        np.empty((10, together), np.float32),
        scales,
        zero_points,
    )


@_compiled  # type: ignore[untyped-decorator]
def _search(
    sources: npt.NDArray[np.complex128],
    targets: npt.NDArray[np.complex128],
    group: Floats,
    counts: Floats | None,
    factors: Floats,
    codes: tuple[np.float32, np.float32],
    symmetric: bool,
    of_lanes: Floats,
    of_blocks: Floats,
    scales: Floats,
    zero_points: Floats,
) -> None:
    """`search_blocks` with its memory: `of_lanes` [5, lanes] and `of_blocks` [10, blocks of a group]."""
    # least and greatest number, then codes less their zero point and what they explain
    low, high, inverse, fit, norm = of_lanes[0], of_lanes[1], of_lanes[2], of_lanes[3], of_lanes[4]
    least, most, scale, reciprocal, zero_point = of_blocks[0], of_blocks[1], of_blocks[2], of_blocks[3], of_blocks[4]
    fitted, normed, explained, best_scale, best_zero_point = (
        of_blocks[5],
        of_blocks[6],
        of_blocks[7],
        of_blocks[8],
        of_blocks[9],
    )
    middle, top = codes
    count, together = len(sources), len(scale)
    for first in range(0, count, together):
        for block in range(together):
            # blocks past the end repeat the last
            source = sources[min(first + block, count - 1)]
            for index in range(len(source)):
                targets[index, block] = source[index]
        _extremes(group, low, high, least, most)
        for block in range(together):
            # less than any share; where none is a number, neither is the scale, which is refused
            explained[block], best_scale[block], best_zero_point[block] = -_ONE, _NOT_A_NUMBER, _ZERO
        for candidate in range(len(factors)):
            factor = factors[candidate]
            if symmetric:
                _symmetric_range(least, most, factor / -middle, middle, scale, reciprocal, zero_point)
            else:
                _range(least, most, factor, top, scale, reciprocal, zero_point)
            for block in range(together):
                inverted, below, above = reciprocal[block], -zero_point[block], top - zero_point[block]
                for lane in range(block * _LANES, block * _LANES + _LANES):
                    inverse[lane], low[lane], high[lane] = inverted, below, above
            if counts is None:
                _explain(group, inverse, low, high, fit, norm)
            else:
                _explain_weighted(group, counts, inverse, low, high, fit, norm)
            _join(fit, fitted)
            _join(norm, normed)
            _keep_better(fitted, normed, scale, zero_point, explained, best_scale, best_zero_point)
        for block in range(min(together, count - first)):
            scales[first + block], zero_points[first + block] = best_scale[block], best_zero_point[block]


@_part  # type: ignore[untyped-decorator]
def _symmetric_range(
    least: Floats,
    most: Floats,
    share: np.float32,
    middle: np.float32,
    scale: Floats,
    reciprocal: Floats,
    zero_point: Floats,
) -> None:
    """Scales of a share of the number of largest magnitude, and their reciprocals; all [blocks]."""
    for block in range(len(scale)):
        width = (most[block] if most[block] >= -least[block] else least[block]) * share
        scale[block] = width
        reciprocal[block] = _ZERO if abs(width) < _SMALLEST else _ONE / width
        zero_point[block] = middle


@_part  # type: ignore[untyped-decorator]
def _range(
    least: Floats,
    most: Floats,
    factor: np.float32,
    top: np.float32,
    scale: Floats,
    reciprocal: Floats,
    zero_point: Floats,
) -> None:
    """Scales and zero points of a factor times the range, and the scales' reciprocals; all [blocks]."""
    # divided before the subtraction, which could overflow
    share = factor / top
    for block in range(len(scale)):
        width = most[block] * share - least[block] * share
        inverted = _ZERO if abs(width) < _SMALLEST else _ONE / width
        zero = (least[block] * -factor * inverted + _WHOLE) - _WHOLE
        zero = _ZERO if zero < _ZERO else zero
        zero_point[block] = top if zero > top else zero
        scale[block], reciprocal[block] = width, inverted


@_part  # type: ignore[untyped-decorator]
def _keep_better(
    fitted: Floats,
    normed: Floats,
    scale: Floats,
    zero_point: Floats,
    explained: Floats,
    best_scale: Floats,
    best_zero_point: Floats,
) -> None:
    """Refits the scales to what their codes explain, and keeps those that explain more; all [blocks]."""
    for block in range(len(scale)):
        refitted = fitted[block] / normed[block] if normed[block] > _ZERO else scale[block]
        # what the codes explain of the block: the larger, the smaller the error
        share = refitted * fitted[block]
        better = share > explained[block]
        explained[block] = share if better else explained[block]
        best_scale[block] = refitted if better else best_scale[block]
        best_zero_point[block] = zero_point[block] if better else best_zero_point[block]


@_part  # type: ignore[untyped-decorator]
def _extremes(group: Floats, low: Floats, high: Floats, least: Floats, most: Floats) -> None:
    """The least and the greatest number, or zero, of each lane of `group` [rows, lanes], then of each block."""
    for lane in range(len(low)):
        low[lane] = high[lane] = _ZERO
    for index in range(0, len(group), 2):
        row, second = group[index], group[index + 1]
        for lane in range(len(low)):
            weight, later = row[lane], second[lane]
            # no min and max: what they do with NaN does not vectorise
            below = weight if weight < low[lane] else low[lane]
            above = weight if weight > high[lane] else high[lane]
            low[lane] = later if later < below else below
            high[lane] = later if later > above else above
    for block in range(len(least)):
        below, above = _ZERO, _ZERO
        for lane in range(block * _LANES, block * _LANES + _LANES):
            below = low[lane] if low[lane] < below else below
            above = high[lane] if high[lane] > above else above
        least[block], most[block] = below, above


@_part  # type: ignore[untyped-decorator]
def _explain(group: Floats, inverse: Floats, lowest: Floats, highest: Floats, fit: Floats, norm: Floats) -> None:
    """<codes, weights> and <codes, codes> of each lane, written to `fit` and `norm`."""
    for lane in range(len(fit)):
        fit[lane] = norm[lane] = _ZERO
    for index in range(0, len(group), 4):
        row, second, third, fourth = group[index], group[index + 1], group[index + 2], group[index + 3]
        for lane in range(len(fit)):
            inverted, least, most = inverse[lane], lowest[lane], highest[lane]
            fitted, normed = fit[lane], norm[lane]
            for weight in (row[lane], second[lane], third[lane], fourth[lane]):
                code = _code(weight, inverted, least, most)
                fitted += code * weight
                normed += code * code
            fit[lane], norm[lane] = fitted, normed


@_part  # type: ignore[untyped-decorator]
def _explain_weighted(
    group: Floats, counts: Floats, inverse: Floats, lowest: Floats, highest: Floats, fit: Floats, norm: Floats
) -> None:
    """`_explain` with the importance of each weight, `counts` [rows, lanes]."""
    for lane in range(len(fit)):
        fit[lane] = norm[lane] = _ZERO
    for index in range(len(group)):
        row, importance = group[index], counts[index]
        for lane in range(len(fit)):
            code = _code(row[lane], inverse[lane], lowest[lane], highest[lane])
            counted = code * importance[lane]
            fit[lane] += counted * row[lane]
            norm[lane] += counted * code


@_part  # type: ignore[untyped-decorator]
def _join(lanes: Floats, blocks: Floats) -> None:
    """The sum of each block's four lanes."""
    for block in range(len(blocks)):
        lane = block * _LANES
        blocks[block] = (lanes[lane] + lanes[lane + 1]) + (lanes[lane + 2] + lanes[lane + 3])
