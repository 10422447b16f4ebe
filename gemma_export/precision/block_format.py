"""How a block-quantised matrix is laid out: shapes and bytes of its tensors. Torch-free, so that plans can ask.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (MatMulNBits, GatherBlockQuantized);
both read the same bytes: low nibble first, each row's last block and last zero-point byte padded. The transposed layout
is DequantizeLinear's: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
"""

from __future__ import annotations

import dataclasses
import math

__all__ = ["BITS", "BLOCK_SIZES", "SMALLEST_SCALE", "BlockFormat"]

# what MatMulNBits and GatherBlockQuantized both read from uint8 data; 2 bits are not offered: no quantiser here makes
# them worth having
BITS = (4, 8)
# the kernels take powers of two from 16; below 32 the scales outweigh what they buy, above 256 no kernel is faster
BLOCK_SIZES = (32, 64, 128, 256)
# Below the smallest normal float32 a reciprocal overflows: such scales count as zero (error under 1e-36).
SMALLEST_SCALE = 2.0**-126


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """Integer codes of `bits` bits with one scale, and unless symmetric one zero point, per `block_size` columns.

    A weight is (code - zero point) * scale; the zero point of a symmetric block is 2^(bits - 1).

    `transposed` only changes where the numbers lie: elements [columns, rows] in the element types of ONNX, without
    padding, nibbles of neighbouring rows sharing a byte; scales and zero points [blocks, rows].
    """

    bits: int
    block_size: int
    symmetric: bool
    transposed: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point where none is stored."""
        return 1 << (self.bits - 1)

    def blocks(self, columns: int) -> int:
        """Blocks of a row; the last is padded with zeros where the block size does not divide."""
        return -(-columns // self.block_size)

    def data_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """uint8 [rows, blocks, bytes of a block] of a matrix [rows, columns]."""
        return shape[0], self.blocks(shape[1]), self.block_size * self.bits // 8

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """[rows, blocks]."""
        return shape[0], self.blocks(shape[1])

    def zero_points_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """uint8 [rows, bytes]: packed like the data, each row to whole bytes."""
        return shape[0], -(-self.blocks(shape[1]) * self.bits // 8)

    def stored(self, name: str, shape: tuple[int, ...], scale_bytes: int) -> tuple[tuple[str, int], ...]:
        """Name and size in bytes of each tensor that a matrix becomes, in the order of the data file."""
        if self.transposed:
            return self._stored_transposed(name, shape, scale_bytes)
        parts = [
            (f"{name}.data", math.prod(self.data_shape(shape))),
            (f"{name}.scales", scale_bytes * math.prod(self.scales_shape(shape))),
        ]
        if not self.symmetric:
            parts.append((f"{name}.zero_points", math.prod(self.zero_points_shape(shape))))
        return tuple(parts)

    def _stored_transposed(self, name: str, shape: tuple[int, ...], scale_bytes: int) -> tuple[tuple[str, int], ...]:
        levels = math.prod(self.scales_shape(shape))
        parts = [
            (f"{name}.data", -(-math.prod(shape) * self.bits // 8)),
            (f"{name}.scales", scale_bytes * levels),
        ]
        if not self.symmetric:
            parts.append((f"{name}.zero_points", -(-levels * self.bits // 8)))
        return tuple(parts)
