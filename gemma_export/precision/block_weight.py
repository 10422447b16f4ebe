"""A block-quantised matrix as lazy tensors: data, scales and zero points of one expression, each source read once."""

from __future__ import annotations

import concurrent.futures
import io
import os
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_codes import BlockCodes, dequantise, unpack
from gemma_export.precision.block_format import BlockFormat
from gemma_export.weights import Weight, Writable, one_thread

__all__ = ["BlockPart", "BlockWeight", "onnx_type", "write_bytes"]

# Threads that quantise while this one reads and widens; the result does not depend on their number.
_WORKERS = min(4, os.cpu_count() or 1)
# chunks read ahead of the one that is written: bounds the memory, keeps the threads busy
_AHEAD = 2 * _WORKERS
# Rows are handed over in pieces of about this many weights: a MiB in float32 amortises the calls and still fits a
# core's second-level cache. Measured on one core, rtn: 64 Ki 0.4, 128 Ki 0.7, 256 Ki 0.8 G weights/s.
_PIECE = 1 << 18
_ONNX = {
    torch.uint8: ir.DataType.UINT8,
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


class BlockWeight:
    """The parts of one quantised matrix.

    `data`, `scales` and `zero_points` are written behind one another: writing the first quantises the matrix and
    keeps the other two (a few percent of it) until they are asked for. Any part asked for alone is computed alone.

    Args:
        weight: float32 [rows, columns], finite: its expression refuses NaN and infinity by tensor and position.
        name: of the stored tensor.
        layout: bits, block size, symmetry.
        scale_dtype: of the scales: the activations' type.
        quantise: rows -> their codes: a RowQuantiser.
    """

    def __init__(
        self,
        weight: Weight,
        name: str,
        layout: BlockFormat,
        scale_dtype: torch.dtype,
        quantise: Callable[[Any], BlockCodes],
    ) -> None:
        self.name, self.bits, self.block_size = name, layout.bits, layout.block_size
        self.rows, self.columns = weight.shape
        self.layout = layout
        # int32 [columns]: the columns as they are stored, where that is not their own order
        self.order: npt.NDArray[np.int32] | None = None
        self._weight, self._quantise = weight, quantise
        self._kept: dict[str, torch.Tensor] = {}
        shape = (self.rows, self.columns)
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

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part, little-endian."""
        if part in self._kept:
            write_bytes(self._kept.pop(part), file)
            return
        with one_thread():
            self._quantise_all(part, file)

    def dequantised(self) -> Iterator[torch.Tensor]:
        """Rows [n, columns] in order, in float32, as a kernel multiplies with them."""
        for codes in self.codes():
            yield dequantise(codes, self.layout)[:, : self.columns]

    def _quantise_all(self, part: str, file: Writable) -> None:
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

    def codes(self) -> Iterator[BlockCodes]:
        """The matrix in order, quantised on several threads."""
        row = 0
        pending: deque[tuple[int, concurrent.futures.Future[BlockCodes]]] = deque()
        with concurrent.futures.ThreadPoolExecutor(_WORKERS, "quantise", torch.set_num_threads, (1,)) as pool:
            for piece in self._pieces():
                pending.append((row, pool.submit(self._quantise, piece)))
                row += len(piece)
                if len(pending) > _AHEAD:
                    yield self._checked(*pending.popleft())
            while pending:
                yield self._checked(*pending.popleft())

    def _pieces(self) -> Iterator[Any]:
        """What `quantise` takes: rows in copies of their own: an expression reuses its buffers."""
        rows: list[torch.Tensor] = []
        for chunk in self._weight.chunks():
            rows.append(chunk.float() if chunk.dtype != torch.float32 else chunk.clone())
            if sum(len(part) for part in rows) * self.columns >= _PIECE:
                yield torch.cat(rows)
                rows = []
        if rows:
            yield torch.cat(rows)

    def _checked(self, row: int, future: concurrent.futures.Future[BlockCodes]) -> BlockCodes:
        codes = future.result()
        if not codes.scales.isfinite().all():
            inside, block = (~codes.scales.isfinite()).nonzero()[0].tolist()
            raise NonFiniteError(
                f"tensor {self.name}, row {row + inside}, columns from {block * self.block_size}: the block's scale "
                f"does not fit {str(codes.scales.dtype).removeprefix('torch.')}",
                hint="Export with float32 activations: this checkpoint's weights exceed the range of the scales.",
            )
        return codes

    def __repr__(self) -> str:
        return f"BlockWeight({self.name}, {self.layout})"


class _Parts(Protocol):
    @property
    def name(self) -> str:
        """Of the matrix."""

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part."""


class BlockPart:
    """One stored tensor of a block-quantised matrix, as an initializer's value.

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
