"""The lazy quantised weights of a precision with a scheme: what a target's quantising pass asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.precision import Precision
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.scheme import CHECKPOINT
from gemma_export.precision.stored_blocks import StoredBlocks
from gemma_export.precision.transposed_weight import TransposedWeight
from gemma_export.weights import Weight

__all__ = ["block_quantiser"]

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def block_quantiser(precision: Precision) -> Callable[[str, Weight], BlockWeight | TransposedWeight | None]:
    """(initializer, its float32 expression) -> the quantised matrix, or None where the scheme leaves it as it is.

    Nothing is read: a matrix is quantised while it is written.
    """
    scheme = precision.scheme
    assert scheme is not None
    scale_dtype = _TORCH[precision.activation_dtype]

    def quantise(name: str, weight: Weight) -> BlockWeight | TransposedWeight | None:
        layout = scheme.format_of(name, weight.shape)
        if layout is None:
            return None
        quantiser = scheme.quantiser_of(name)
        if quantiser == CHECKPOINT:
            matrix: BlockWeight = StoredBlocks(weight, name, layout, scale_dtype)
        else:
            rows = QUANTISERS[quantiser].prepare(name, layout, scale_dtype)
            matrix = BlockWeight(weight, name, layout, scale_dtype, rows)
        return TransposedWeight(matrix, scale_dtype) if layout.transposed else matrix

    return quantise
