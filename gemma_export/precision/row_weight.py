"""A matrix in int8 with one scale per row, transposed, as lazy tensors over one expression that is read once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_format import SMALLEST_SCALE
from gemma_export.precision.block_weight import BlockPart, write_bytes
from gemma_export.precision.row_format import RowFormat
from gemma_export.precision.row_pieces import converted_rows
from gemma_export.weights import Transpose, Weight, Writable, one_thread

__all__ = ["RowWeight", "quantise_rows"]

_TOP = 127
# Two neighbouring codes of one sign: 255 * 128 still fits int16. A hair below 128, so that rounding cannot pass it.
# https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/mlas/lib/x86_64/QgemmU8X8KernelAvx2.S
_PAIR = 127.99


def quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each row to a scale of its own, ties to even.

    The scale is the largest |value| / 127, or larger where two neighbours of one sign would add up to codes above 128:
    x86 without VNNI adds 255 * code of two neighbours in int16, which clips at 32,767.

    Args:
        rows: float32 [rows, columns].

    Returns:
        int8 codes from -127 to 127, and float32 scales [rows].
    """
    scales = torch.maximum(rows.amax(1), rows.amin(1).neg()) / _TOP
    even = rows.shape[1] // 2 * 2
    if even:
        # neighbours of different signs add up to less than the larger of them: no need to tell them apart
        sums = rows[:, 0:even:2] + rows[:, 1:even:2]
        scales = torch.maximum(scales, torch.maximum(sums.amax(1), sums.amin(1).neg()) / _PAIR)
    scales = torch.where(scales < SMALLEST_SCALE, 0.0, scales)
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    # at most 127 and a rounding error before it is rounded: nothing to clamp
    codes = (rows * inverse[:, None]).round_()
    if not scales.isfinite().all():
        return codes, scales
    # numpy narrows several times faster than torch
    return torch.from_numpy(codes.numpy().astype(np.int8)), scales


class RowWeight:
    """The two parts of one matrix, `data` int8 [columns, rows] and `scales` float32 [rows].

    Writing the data quantises the matrix and keeps the scales until they are asked for. The kernel wants the
    transposed matrix, so its codes are held whole: 75 MB for the largest projection of a 7B.

    Args:
        weight: float32 [rows, columns], finite.
        name: of the stored tensor.
    """

    def __init__(self, weight: Weight, name: str) -> None:
        self.name = name
        self.rows, self.columns = weight.shape
        self._codes = _Codes(weight, name)
        self.data = BlockPart(self, "data", RowFormat.data_shape(weight.shape), ir.DataType.INT8)
        self.scales = BlockPart(self, "scales", (self.rows,), ir.DataType.FLOAT)

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part, little-endian."""
        if part == "scales":
            write_bytes(self._codes.take_scales(), file)
            return
        with one_thread():
            for strip in Transpose(self._codes).chunks():
                write_bytes(strip, file)

    def dequantised(self) -> Iterator[torch.Tensor]:
        """Rows [n, columns] in order, in float32, as a kernel multiplies with them."""
        for codes, scales in self._codes.quantised():
            yield codes * scales[:, None]

    def __repr__(self) -> str:
        return f"RowWeight({self.name}, [{self.rows}, {self.columns}])"


class _Codes(Weight):
    """The codes, int8 [rows, columns]; evaluating them keeps the scales."""

    def __init__(self, weight: Weight, name: str) -> None:
        self.weight, self.name = weight, name
        self.shape, self.dtype = weight.shape, torch.int8
        self._scales: torch.Tensor | None = None

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        kept = []
        for codes, scales in self.quantised():
            kept.append(scales)
            yield codes
        self._scales = torch.cat(kept)

    def quantised(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Codes and scales of some rows, in order."""
        row = 0
        for codes, scales in converted_rows(self.weight, quantise_rows):
            if not scales.isfinite().all():
                raise NonFiniteError(
                    f"tensor {self.name}, row {row + int((~scales.isfinite()).nonzero()[0])}: its scale is not finite",
                    hint="The file is damaged or its training diverged: fetch it again, or use an earlier one.",
                )
            yield codes, scales
            row += len(codes)

    def take_scales(self) -> torch.Tensor:
        """float32 [rows]: those that are kept, once, or computed alone."""
        kept, self._scales = self._scales, None
        if kept is not None:
            return kept
        with one_thread():
            return torch.cat([scales for _, scales in self.quantised()])
