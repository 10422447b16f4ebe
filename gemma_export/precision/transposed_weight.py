"""A block-quantised matrix as DequantizeLinear reads it: elements [columns, rows], blocks along the first dimension."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import torch

from gemma_export.precision.block_codes import pack, unpack
from gemma_export.precision.block_weight import BlockPart, BlockWeight, onnx_type, write_bytes
from gemma_export.weights import Writable, one_thread

__all__ = ["TransposedWeight"]

# bytes of the packed matrix that are turned at a time: a MiB and its copies stay near the caches
_STRIPE_BYTES = 1 << 20


class TransposedWeight:
    """The parts of one quantised matrix, transposed; the same codes and scales as in `BlockWeight`.

    Codes without zero points become signed (code - middle), so that DequantizeLinear needs none. `table` is the data
    as bytes, two rows of the matrix in each where codes have 4 bits: Gather has no 4-bit types. What a look-up reads
    are tensors of their own over the same bytes: onnxruntime only folds DequantizeLinear into the product whose
    initializers nobody else reads.

    Turning takes the whole matrix: its codes are in memory, packed, while they are written.

    Args:
        blocks: the quantised matrix; its layout is transposed.
    """

    def __init__(self, blocks: BlockWeight) -> None:
        layout = blocks.layout
        self.name, self.bits, self.block_size = blocks.name, layout.bits, layout.block_size
        self.rows, self.columns, self.symmetric = blocks.rows, blocks.columns, layout.symmetric
        self.order = blocks.order
        self.blocks, self._layout = blocks, layout
        self._kept: dict[str, torch.Tensor] = {}
        signed = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
        unsigned = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
        element = (signed if layout.symmetric else unsigned)[layout.bits]
        levels = (layout.blocks(self.columns), self.rows)
        self.data = BlockPart(self, "data", (self.columns, self.rows), element)
        self.scales = BlockPart(self, "scales", levels, onnx_type(blocks.scale_dtype))
        self.zero_points = None if layout.symmetric else BlockPart(self, "zero_points", levels, element)
        self.table = self._as_bytes(self.data, element)
        self.table_scales = BlockPart(self, "scales", levels, self.scales.dtype, self.scales.weight)
        self.table_zero_points = None if self.zero_points is None else self._as_bytes(self.zero_points, element)

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part, little-endian."""
        if part in self._kept:
            write_bytes(self._kept.pop(part), file)
            return
        with one_thread():
            packed, self._kept = self._quantised()
            if part == "data":
                for stripe in self._stripes(packed):
                    write_bytes(stripe, file)
            else:
                write_bytes(self._kept.pop(part), file)

    def dequantised(self) -> Iterator[torch.Tensor]:
        """Rows [n, columns] in order, in float32, as a kernel multiplies with them."""
        return self.blocks.dequantised()

    def _as_bytes(self, part: BlockPart, element: ir.DataType) -> BlockPart:
        shape = tuple(part.shape.numpy())
        if self.bits == 8:
            return BlockPart(self, part.part, shape, element, part.weight)
        return BlockPart(self, part.part, (shape[0], shape[1] // 2), ir.DataType.UINT8, part.weight)

    def _quantised(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """uint8 codes [rows, bytes], packed along the columns; scales and zero points transposed."""
        _, blocks, nbytes = self._layout.data_shape((self.rows, self.columns))
        packed = torch.empty(self.rows, blocks * nbytes, dtype=torch.uint8)
        scales, zero_points, row = [], [], 0
        for codes in self.blocks.codes():
            packed[row : row + len(codes.data)] = codes.data.flatten(1)
            row += len(codes.data)
            scales.append(codes.scales)
            if codes.zero_points is not None:
                zero_points.append(codes.zero_points)
        levels = {"scales": torch.cat(scales).t().contiguous()}
        if zero_points:
            unpacked = unpack(torch.cat(zero_points), self.bits)[:, :blocks]
            levels["zero_points"] = pack(unpacked.t().reshape(1, -1), self.bits)[0]
        return packed, levels

    def _stripes(self, packed: torch.Tensor) -> Iterator[torch.Tensor]:
        """The elements [columns, rows] in order, some columns at a time; an even number, so that bytes are whole."""
        step = max(1, _STRIPE_BYTES // self.rows)
        row_bytes = -(-self.columns * self.bits // 8)
        for start in range(0, row_bytes, step):
            codes = unpack(packed[:, start : start + step].contiguous(), self.bits)
            if self.symmetric:
                # the two's complement of code - middle
                codes = codes ^ self._layout.middle
            first = start * 8 // self.bits
            yield pack(codes.t()[: self.columns - first].reshape(1, -1), self.bits)

    def __repr__(self) -> str:
        return f"TransposedWeight({self.name}, {self._layout})"
