"""The lazy quantised weights of a precision with a scheme: what a target's quantising passes ask for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.precision import Precision
from gemma_export.precision.quantised_weight import QuantisedWeight
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.row_format import RowFormat
from gemma_export.precision.row_weight import RowWeight
from gemma_export.precision.scheme import CHECKPOINT
from gemma_export.precision.stored_blocks import StoredBlocks
from gemma_export.precision.transposed_weight import TransposedWeight
from gemma_export.weights import Weight

__all__ = ["block_quantiser", "row_quantiser", "scale_dtype_of"]

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def scale_dtype_of(precision: Precision) -> torch.dtype:
    """Scales have the activations' type."""
    return _TORCH[precision.activation_dtype]


def block_quantiser(
    precision: Precision, calibrated: Callable[[str], BlockWeight | None] = lambda name: None
) -> Callable[[str, Weight], BlockWeight | TransposedWeight | None]:
    """(initializer, its float32 expression) -> the matrix in blocks, or None where the scheme has it otherwise.

    Nothing is read: a matrix is quantised while it is written, unless calibration has done it.

    Args:
        precision: with a scheme.
        calibrated: initializer -> its matrix as calibration quantised it, or None.
    """
    scheme = precision.scheme
    assert scheme is not None
    scale_dtype = scale_dtype_of(precision)

    def quantise(name: str, weight: Weight) -> BlockWeight | TransposedWeight | None:
        layout = scheme.format_of(name, weight.shape)
        if not isinstance(layout, BlockFormat):
            return None
        matrix = calibrated(name)
        if matrix is None:
            matrix = _own(name, weight, layout, scheme.quantiser_of(name), scale_dtype)
        return TransposedWeight(matrix) if layout.transposed else matrix

    return quantise


def row_quantiser(precision: Precision) -> Callable[[str, Weight], RowWeight | None]:
    """The same for matrices with one scale per row, for products of 8-bit activations."""
    scheme = precision.scheme
    assert scheme is not None

    def quantise(name: str, weight: Weight) -> RowWeight | None:
        return RowWeight(weight, name) if isinstance(scheme.format_of(name, weight.shape), RowFormat) else None

    return quantise


def _own(name: str, weight: Weight, layout: BlockFormat, quantiser: str, scale_dtype: torch.dtype) -> BlockWeight:
    """A matrix that is made while it is written, of the checkpoint's integers or of its numbers."""
    if quantiser == CHECKPOINT:
        return StoredBlocks(weight, name, layout, scale_dtype)
    rows = QUANTISERS[quantiser].prepare(name, layout, scale_dtype)
    return QuantisedWeight(weight, name, layout, scale_dtype, rows)
