"""float16 weights, activations and cache; norms and softmax keep their float32 inside the kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gemma_export.precision.precision import Precision

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FP16"]


def _apply(model: ir.Model) -> None:
    """Casts every float tensor of the graph; a weight beyond 65504 is an error while it streams."""
    from gemma_export.precision.floating import convert_floats

    convert_floats(model, "float16")


FP16 = Precision(
    name="fp16",
    suffix="_fp16",
    activation_dtype="float16",
    weight_dtype="float16",
    stored_nbytes=lambda shape: 2 * math.prod(shape),
    apply=_apply,
)
