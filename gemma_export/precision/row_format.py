"""How a matrix for 8-bit products is laid out: shapes and bytes of its tensors. Torch-free, so that plans can ask.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (MatMulIntegerToFloat).
"""

from __future__ import annotations

import dataclasses
import math

__all__ = ["RowFormat"]

_SCALE_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFormat:
    """int8 codes from -127 to 127 and one float32 scale per row (output feature); a weight is code * scale.

    Stored transposed, [columns, rows]: the integer kernel has no option for the other layout.
    """

    bits: int = 8
    transposed: bool = True

    @staticmethod
    def data_shape(shape: tuple[int, ...]) -> tuple[int, int]:
        """int8 [columns, rows] of a matrix [rows, columns]."""
        return shape[1], shape[0]

    def stored(self, name: str, shape: tuple[int, ...], scale_bytes: int) -> tuple[tuple[str, int], ...]:
        """Name and size in bytes of each tensor that a matrix becomes, in the order of the data file."""
        assert scale_bytes == _SCALE_BYTES, "the kernel's scales are float32"
        return ((f"{name}.data", math.prod(shape)), (f"{name}.scales", scale_bytes * shape[0]))
