"""Bytes of weights that each node of a graph reads, from the ONNX file itself.

onnxruntime's profile does not tell: a kernel that packed its weights when it was loaded has no weights as inputs any
more. The file is read as what it is, protocol buffers, because the runtime does without the onnx package. Only names,
dimensions and element types are looked at; the weights lie in another file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

__all__ = ["weight_bytes"]

# field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_NAME = 1, 3
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8
# TensorProto.DataType -> bits of an element; others count as unknown
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
# wire types: https://protobuf.dev/programming-guides/encoding/#structure
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def weight_bytes(model: Path) -> dict[str, int]:
    """Node name -> bytes of all initializers among its inputs; nodes without any are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ONNX model.
    """
    nodes: list[tuple[str, list[str]]] = []
    sizes: dict[str, int] = {}
    try:
        for graph in _messages(memoryview(model.read_bytes()), _MODEL_GRAPH):
            nodes += [_node(message) for message in _messages(graph, _GRAPH_NODE)]
            sizes.update(_tensor(message) for message in _messages(graph, _GRAPH_INITIALIZER))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{model.name} is no ONNX model") from error
    found = {name: sum(sizes.get(value, 0) for value in inputs) for name, inputs in nodes}
    return {name: size for name, size in found.items() if size}


def _node(message: memoryview) -> tuple[str, list[str]]:
    """(name, input names)."""
    name, inputs = "", []
    for field, value in _fields(message):
        if field == _NODE_INPUT and isinstance(value, memoryview):
            inputs.append(str(value, "utf-8"))
        elif field == _NODE_NAME and isinstance(value, memoryview):
            name = str(value, "utf-8")
    return name, inputs


def _tensor(message: memoryview) -> tuple[str, int]:
    """(name, bytes)."""
    name, dims, bits = "", [], 0
    for field, value in _fields(message):
        if field == _TENSOR_DIMS:
            # one by one, or packed into one field
            dims += _packed(value) if isinstance(value, memoryview) else [value]
        elif field == _TENSOR_TYPE and isinstance(value, int):
            bits = _BITS.get(value, 0)
        elif field == _TENSOR_NAME and isinstance(value, memoryview):
            name = str(value, "utf-8")
    return name, math.prod(dims) * bits // 8


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == number and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in order: integers, or the bytes of strings and messages; floats as their bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            number, position = _varint(message, position)
            yield field, number
            continue
        if wire == _BYTES:
            length, position = _varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise IndexError(f"wire type {wire}")
        if position + length > len(message):
            raise IndexError("a field ends behind its message")
        yield field, message[position : position + length]
        position += length


def _packed(message: memoryview) -> list[int]:
    numbers, position = [], 0
    while position < len(message):
        number, position = _varint(message, position)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(number, position behind it): seven bits a byte, the lowest first."""
    number = shift = 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
