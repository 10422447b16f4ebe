"""A block-quantised matrix as lazy tensors: data, scales and zero points of one pass over its rows."""

from __future__ import annotations

import abc
import io
from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gemma_export.precision.block_codes import BlockCodes, dequantise, unpack
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.scale_counts import ScaleCounts, count_scales
from gemma_export.weights import Weight, Writable, one_thread

__all__ = ["BlockPart", "BlockWeight", "DequantisedWeight", "onnx_type", "write_bytes"]

_ONNX = {
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


class BlockWeight(abc.ABC):
    """The parts of one quantised matrix; a subclass says where its codes come from.

    `data`, `scales` and `zero_points` are written behind one another: writing the first goes through the codes and
    keeps the other two (a few percent of them) until they are asked for. Any part asked for alone is made alone.

    Args:
        name: of the stored tensor.
        shape: [rows, columns].
        layout: bits, block size, symmetry.
        scale_dtype: of the scales: the activations' type.
    """

    def __init__(self, name: str, shape: tuple[int, ...], layout: BlockFormat, scale_dtype: torch.dtype) -> None:
        self.name, self.bits, self.block_size = name, layout.bits, layout.block_size
        self.rows, self.columns = shape
        self.layout, self.scale_dtype = layout, scale_dtype
        # int32 [columns]: the columns as they are stored, where that is not their own order
        self.order: npt.NDArray[np.int32] | None = None
        # of the last pass over the codes
        self.scale_counts = ScaleCounts()
        self._kept: dict[str, torch.Tensor] = {}
        data = layout.data_shape(shape)
        self.data = BlockPart(self, "data", data, ir.DataType.UINT8)
        # the same bytes as GatherBlockQuantized reads them
        self.table = BlockPart(self, "data", (data[0], data[1] * data[2]), ir.DataType.UINT8, self.data.weight)
        self.scales = BlockPart(self, "scales", layout.scales_shape(shape), onnx_type(scale_dtype))
        self.zero_points = (
            None
            if layout.symmetric
            else BlockPart(self, "zero_points", layout.zero_points_shape(shape), ir.DataType.UINT8)
        )

    def codes(self) -> Iterator[BlockCodes]:
        """The matrix in order, some rows at a time; once through, `scale_counts` tells of its scales."""
        counts = ScaleCounts()
        for codes in self._codes():
            counts += count_scales(codes.scales)
            yield codes
        self.scale_counts = counts

    @abc.abstractmethod
    def _codes(self) -> Iterator[BlockCodes]:
        """What `codes` goes through."""

    def dequantised(self) -> Iterator[torch.Tensor]:
        """Rows [n, columns] in order, in float32, as a kernel multiplies with them."""
        for codes in self.codes():
            yield dequantise(codes, self.layout)[:, : self.columns]

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part, little-endian."""
        if part in self._kept:
            write_bytes(self._kept.pop(part), file)
            return
        with one_thread():
            self._write_codes(part, file)

    def _write_codes(self, part: str, file: Writable) -> None:
        wanted: list[torch.Tensor] = []
        kept: dict[str, list[torch.Tensor]] = {"scales": [], "zero_points": []}
        for codes in self.codes():
            if part == "data":
                write_bytes(codes.data, file)
                kept["scales"].append(codes.scales)
                if codes.zero_points is not None:
                    kept["zero_points"].append(codes.zero_points)
            else:
                wanted.append(getattr(codes, part))
        for tensor in wanted:
            write_bytes(tensor, file)
        self._kept = {name: torch.cat(tensors) for name, tensors in kept.items() if tensors}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.layout})"


class DequantisedWeight(Weight):
    """A quantised matrix as the float32 matrix that its codes stand for."""

    def __init__(self, matrix: BlockWeight) -> None:
        self._matrix = matrix
        self.shape, self.dtype = (matrix.rows, matrix.columns), torch.float32

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        for rows in self._matrix.dequantised():
            yield rows.contiguous()

    def __str__(self) -> str:
        return self._matrix.name


class _Parts(Protocol):
    @property
    def name(self) -> str:
        """Of the matrix."""

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part."""


class BlockPart:
    """One stored tensor of a quantised matrix, as an initializer's value.

    Args:
        group: the matrix, which writes its parts by name; the writer keeps tensors of one `group` behind one another.
        part: "data", "scales" or "zero_points".
        shape: of the initializer.
        dtype: of the elements.
        weight: identity of the bytes; parts that share it share a range of the data file.
    """

    def __init__(
        self, group: _Parts, part: str, shape: tuple[int, ...], dtype: ir.DataType, weight: object | None = None
    ) -> None:
        self.group, self.part = group, part
        self.weight = object() if weight is None else weight
        self.name: str | None = None
        self.shape: ir.ShapeProtocol = ir.Shape(shape)
        self.dtype = dtype
        self.size = int(np.prod(shape, dtype=np.int64))
        self.nbytes = -(-self.size * dtype.bitwidth // 8)
        self.raw: Any = group
        self.doc_string: str | None = None
        self.metadata_props: MutableMapping[str, str] = {}
        self.meta: MutableMapping[str, Any] = {}

    def tofile(self, file: Writable) -> None:
        """Streams the bytes."""
        self.group.write(self.part, file)

    def tobytes(self) -> bytes:
        """The bytes, all at once."""
        content = io.BytesIO()
        self.tofile(content)
        return content.getvalue()

    def numpy(self) -> npt.NDArray[Any]:
        """The tensor, all at once."""
        content = self.tobytes()
        if self.dtype.bitwidth == 4:
            nibbles = unpack(torch.frombuffer(bytearray(content), dtype=torch.uint8), bits=4).numpy()[: self.size]
            signed = np.where(nibbles > 7, nibbles - 16.0, nibbles) if self.dtype == ir.DataType.INT4 else nibbles
            return signed.astype(self.dtype.numpy()).reshape(self.shape.numpy())
        return np.frombuffer(content, self.dtype.numpy()).reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return torch.from_numpy(self.numpy().copy()).__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __repr__(self) -> str:
        return f"BlockPart({self.group.name}, {self.part}, {self.dtype.name}{list(self.shape)})"


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """The element type of a stored tensor."""
    return _ONNX[dtype]


def write_bytes(tensor: torch.Tensor, file: Writable) -> None:
    """Writes a tensor's elements, little-endian."""
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
