"""Lazy weights whose rows or columns are multiplied by 2^exponent each, and gains of norms that are.

Whole exponents are exact, short of leaving float32's normal range; others round each number once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gemma_export.weights import Shift, Weight

__all__ = ["ScaledColumns", "ScaledGain", "ScaledRows", "gain_of"]


class _Scaled(Weight):
    """A weight and one exponent for each channel."""

    def __init__(self, weight: Weight, exponents: Sequence[float]) -> None:
        assert weight.dtype == torch.float32
        self.weight, self.exponents = weight, tuple(exponents)
        self.shape, self.dtype = weight.shape, weight.dtype

    def factors(self) -> torch.Tensor:
        """float32: 2^exponent, exactly where that is a float32 number."""
        exponents = torch.tensor(self.exponents, dtype=torch.float64)
        whole = exponents.floor()
        # exp2 of 0 is 1 everywhere; of other whole numbers it need not be exact
        return torch.ldexp(torch.exp2(exponents - whole), whole.int()).float()

    def __str__(self) -> str:
        return str(self.weight)


class ScaledRows(_Scaled):
    """Row i times 2^exponents[i]; of a vector, element i."""

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        factors = self.factors()
        assert len(factors) == self.shape[0], (self.shape, len(factors))
        row = 0
        for chunk in self.weight.chunks():
            own = factors[row : row + len(chunk)]
            yield chunk * own.view(-1, *[1] * (chunk.ndim - 1))
            row += len(chunk)


class ScaledColumns(_Scaled):
    """Column j of a matrix times 2^exponents[j]."""

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        factors = self.factors()
        assert self.shape[1:] == (len(factors),), (self.shape, len(factors))
        for chunk in self.weight.chunks():
            yield chunk * factors


class ScaledGain(_Scaled):
    """The parameter w of a norm whose gain 1 + w is multiplied: (1 + w) * 2^exponents - 1.

    That subtraction rounds. A lowered norm takes the gain itself, `gain_of`, which is spared it.
    """

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        for chunk in self.gain().chunks():
            yield chunk - 1.0

    def gain(self) -> Weight:
        """(1 + w) * 2^exponents."""
        return ScaledRows(Shift(self.weight, 1.0), self.exponents)


def gain_of(weight: Weight) -> Weight:
    """1 + w of a norm's parameter w."""
    return weight.gain() if isinstance(weight, ScaledGain) else Shift(weight, 1.0)
