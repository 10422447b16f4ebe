"""Lazy weight expressions: a stored tensor, then cast, shift, scale, concatenation, transposition; evaluated in chunks.

Nothing is read until an expression is iterated, and then memory stays near one chunk. Only `Transpose` holds a whole
tensor, in its final element type (151 MB for the largest projection of a 7B in float16).
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.tensors import TensorSource

__all__ = [
    "Cast",
    "Concat",
    "Constant",
    "RotaryTable",
    "Scale",
    "Shift",
    "Stored",
    "Transpose",
    "Weight",
    "WeightTensor",
    "Writable",
    "one_thread",
    "widened_parts",
]

# Fits a core's second-level cache together with its float32 and cast copies. Measured, bfloat16 to float16:
# 64 KiB 0.96, 256 KiB 1.85, 1 MiB 1.66 GB/s.
_CHUNK_BYTES = 256 << 10
# Columns that one block of a transposition takes: wide enough that each row's piece fills cache lines, narrow enough
# that the block stays in the cache. Measured on 16384 x 2048 float16: 64 1.7, 128 2.0, 256 0.9 GB/s.
_TRANSPOSE_BYTES = 256

# kDLCPU: https://dmlc.github.io/dlpack/latest/c_api.html
_DLPACK_CPU = 1

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ONNX = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


class Weight(abc.ABC):
    """A lazy tensor of one to `n` dimensions."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abc.abstractmethod
    def chunks(self) -> Iterator[torch.Tensor]:
        """Contiguous tensors [rows, *shape[1:]] that join to the whole; each is valid until the next is taken.

        Raises:
            CheckpointError: the bytes cannot be read.
            NonFiniteError: a value is NaN or infinite, or becomes so in a cast.
        """

    def tensor(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The whole tensor in memory.

        Args:
            out: of the same shape and type, to be overwritten: fresh memory costs more than a conversion.
        """
        whole = torch.empty(self.shape, dtype=self.dtype) if out is None else out
        assert (tuple(whole.shape), whole.dtype) == (tuple(self.shape), self.dtype), str(self)
        row = 0
        for chunk in self.chunks():
            whole[row : row + len(chunk)] = chunk
            row += len(chunk)
        return whole


class Stored(Weight):
    """A tensor of a checkpoint, as it is stored."""

    def __init__(self, source: TensorSource, name: str) -> None:
        stored = source.tensors[name]
        self.source, self.name = source, name
        self.shape, self.dtype = stored.shape, _TORCH[stored.dtype]

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, _CHUNK_BYTES // row_bytes)
        buffer = bytearray(min(step, self.shape[0]) * row_bytes)
        for start in range(0, self.shape[0], step):
            rows = min(step, self.shape[0] - start)
            view = memoryview(buffer)[: rows * row_bytes]
            self.source.read_into(self.name, start * row_bytes, view)
            yield torch.frombuffer(view, dtype=self.dtype).view(rows, *self.shape[1:])

    def read_rows(self, first: int, rows: torch.Tensor) -> None:
        """Fills a contiguous tensor [n, *shape[1:]] of this type with the rows from `first` on.

        Raises:
            CheckpointError: the bytes cannot be read.
        """
        content = rows.view(torch.uint8).numpy().reshape(-1)
        self.source.read_into(self.name, first * (content.nbytes // len(rows)), content.data)

    def __str__(self) -> str:
        return self.name


class Constant(Weight):
    """A tensor that the exporter computes, such as a rotary table."""

    def __init__(self, tensor: torch.Tensor, name: str) -> None:
        self.constant, self.name = tensor.contiguous(), name
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        row_bytes = self.constant[0].nbytes
        yield from torch.split(self.constant, max(1, _CHUNK_BYTES // row_bytes))

    def __str__(self) -> str:
        return self.name


class RotaryTable(Weight):
    """Cosine or sine of position * frequency, a row for each position (gemma_export.nn.rotary has the formula).

    A table of 131,072 positions is 64 MiB at a head size of 256.
    """

    def __init__(self, frequencies: torch.Tensor, positions: int, function: str, name: str) -> None:
        self.frequencies, self.function, self.name = frequencies, function, name
        self.shape, self.dtype = (positions, len(frequencies)), torch.float32

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        step = max(1, _CHUNK_BYTES // self.frequencies.nbytes)
        for start in range(0, self.shape[0], step):
            positions = torch.arange(start, min(start + step, self.shape[0]), dtype=torch.float32)
            angles = torch.outer(positions, self.frequencies)
            yield angles.cos() if self.function == "cos" else angles.sin()

    def __str__(self) -> str:
        return self.name


class Cast(Weight):
    """Another element type; NaN and infinity, stored or made by the cast, are errors."""

    def __init__(self, weight: Weight, dtype: torch.dtype) -> None:
        self.weight, self.dtype = weight, dtype
        self.shape = weight.shape

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        row = 0
        # two buffers for all chunks: the first is the largest, and fresh megabytes cost more than the conversion
        buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        for chunk in self.weight.chunks():
            if buffers is None:
                buffers = torch.empty_like(chunk, dtype=torch.float32), torch.empty_like(chunk, dtype=self.dtype)
            wide, cast = buffers[0][: len(chunk)], buffers[1][: len(chunk)]
            # by way of float32: torch's direct bfloat16 -> float16 is three times slower, and both steps are exact
            # or round once
            wide.copy_(chunk)
            if not _stays_finite(wide, self.dtype):
                raise _non_finite(str(self.weight), wide, row, self.dtype)
            yield wide if self.dtype == torch.float32 else cast.copy_(wide)
            row += len(chunk)

    def __str__(self) -> str:
        return str(self.weight)


class Shift(Weight):
    """weight + addend in the weight's own type: the gain 1 + w of a norm."""

    def __init__(self, weight: Weight, addend: float) -> None:
        self.weight, self.addend = weight, addend
        self.shape, self.dtype = weight.shape, weight.dtype

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        for chunk in self.weight.chunks():
            yield chunk + self.addend

    def __str__(self) -> str:
        return str(self.weight)


class Scale(Weight):
    """weight * factor, in float32 and before any narrower cast: a power of two then only moves the exponent.

    A product, not exponent arithmetic: subnormal numbers come out rounded as IEEE 754 says.
    """

    def __init__(self, weight: Weight, factor: float) -> None:
        assert weight.dtype == torch.float32
        self.weight, self.factor = weight, factor
        self.shape, self.dtype = weight.shape, weight.dtype

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        buffer: torch.Tensor | None = None
        for chunk in self.weight.chunks():
            # the first chunk is the largest
            buffer = torch.empty_like(chunk) if buffer is None else buffer
            yield torch.mul(chunk, self.factor, out=buffer[: len(chunk)])

    def __str__(self) -> str:
        return str(self.weight)


class Concat(Weight):
    """Weights of equal rows behind one another, along the first dimension."""

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        first = weights[0]
        assert all(weight.shape[1:] == first.shape[1:] and weight.dtype == first.dtype for weight in weights)
        self.weights, self.dtype = weights, first.dtype
        self.shape = (sum(weight.shape[0] for weight in weights), *first.shape[1:])

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        for weight in self.weights:
            yield from weight.chunks()

    def __str__(self) -> str:
        return " + ".join(str(weight) for weight in self.weights)


def widened_parts(weight: Weight) -> tuple[Stored, ...]:
    """The stored tensors whose numbers a float32 expression has, one behind the other; none if it changes a number."""
    if isinstance(weight, Concat):
        parts = [widened_parts(part) for part in weight.weights]
        return tuple(itertools.chain.from_iterable(parts)) if all(parts) else ()
    if isinstance(weight, Cast) and weight.dtype == torch.float32 and isinstance(weight.weight, Stored):
        return (weight.weight,)
    return ()


class Transpose(Weight):
    """A matrix with rows and columns exchanged."""

    def __init__(self, weight: Weight) -> None:
        rows, columns = weight.shape
        self.weight, self.dtype = weight, weight.dtype
        self.shape = (columns, rows)

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        whole = self.weight.tensor()
        step = max(1, _TRANSPOSE_BYTES // self.dtype.itemsize)
        for start in range(0, self.shape[0], step):
            # a contiguous block first: torch's blocked transposition takes only those
            yield whole[:, start : start + step].contiguous().t().contiguous()

    def __str__(self) -> str:
        return str(self.weight)


def _stays_finite(wide: torch.Tensor, dtype: torch.dtype) -> bool:
    # rounding is monotonic, so the extremes tell for all; NaN is passed on by both
    return bool(torch.stack(torch.aminmax(wide)).to(dtype).isfinite().all())


def _non_finite(name: str, wide: torch.Tensor, row: int, dtype: torch.dtype) -> NonFiniteError:
    position = (~wide.to(dtype).isfinite()).nonzero()[0].tolist()
    value = wide[tuple(position)].item()
    position[0] += row
    where = f"tensor {name}, position {position}"
    if np.isfinite(value):
        return NonFiniteError(
            f"{where}: {value:g} does not fit {str(dtype).removeprefix('torch.')}",
            hint="Export with --fp32: this checkpoint's weights exceed the range of the chosen precision.",
        )
    return NonFiniteError(
        f"{where}: {value}, expected a finite number",
        hint="The file is damaged or its training diverged: fetch it again, or use an earlier one.",
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: a pool costs more than converting a megabyte, and others need the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Writable(Protocol):
    """What a tensor streams itself into."""

    def write(self, data: memoryview, /) -> int:
        """Takes all of `data`."""


class WeightTensor:
    """A lazy expression as an initializer's value; it writes itself in chunks.

    Args:
        weight: the expression; two tensors over one expression share its bytes in the data file.
        name: of the initializer.
    """

    def __init__(self, weight: Weight, name: str | None) -> None:
        self.weight = weight
        self.name = name
        self.shape: ir.ShapeProtocol = ir.Shape(weight.shape)
        self.dtype = _ONNX[weight.dtype]
        self.raw: Any = weight
        self.doc_string: str | None = None
        self.metadata_props: MutableMapping[str, str] = {}
        self.meta: MutableMapping[str, Any] = {}

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.weight.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.weight.dtype.itemsize

    def tofile(self, file: Writable) -> None:
        """Streams the bytes, little-endian, memory bounded by the expression's chunks."""
        with one_thread():
            for chunk in self.weight.chunks():
                file.write(chunk.reshape(-1).view(torch.uint8).numpy().data)

    def tobytes(self) -> bytes:
        """The bytes, all at once."""
        return b"".join(bytes(chunk.reshape(-1).view(torch.uint8).numpy()) for chunk in self.weight.chunks())

    def numpy(self) -> npt.NDArray[Any]:
        """The tensor, all at once."""
        return np.frombuffer(self.tobytes(), self.dtype.numpy()).reshape(self.weight.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        # torch's: numpy exports neither read-only arrays nor bfloat16
        return self.weight.tensor().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_DLPACK_CPU, 0)

    def __repr__(self) -> str:
        return f"WeightTensor({self.name}, {self.dtype.name}{list(self.weight.shape)})"
