"""The compiled search for a block's scale and zero point.

float32 throughout, each step rounded once, nothing reordered: every machine gets the same bits. A block waits for its
range, its scale, its sums and their quotient, one after the other: the search's candidates go through it together, side
by side in all of them. Without fused multiply-add (x86 before 2013) it takes 17 to 39 times as long.
"""

from __future__ import annotations

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

__all__ = ["CANDIDATES", "LANES", "search_blocks"]

# ranges that the search tries for each block, and weights that it takes at a time; `_sums` and `_best` are for these
CANDIDATES, LANES = 4, 8

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
    for block in range(len(blocks)):
        found = _best_candidate(blocks[block], importance, factors, middle, top, symmetric)
        scales[block], zero_points[block] = found


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _best_candidate(
    context: Any, weights: Any, importance: Any, factors: Any, middle: Any, top: Any, symmetric: Any
) -> Any:
    """(scale, zero point) of one block; see `search_blocks`."""
    arrays = [kind for kind in (weights, importance, factors) if kind != types.none]
    if any(kind.layout != "C" or kind.dtype != types.float32 for kind in arrays):
        raise numba.TypingError("expected contiguous arrays of float32")
    signature = types.UniTuple(types.float32, 2)(weights, importance, factors, middle, top, symmetric)

    def instructions(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        block = _Vectors(context, builder, kinds[0], arguments[0], LANES)
        counts = None if kinds[1] == types.none else _Vectors(context, builder, kinds[1], arguments[1], LANES)
        factor = _Vectors(context, builder, kinds[2], arguments[2], CANDIDATES)[context.get_constant(types.intp, 0)]
        middle, top = (Lanes.spread(builder, number, CANDIDATES) for number in arguments[3:5])
        scale, reciprocal, zero_point = _candidates(block, factor, middle, top, arguments[5])
        fit, norm = _explained(block, counts, reciprocal, zero_point, top)
        return context.make_tuple(builder, signature.return_type, _best(fit, norm, scale, zero_point))

    return signature, instructions


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


def _candidates(
    block: _Vectors, factor: Lanes, middle: Lanes, top: Lanes, symmetric: Any
) -> tuple[Lanes, Lanes, Lanes]:
    """Scales, their reciprocals and zero points of a factor times the block's range; each [CANDIDATES]."""
    builder = block.builder
    low, high = _Sum(builder, LANES), _Sum(builder, LANES)
    with block.loop() as loop:
        weights = block[loop.index]
        low.set(low.get().lesser(weights))
        high.set(high.get().greater(weights))
    least = Lanes.spread(builder, low.get().folded(Lanes.lesser), CANDIDATES)
    most = Lanes.spread(builder, high.get().folded(Lanes.greater), CANDIDATES)
    zero, one, whole, smallest = (
        Lanes.constant(builder, number, CANDIDATES) for number in (0, 1, WHOLE, SMALLEST_SCALE)
    )
    # without zero points the number of largest magnitude gets the code that has no opposite
    extreme = least.where(most < -least, most)
    # divided before the subtraction, which could overflow
    share = factor / top
    scale = (extreme * (factor / -middle)).where(symmetric, most * share - least * share)
    reciprocal = zero.where(abs(scale) < smallest, one / scale)
    nearest = (least * -factor * reciprocal + whole) - whole
    return scale, reciprocal, middle.where(symmetric, nearest.greater(zero).lesser(top))


def _explained(
    block: _Vectors, counts: _Vectors | None, reciprocal: Lanes, zero_point: Lanes, top: Lanes
) -> tuple[Lanes, Lanes]:
    """<codes, weights> and <codes, codes> of codes less their zero point; each [CANDIDATES]."""
    builder, candidates = block.builder, range(CANDIDATES)
    whole = Lanes.constant(builder, WHOLE, CANDIDATES)
    # of whole numbers with WHOLE added, which rounds a product on its way
    inverse, least, most = (
        [lanes.take([one] * LANES) for one in candidates]
        for lanes in (reciprocal, whole - zero_point, whole + (top - zero_point))
    )
    whole = Lanes.constant(builder, WHOLE, LANES)
    fits, norms = ([_Sum(builder, LANES) for _ in candidates] for _ in range(2))
    with block.loop() as loop:
        weights = block[loop.index]
        for one in candidates:
            code = weights.times_plus(inverse[one], whole).greater(least[one]).lesser(most[one]) - whole
            counted = code if counts is None else code * counts[loop.index]
            fits[one].set(counted.times_plus(weights, fits[one].get()))
            norms[one].set(counted.times_plus(code, norms[one].get()))
    return _sums([fit.get() for fit in fits]), _sums([norm.get() for norm in norms])


def _sums(four: list[Lanes]) -> Lanes:
    """The sum of each of four, of eight lanes, side by side."""
    first, second, third, fourth = (lanes.take(range(4)) + lanes.take(range(4, 8)) for lanes in four)
    pairs = first.take((0, 1, 4, 5), second) + first.take((2, 3, 6, 7), second)
    others = third.take((0, 1, 4, 5), fourth) + third.take((2, 3, 6, 7), fourth)
    return pairs.take((0, 2, 4, 6), others) + pairs.take((1, 3, 5, 7), others)


def _best(fit: Lanes, norm: Lanes, scale: Lanes, zero_point: Lanes) -> list[Any]:
    """Scales refitted to what their codes explain; the one that explains most, and its zero point."""
    builder = fit.builder
    zero, less, none = (Lanes.constant(builder, number, CANDIDATES) for number in (0, -1, np.nan))
    refitted = (fit / norm).where(zero < norm, scale)
    # what the codes explain of the block: the larger, the smaller the error
    explained = refitted * fit
    is_number = less < explained
    found = [explained.where(is_number, less), refitted.where(is_number, none), zero_point.where(is_number, zero)]
    for count in (4, 2):
        pairs = [(lanes.take(range(0, count, 2)), lanes.take(range(1, count, 2))) for lanes in found]
        better = pairs[0][0] < pairs[0][1]
        found = [second.where(better, first) for first, second in pairs]
    return [lanes.first for lanes in found[1:]]
