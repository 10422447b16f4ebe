"""float32 vectors in the loops that numba compiles: as many lanes on every machine, so the same sums and the same bits.

Left to itself LLVM adds in the order that was written, one number at a time, or in an order that depends on how wide a
machine's vectors are. These are LLVM's own vector instructions, which it makes of whatever vectors a machine has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

__all__ = ["Lanes"]

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(32)


class Lanes:
    """Some float32 numbers side by side, inside a function that is being compiled.

    What compares keeps the number on the left where one of the two is NaN.

    Args:
        builder: llvmlite's, at the place where the instructions go.
        value: of a vector type.
    """

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @classmethod
    def constant(cls, builder: Any, number: float | np.float32, count: int) -> Lanes:
        """The same number in all lanes, known while compiling."""
        return cls(builder, ir.Constant(vector(count), [float(number)] * count))

    @classmethod
    def spread(cls, builder: Any, number: Any, count: int) -> Lanes:
        """The same number in all lanes, known while running."""
        first = builder.insert_element(ir.Constant(vector(count), ir.Undefined), number, _INDEX(0))
        return cls(builder, first).take([0] * count)

    @classmethod
    def load(cls, builder: Any, pointer: Any) -> Lanes:
        """What a pointer to a vector points to, wherever in a cache line."""
        return cls(builder, builder.load(pointer, align=4))

    def __add__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fsub(self.value, other.value))

    def __mul__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fdiv(self.value, other.value))

    def __neg__(self) -> Lanes:
        return Lanes(self.builder, self.builder.fneg(self.value))

    def __abs__(self) -> Lanes:
        return self.greater(-self)

    def __lt__(self, other: Lanes) -> Any:
        """A condition for `where`."""
        return self.builder.fcmp_ordered("<", self.value, other.value)

    def times_plus(self, factor: Lanes, term: Lanes) -> Lanes:
        """self * factor + term, rounded once."""
        kind = self.value.type
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{kind.count}f32"
        )
        return Lanes(self.builder, self.builder.call(function, [self.value, factor.value, term.value]))

    def lesser(self, other: Lanes) -> Lanes:
        """The smaller number of each lane."""
        return other.where(other < self, self)

    def greater(self, other: Lanes) -> Lanes:
        """The larger number of each lane."""
        return other.where(self < other, self)

    def where(self, condition: Any, other: Lanes) -> Lanes:
        """These numbers where a condition holds, of each lane or of all, else the other ones."""
        return Lanes(self.builder, self.builder.select(condition, self.value, other.value))

    def take(self, indices: Sequence[int], other: Lanes | None = None) -> Lanes:
        """The lanes of these indices; `other`'s are counted behind one's own."""
        second = self if other is None else other
        mask = ir.Constant(ir.VectorType(_INDEX, len(indices)), list(indices))
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, second.value, mask))

    def folded(self, join: Callable[[Lanes, Lanes], Lanes]) -> Any:
        """One number, made of two halves again and again."""
        lanes, count = self, self.count
        while count > 1:
            count //= 2
            lanes = join(lanes.take(range(count)), lanes.take(range(count, 2 * count)))
        return lanes.numbers[0]

    @property
    def count(self) -> int:
        """How many lanes there are."""
        return int(self.value.type.count)

    @property
    def numbers(self) -> list[Any]:
        """The number of each lane."""
        return [self.builder.extract_element(self.value, _INDEX(lane)) for lane in range(self.count)]


def vector(count: int) -> Any:
    """The type of so many float32 numbers."""
    return ir.VectorType(_FLOAT, count)
