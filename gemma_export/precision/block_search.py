"""The compiled search for a block's scale and zero point.

float32 throughout, each step rounded once, nothing reordered: every machine gets the same bits. A block waits for its
range, its scale, its sums and their quotient, one after the other: the search's candidates go through it together, side
by side in all of them. Without fused multiply-add (x86 before 2013) it takes 17 to 39 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numba.extending
import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils

from gemma_export.precision.block_format import SMALLEST_SCALE
from gemma_export.precision.block_kernels import WHOLE, compiled
from gemma_export.precision.lanes import Lanes, vector

__all__ = ["CANDIDATES", "LANES", "block_range", "search_blocks"]

# ranges that the search tries for each block, and weights that it takes at a time; `_sums` and `_best` are for these
CANDIDATES, LANES = 4, 8
# Blocks that go through together: what is done once for a block takes half the vectors, which hold two blocks'
# candidates, and while one waits another is counted. In one run, blocks of 32 (128): one at a time 1.50 (0.75) ns a
# weight, two 1.22 (0.72), four 1.13 (0.66).
_BLOCKS = 4
_ALL = _BLOCKS * CANDIDATES

Floats = npt.NDArray[np.float32]


@compiled  # type: ignore[untyped-decorator]
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
        blocks: [n, block size], a multiple of LANES; contiguous.
        importance: [block size], of each weight's squared error; None where all count alike.
        factors: of the candidates, on the block's own range: [CANDIDATES].
        middle, top: codes of zero, where it is symmetric, and of the largest number.
        symmetric: without zero points.
        scales, zero_points: [n], written. A block that holds what is no number gets NaN and zero.
    """
    last = len(blocks) - 1
    for first in range(0, len(blocks), _BLOCKS):
        # those behind the end are the last one once more
        second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        four = blocks[first], blocks[second], blocks[third], blocks[fourth]
        found = _best_candidates(four, importance, factors, middle, top, symmetric)
        scales[first], scales[second], scales[third], scales[fourth] = found[:_BLOCKS]
        zero_points[first], zero_points[second], zero_points[third], zero_points[fourth] = found[_BLOCKS:]


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _best_candidates(
    context: Any, blocks: Any, importance: Any, factors: Any, middle: Any, top: Any, symmetric: Any
) -> Any:
    """The scales, then the zero points of some blocks of one size; see `search_blocks`."""
    _require_floats(*(kind for kind in (*blocks, importance, factors) if kind != types.none))
    signature = types.UniTuple(types.float32, 2 * _BLOCKS)(blocks, importance, factors, middle, top, symmetric)

    def instructions(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        found = [
            _Vectors(context, builder, kind, builder.extract_value(arguments[0], index), LANES)
            for index, kind in enumerate(kinds[0])
        ]
        counts = None if kinds[1] == types.none else _Vectors(context, builder, kinds[1], arguments[1], LANES)
        factor = _Vectors(context, builder, kinds[2], arguments[2], CANDIDATES)[context.get_constant(types.intp, 0)]
        middle, top = (Lanes.spread(builder, number, _ALL) for number in arguments[3:5])
        factor = factor.take([*range(CANDIDATES)] * _BLOCKS)
        scale, reciprocal, zero_point = _candidates(found, factor, middle, top, arguments[5])
        fit, norm = _explained(found, counts, reciprocal, zero_point, top)
        return context.make_tuple(builder, signature.return_type, _best(fit, norm, scale, zero_point))

    return signature, instructions


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def block_range(context: Any, weights: Any) -> Any:
    """(smallest, largest) number of one block, of a multiple of LANES, and zero; NaN twice for what is not finite."""
    _require_floats(weights)
    signature = types.UniTuple(types.float32, 2)(weights)

    def instructions(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = _Vectors(context, builder, signature.args[0], arguments[0], LANES)
        difference = _Sum(builder, LANES)
        with block.loop() as loop:
            weights = block[loop.index]
            difference.set(difference.get() + (weights - weights))
        # zero, or NaN
        none = difference.get().folded(Lanes.__add__)
        ends = [builder.fadd(end, none) for end in _range(block)]
        return context.make_tuple(builder, signature.return_type, ends)

    return signature, instructions


def _require_floats(*kinds: Any) -> None:
    if any(kind.layout != "C" or kind.dtype != types.float32 for kind in kinds):
        raise numba.TypingError("expected contiguous arrays of float32")


class _Vectors:
    """A contiguous array of float32 numbers, so many at a time, and a loop over them."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any, lanes: int) -> None:
        array = context.make_array(kind)(context, builder, value)
        size = builder.udiv(array.nitems, array.nitems.type(lanes))
        self.builder, self._size = builder, size
        self._memory = builder.bitcast(array.data, vector(lanes).as_pointer())

    def __getitem__(self, index: Any) -> Lanes:
        return Lanes.load(self.builder, self.builder.gep(self._memory, [index]))

    def loop(self) -> Any:
        """A block of instructions that runs for each `index` of it."""
        return cgutils.for_range(self.builder, self._size)


class _Sum:
    """A variable of a loop, which starts at zero."""

    def __init__(self, builder: Any, lanes: int) -> None:
        zero = Lanes.constant(builder, 0, lanes)
        self._builder, self._memory = builder, cgutils.alloca_once(builder, zero.value.type)
        self.set(zero)

    def get(self) -> Lanes:
        return Lanes(self._builder, self._builder.load(self._memory))

    def set(self, lanes: Lanes) -> None:
        self._builder.store(lanes.value, self._memory)


def _range(block: _Vectors) -> list[Any]:
    """The smallest and the largest number of a block and zero."""
    low, high = _Sum(block.builder, LANES), _Sum(block.builder, LANES)
    with block.loop() as loop:
        weights = block[loop.index]
        low.set(low.get().lesser(weights))
        high.set(high.get().greater(weights))
    return [low.get().folded(Lanes.lesser), high.get().folded(Lanes.greater)]


def _candidates(
    blocks: list[_Vectors], factor: Lanes, middle: Lanes, top: Lanes, symmetric: Any
) -> tuple[Lanes, Lanes, Lanes]:
    """Scales, their reciprocals and zero points of a factor times a block's range; each [_ALL]."""
    builder = factor.builder
    least, most = (
        _joined([Lanes.spread(builder, number, CANDIDATES) for number in numbers])
        for numbers in zip(*map(_range, blocks), strict=True)
    )
    zero, one, whole, smallest = (Lanes.constant(builder, number, _ALL) for number in (0, 1, WHOLE, SMALLEST_SCALE))
    # without zero points the number of largest magnitude gets the code that has no opposite
    extreme = least.where(most < -least, most)
    # divided before the subtraction, which could overflow
    share = factor / top
    scale = (extreme * (factor / -middle)).where(symmetric, most * share - least * share)
    reciprocal = zero.where(abs(scale) < smallest, one / scale)
    nearest = (least * -factor * reciprocal + whole) - whole
    return scale, reciprocal, middle.where(symmetric, nearest.greater(zero).lesser(top))


def _joined(parts: Sequence[Lanes]) -> Lanes:
    """Lanes behind one another, of a power of two of equal parts."""
    while len(parts) > 1:
        count = 2 * parts[0].count
        parts = [first.take(range(count), second) for first, second in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _explained(
    blocks: list[_Vectors], counts: _Vectors | None, reciprocal: Lanes, zero_point: Lanes, top: Lanes
) -> tuple[Lanes, Lanes]:
    """<codes, weights> and <codes, codes> of codes less their zero point; each [_ALL]."""
    whole = Lanes.constant(top.builder, WHOLE, _ALL)
    # of whole numbers with WHOLE added, which rounds a product on its way
    least, most = whole - zero_point, whole + (top - zero_point)
    candidates = [[lanes.take([one] * LANES) for lanes in (reciprocal, least, most)] for one in range(_ALL)]
    sums = [
        _explained_of(block, counts, candidates[CANDIDATES * index : CANDIDATES * (index + 1)])
        for index, block in enumerate(blocks)
    ]
    fit, norm = (
        _joined([lanes.take(part) for lanes in sums]) for part in (range(CANDIDATES), range(CANDIDATES, LANES))
    )
    return fit, norm


def _explained_of(block: _Vectors, counts: _Vectors | None, candidates: list[list[Lanes]]) -> Lanes:
    """Both of one block, whose candidates are reciprocals, least and largest codes: [2 * CANDIDATES]."""
    builder = block.builder
    whole = Lanes.constant(builder, WHOLE, LANES)
    fits, norms = ([_Sum(builder, LANES) for _ in candidates] for _ in range(2))
    with block.loop() as loop:
        weights = block[loop.index]
        for (reciprocal, least, most), fit, norm in zip(candidates, fits, norms, strict=True):
            code = weights.times_plus(reciprocal, whole).greater(least).lesser(most) - whole
            counted = code if counts is None else code * counts[loop.index]
            fit.set(counted.times_plus(weights, fit.get()))
            norm.set(counted.times_plus(code, norm.get()))
    return _sums([fit.get() for fit in fits], [norm.get() for norm in norms])


def _sums(fits: list[Lanes], norms: list[Lanes]) -> Lanes:
    """The sum of each of four and of four others, of eight lanes, side by side."""
    halves = [
        fit.take((*range(4), *range(8, 12)), norm) + fit.take((*range(4, 8), *range(12, 16)), norm)
        for fit, norm in zip(fits, norms, strict=True)
    ]
    first, second = (
        one.take((0, 1, 8, 9, 4, 5, 12, 13), other) + one.take((2, 3, 10, 11, 6, 7, 14, 15), other)
        for one, other in (halves[:2], halves[2:])
    )
    return first.take((0, 2, 8, 10, 4, 6, 12, 14), second) + first.take((1, 3, 9, 11, 5, 7, 13, 15), second)


def _best(fit: Lanes, norm: Lanes, scale: Lanes, zero_point: Lanes) -> list[Any]:
    """Scales refitted to what their codes explain: each block's that explains most, and their zero points."""
    builder = fit.builder
    zero, less, none = (Lanes.constant(builder, number, _ALL) for number in (0, -1, np.nan))
    refitted = (fit / norm).where(zero < norm, scale)
    # what the codes explain of the block: the larger, the smaller the error
    explained = refitted * fit
    is_number = less < explained
    found = [explained.where(is_number, less), refitted.where(is_number, none), zero_point.where(is_number, zero)]
    count = _ALL
    while count > _BLOCKS:
        pairs = [(lanes.take(range(0, count, 2)), lanes.take(range(1, count, 2))) for lanes in found]
        better = pairs[0][0] < pairs[0][1]
        found = [second.where(better, first) for first, second in pairs]
        count //= 2
    return [number for lanes in found[1:] for number in lanes.numbers]
