"""The quantised matrices of a graph, multiplied out a few rows at a time.

    MatMulNBits, GatherBlockQuantized   codes [rows, blocks, bytes], scales [rows, blocks], zero points packed by row
    DequantizeLinear                    codes [columns, rows], scales and zero points [blocks, rows]
    MatMulIntegerToFloat                codes [columns, rows], one scale a row

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md,
https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_validation.stored.initializers import Initializers

if TYPE_CHECKING:
    import onnx

__all__ = ["StoredMatrix", "stored_matrices"]

Rows = Callable[[int, int], npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """One matrix [rows, columns] whose blocks lie along its columns."""

    # of the weight: model.layers.0.self_attn.qkv_proj.weight
    name: str
    rows: int
    # without the padding of the last block
    columns: int
    block_size: int
    bits: int
    # zero points are the middle of the codes
    symmetric: bool
    # smallest positive scale of its type
    smallest_scale: float
    # the columns as they are stored, where activations are gathered in another order first
    order: npt.NDArray[np.int64] | None
    # opens the matrix for reading: -> (first, last) -> float32 [last - first, columns]
    open: Callable[[], Rows]


def stored_matrices(model: onnx.ModelProto, initializers: Initializers) -> tuple[StoredMatrix, ...]:
    """Every quantised matrix of a graph once, in the order of the nodes."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found: dict[tuple[str, int], StoredMatrix] = {}
    for node in model.graph.node:
        reader, part = _READERS.get(node.op_type, (None, 0))
        # the scales of a cache in 8 bits are constants too, its codes are not
        if reader is None or node.input[part] not in initializers:
            continue
        matrix = reader(node, initializers)
        gather = producers.get(node.input[0])
        if part == 1 and gather is not None and gather.op_type == "Gather" and gather.input[1].endswith(".order"):
            matrix = dataclasses.replace(matrix, order=initializers.whole(gather.input[1]).astype(np.int64))
        # a table tied to the head is looked up in the same bytes; the product says how many columns it has
        place = initializers.place(node.input[part])
        if place not in found or node.op_type == "MatMulNBits":
            found[place] = matrix
    return tuple(found.values())


def _name_of(initializer: str) -> str:
    return initializer.removesuffix(".data").removesuffix(".table")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _other(node: onnx.NodeProto) -> int:
    return 0 if node.op_type == "MatMulNBits" else 1


def _smallest(initializers: Initializers, scales: str) -> float:
    # half a precision's subnormals end early: exporters round their scales up
    return 2.0**-24 if initializers.bits(scales) == 16 else 0.0


def _row_blocks(node: onnx.NodeProto, initializers: Initializers) -> StoredMatrix:
    """MatMulNBits and GatherBlockQuantized."""
    attributes = _attributes(node)
    bits, block_size = attributes.get("bits", 4), attributes["block_size"]
    # the other input is what is multiplied or looked up
    data, scales, *rest = [name for index, name in enumerate(node.input) if index != _other(node)]
    zero_points = rest[0] if rest and rest[0] else None
    rows, blocks = initializers.shape(scales)
    columns = attributes.get("K", blocks * block_size)

    def read(first: int, last: int) -> npt.NDArray[np.float32]:
        count = last - first
        values = _unpacked(initializers.rows(data, first, last), bits).reshape(count, blocks, block_size)
        if zero_points is None:
            values -= np.float32(1 << (bits - 1))
        else:
            levels = _unpacked(initializers.rows(zero_points, first, last), bits)
            values -= levels[:, :blocks, None]
        values *= initializers.rows(scales, first, last).astype(np.float32)[..., None]
        return values.reshape(count, -1)[:, :columns]

    return StoredMatrix(
        name=_name_of(data),
        rows=rows,
        columns=columns,
        block_size=block_size,
        bits=bits,
        symmetric=zero_points is None,
        smallest_scale=_smallest(initializers, scales),
        order=None,
        open=lambda: read,
    )


def _column_blocks(node: onnx.NodeProto, initializers: Initializers) -> StoredMatrix:
    """DequantizeLinear over [columns, rows]."""
    data, scales, *rest = node.input
    zero_points = rest[0] if rest and rest[0] else None
    columns, rows = initializers.shape(data)
    block_size = _attributes(node)["block_size"]

    def opened() -> Rows:
        # rows lie across: the codes are turned from memory, a byte or less each
        codes, factors = initializers.whole(data), initializers.whole(scales)
        levels = None if zero_points is None else initializers.whole(zero_points)

        def read(first: int, last: int) -> npt.NDArray[np.float32]:
            values = codes[:, first:last].T.astype(np.float32)
            for block in range(len(factors)):
                part = slice(block * block_size, (block + 1) * block_size)
                if levels is not None:
                    values[:, part] -= levels[block, first:last, None].astype(np.float32)
                values[:, part] *= factors[block, first:last, None].astype(np.float32)
            return values

        return read

    return StoredMatrix(
        name=_name_of(data),
        rows=rows,
        columns=columns,
        block_size=block_size,
        bits=initializers.bits(data),
        symmetric=initializers.is_signed(data),
        smallest_scale=_smallest(initializers, scales),
        order=None,
        open=opened,
    )


def _scaled_rows(node: onnx.NodeProto, initializers: Initializers) -> StoredMatrix:
    """MatMulIntegerToFloat: int8 [columns, rows], a scale for each row."""
    data, scales = node.input[1], node.input[3]
    columns, rows = initializers.shape(data)

    def opened() -> Rows:
        codes, factors = initializers.whole(data), initializers.whole(scales).astype(np.float32)
        return lambda first, last: codes[:, first:last].T.astype(np.float32) * factors[first:last, None]

    return StoredMatrix(
        name=_name_of(data),
        rows=rows,
        columns=columns,
        block_size=columns,
        bits=8,
        symmetric=True,
        smallest_scale=0.0,
        order=None,
        open=opened,
    )


# both codes of a byte, the lower half first
_PAIRS = np.stack((np.arange(256) & 15, np.arange(256) >> 4), axis=-1).astype(np.float32)


def _unpacked(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.float32]:
    """Codes of packed bytes, float32 [rows, n]."""
    rows = packed.reshape(len(packed), -1)
    return rows.astype(np.float32) if bits == 8 else _PAIRS.take(rows, axis=0).reshape(len(rows), -1)


# operator -> (its reader, which of its inputs holds codes)
_READERS: dict[str, tuple[Callable[[onnx.NodeProto, Initializers], StoredMatrix], int]] = {
    "MatMulNBits": (_row_blocks, 1),
    "GatherBlockQuantized": (_row_blocks, 0),
    "DequantizeLinear": (_column_blocks, 0),
    "MatMulIntegerToFloat": (_scaled_rows, 1),
}
