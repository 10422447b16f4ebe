"""The lazy quantised weights of a precision with a scheme: what a target's quantising passes ask for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.precision import Precision
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.row_format import RowFormat
from gemma_export.precision.row_weight import RowWeight
from gemma_export.precision.transposed_weight import TransposedWeight
from gemma_export.weights import Weight

__all__ = ["block_quantiser", "row_quantiser"]

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def block_quantiser(precision: Precision) -> Callable[[str, Weight], BlockWeight | TransposedWeight | None]:
    """(initializer, its float32 expression) -> the matrix in blocks, or None where the scheme has it otherwise.

    Nothing is read: a matrix is quantised while it is written.
    """
    scheme = precision.scheme
    assert scheme is not None
    scale_dtype = _TORCH[precision.activation_dtype]

    def quantise(name: str, weight: Weight) -> BlockWeight | TransposedWeight | None:
        layout = scheme.format_of(name, weight.shape)
        if not isinstance(layout, BlockFormat):
            return None
        rows = QUANTISERS[scheme.quantiser_of(name)].prepare(name, layout, scale_dtype)
        matrix = BlockWeight(weight, name, layout, scale_dtype, rows)
        return TransposedWeight(matrix, scale_dtype) if layout.transposed else matrix

    return quantise


def row_quantiser(precision: Precision) -> Callable[[str, Weight], RowWeight | None]:
    """The same for matrices with one scale per row, for products of 8-bit activations."""
    scheme = precision.scheme
    assert scheme is not None

    def quantise(name: str, weight: Weight) -> RowWeight | None:
        return RowWeight(weight, name) if isinstance(scheme.format_of(name, weight.shape), RowFormat) else None

    return quantise
