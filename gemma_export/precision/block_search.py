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
# blocks that go through together: what is done once for a block takes half the instructions, in vectors of both's
# candidates, and one waits while the other is counted
_PAIR = 2
_TOGETHER = _PAIR * CANDIDATES
_EACH = [*range(CANDIDATES)] * _PAIR

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
    for first in range(0, len(blocks), _PAIR):
        # an odd last one is its own neighbour
        second = min(first + 1, len(blocks) - 1)
        found = _best_candidates(blocks[first], blocks[second], importance, factors, middle, top, symmetric)
        scales[first], scales[second], zero_points[first], zero_points[second] = found


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _best_candidates(
    context: Any, first: Any, second: Any, importance: Any, factors: Any, middle: Any, top: Any, symmetric: Any
) -> Any:
    """Two scales and two zero points of two blocks of one size; see `search_blocks`."""
    _require_floats(*(kind for kind in (first, second, importance, factors) if kind != types.none))
    signature = types.UniTuple(types.float32, 2 * _PAIR)(first, second, importance, factors, middle, top, symmetric)

    def instructions(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        blocks = [_Vectors(context, builder, kinds[one], arguments[one], LANES) for one in range(_PAIR)]
        counts = None if kinds[2] == types.none else _Vectors(context, builder, kinds[2], arguments[2], LANES)
        factor = _Vectors(context, builder, kinds[3], arguments[3], CANDIDATES)[context.get_constant(types.intp, 0)]
        middle, top = (Lanes.spread(builder, number, _TOGETHER) for number in arguments[4:6])
        scale, reciprocal, zero_point = _candidates(blocks, factor.take(_EACH), middle, top, arguments[6])
        fit, norm = _explained(blocks, counts, reciprocal, zero_point, top)
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
    """Scales, their reciprocals and zero points of a factor times a block's range; each [_PAIR * CANDIDATES]."""
    builder = factor.builder
    least, most = (_both(builder, numbers) for numbers in zip(*map(_range, blocks), strict=True))
    zero, one, whole, smallest = (
        Lanes.constant(builder, number, _TOGETHER) for number in (0, 1, WHOLE, SMALLEST_SCALE)
    )
    # without zero points the number of largest magnitude gets the code that has no opposite
    extreme = least.where(most < -least, most)
    # divided before the subtraction, which could overflow
    share = factor / top
    scale = (extreme * (factor / -middle)).where(symmetric, most * share - least * share)
    reciprocal = zero.where(abs(scale) < smallest, one / scale)
    nearest = (least * -factor * reciprocal + whole) - whole
    return scale, reciprocal, middle.where(symmetric, nearest.greater(zero).lesser(top))


def _both(builder: Any, numbers: Sequence[Any]) -> Lanes:
    """A number of each block for all of its candidates."""
    first, second = (Lanes.spread(builder, number, CANDIDATES) for number in numbers)
    return first.take(range(_TOGETHER), second)


def _explained(
    blocks: list[_Vectors], counts: _Vectors | None, reciprocal: Lanes, zero_point: Lanes, top: Lanes
) -> tuple[Lanes, Lanes]:
    """<codes, weights> and <codes, codes> of codes less their zero point; each [_PAIR * CANDIDATES]."""
    whole = Lanes.constant(top.builder, WHOLE, _TOGETHER)
    # of whole numbers with WHOLE added, which rounds a product on its way
    least, most = whole - zero_point, whole + (top - zero_point)
    sums = [
        _explained_of(block, counts, [[lanes.take([one] * LANES) for lanes in (reciprocal, least, most)] for one in of])
        for block, of in zip(blocks, (range(CANDIDATES), range(CANDIDATES, _TOGETHER)), strict=True)
    ]
    fit, norm = (first.take(range(_TOGETHER), second) for first, second in zip(*sums, strict=True))
    return fit, norm


def _explained_of(block: _Vectors, counts: _Vectors | None, candidates: list[list[Lanes]]) -> list[Lanes]:
    """The same of one block; a candidate is its reciprocal, least and largest code; each [CANDIDATES]."""
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
    return [_sums([one.get() for one in sums]) for sums in (fits, norms)]


def _sums(four: list[Lanes]) -> Lanes:
    """The sum of each of four, of eight lanes, side by side."""
    first, second, third, fourth = (lanes.take(range(4)) + lanes.take(range(4, 8)) for lanes in four)
    pairs = first.take((0, 1, 4, 5), second) + first.take((2, 3, 6, 7), second)
    others = third.take((0, 1, 4, 5), fourth) + third.take((2, 3, 6, 7), fourth)
    return pairs.take((0, 2, 4, 6), others) + pairs.take((1, 3, 5, 7), others)


def _best(fit: Lanes, norm: Lanes, scale: Lanes, zero_point: Lanes) -> list[Any]:
    """Scales refitted to what their codes explain: each block's that explains most, and their zero points."""
    builder = fit.builder
    zero, less, none = (Lanes.constant(builder, number, _TOGETHER) for number in (0, -1, np.nan))
    refitted = (fit / norm).where(zero < norm, scale)
    # what the codes explain of the block: the larger, the smaller the error
    explained = refitted * fit
    is_number = less < explained
    found = [explained.where(is_number, less), refitted.where(is_number, none), zero_point.where(is_number, zero)]
    count = _TOGETHER
    while count > _PAIR:
        pairs = [(lanes.take(range(0, count, 2)), lanes.take(range(1, count, 2))) for lanes in found]
        better = pairs[0][0] < pairs[0][1]
        found = [second.where(better, first) for first, second in pairs]
        count //= 2
    return [number for lanes in found[1:] for number in lanes.numbers]
