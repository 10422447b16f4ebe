"""float32: the graph as it is lowered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gemma_export.precision.precision import Precision

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FP32"]


def _apply(model: ir.Model) -> None:
    """Graphs are float32 until a precision changes them; only the weights' casts move to the leaves."""
    from gemma_export.precision.floating import convert_floats

    convert_floats(model, "float32")


FP32 = Precision(
    name="fp32",
    suffix="",
    activation_dtype="float32",
    weight_dtype="float32",
    stored_nbytes=lambda shape: 4 * math.prod(shape),
    apply=_apply,
)
