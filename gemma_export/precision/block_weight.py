"""A block-quantised matrix as lazy tensors: data, scales and zero points of one expression, each source read once."""

from __future__ import annotations

import concurrent.futures
import io
import os
from collections import deque
from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_codes import BlockCodes
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.quantisers import RowQuantiser
from gemma_export.weights import Weight, Writable, one_thread

__all__ = ["BlockPart", "BlockParts", "BlockWeight"]

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


class BlockParts:
    """The tensors that a quantised matrix is stored as; a subclass says where their bytes come from."""

    def __init__(self, name: str, shape: tuple[int, ...], layout: BlockFormat, scale_dtype: torch.dtype) -> None:
        self.name, self.bits, self.block_size = name, layout.bits, layout.block_size
        self.rows, self.columns = shape
        data = layout.data_shape(shape)
        self.data = BlockPart(self, "data", data, torch.uint8)
        # the same bytes as GatherBlockQuantized reads them
        self.table = BlockPart(self, "data", (data[0], data[1] * data[2]), torch.uint8, self.data.weight)
        self.scales = BlockPart(self, "scales", layout.scales_shape(shape), scale_dtype)
        self.zero_points = (
            None if layout.symmetric else BlockPart(self, "zero_points", layout.zero_points_shape(shape), torch.uint8)
        )

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part, little-endian."""
        raise NotImplementedError


class BlockWeight(BlockParts):
    """A matrix that is quantised while it is written.

    `data`, `scales` and `zero_points` are written behind one another: writing the first quantises the matrix and
    keeps the other two (a few percent of it) until they are asked for. Any part asked for alone is computed alone.

    Args:
        weight: float32 [rows, columns], finite: its expression refuses NaN and infinity by tensor and position.
        name: of the stored tensor.
        layout: bits, block size, symmetry.
        scale_dtype: of the scales: the activations' type.
        quantise: rows -> their codes.
    """

    def __init__(
        self, weight: Weight, name: str, layout: BlockFormat, scale_dtype: torch.dtype, quantise: RowQuantiser
    ) -> None:
        super().__init__(name, weight.shape, layout, scale_dtype)
        self._weight, self._quantise, self._layout = weight, quantise, layout
        self._kept: dict[str, torch.Tensor] = {}

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part, little-endian."""
        if part in self._kept:
            _write(self._kept.pop(part), file)
            return
        with one_thread():
            self._quantise_all(part, file)

    def _quantise_all(self, part: str, file: Writable) -> None:
        wanted: list[torch.Tensor] = []
        kept: dict[str, list[torch.Tensor]] = {"scales": [], "zero_points": []}
        for codes in self._codes():
            if part == "data":
                _write(codes.data, file)
                kept["scales"].append(codes.scales)
                if codes.zero_points is not None:
                    kept["zero_points"].append(codes.zero_points)
            else:
                wanted.append(getattr(codes, part))
        for tensor in wanted:
            _write(tensor, file)
        self._kept = {name: torch.cat(tensors) for name, tensors in kept.items() if tensors}

    def _codes(self) -> Iterator[BlockCodes]:
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

    def _pieces(self) -> Iterator[torch.Tensor]:
        """Rows in copies of their own: an expression reuses its buffers."""
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
        return f"BlockWeight({self.name}, {self._layout})"


class BlockPart:
    """One stored tensor of a block-quantised matrix, as an initializer's value.

    Args:
        group: the matrix; the writer keeps tensors of one `group` behind one another.
        part: "data", "scales" or "zero_points".
        shape: of the initializer.
        dtype: of the elements.
        weight: identity of the bytes; parts that share it share a range of the data file.
    """

    def __init__(
        self, group: BlockParts, part: str, shape: tuple[int, ...], dtype: torch.dtype, weight: object | None = None
    ) -> None:
        self.group, self.part = group, part
        self.weight = object() if weight is None else weight
        self.name: str | None = None
        self.shape: ir.ShapeProtocol = ir.Shape(shape)
        self.dtype = _ONNX[dtype]
        self.size = int(np.prod(shape, dtype=np.int64))
        self.nbytes = self.size * dtype.itemsize
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
        return np.frombuffer(self.tobytes(), self.dtype.numpy()).reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return torch.from_numpy(self.numpy().copy()).__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __repr__(self) -> str:
        return f"BlockPart({self.group.name}, {self.part}, {self.dtype.name}{list(self.shape)})"


def _write(tensor: torch.Tensor, file: Writable) -> None:
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
