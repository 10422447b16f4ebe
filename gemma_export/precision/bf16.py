"""bfloat16 weights, activations and cache: the checkpoints' own type, on CUDA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gemma_export.precision.precision import Precision

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["BF16"]


def _apply(model: ir.Model) -> None:
    """Casts every float tensor of the graph; norm gains 1 + w are added in float32 and rounded once."""
    from gemma_export.precision.floating import convert_floats

    convert_floats(model, "bfloat16")


BF16 = Precision(
    name="bf16",
    suffix="_bf16",
    activation_dtype="bfloat16",
    weight_dtype="bfloat16",
    stored_nbytes=lambda shape: 2 * math.prod(shape),
    apply=_apply,
)
