"""What the quantising passes share: a matrix in blocks of integers, its stored tensors, the nodes that may read it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import attributes_of, refuse, tensor_value
from gemma_export.stored_codes import other_order

__all__ = ["QuantisedMatrix", "is_look_up", "is_product", "ordered_input", "other_reader", "stored_values"]


class QuantisedMatrix(Protocol):
    """A matrix [rows, columns] in blocks along its columns; a pass says how its parts lie."""

    @property
    def bits(self) -> int:
        """Of a code."""

    @property
    def block_size(self) -> int:
        """Columns that share a scale."""

    @property
    def columns(self) -> int:
        """Input features, without the padding of the last block."""

    @property
    def order(self) -> npt.NDArray[np.int32] | None:
        """The columns as they are stored, where that is not their own order: activations must follow."""

    @property
    def data(self) -> ir.TensorProtocol:
        """The codes."""

    @property
    def scales(self) -> ir.TensorProtocol:
        """One for each block of a row."""

    @property
    def zero_points(self) -> ir.TensorProtocol | None:
        """One for each block of a row, or None for the middle of the codes."""


def stored_values(graph: ir.Graph, name: str, matrix: QuantisedMatrix) -> list[ir.Value]:
    """The initializers of data, scales and, where there are any, zero points."""
    parts = [("data", matrix.data), ("scales", matrix.scales)]
    if matrix.zero_points is not None:
        parts.append(("zero_points", matrix.zero_points))
    return [tensor_value(graph, f"{name}.{part}", tensor) for part, tensor in parts]


def ordered_input(graph: ir.Graph, node: ir.Node, name: str, matrix: QuantisedMatrix) -> ir.Value | None:
    """What a product multiplies: its activations, their features gathered in the order of the matrix's columns.

    Products of the same activations share one Gather. onnxruntime's own way, MatMulNBits' input g_idx, is deprecated:
    in 1.32 it unpacks the whole matrix at each step (100 times the time of a 16384 x 2048 product at one row) and
    takes no 8 bits.

    Raises:
        CheckpointError: another product of these activations has another order.
    """
    activations = node.inputs[0]
    if matrix.order is None or activations is None:
        return activations
    for use in activations.uses():
        if use.node.name == f"{activations.name}.Gather":
            order = use.node.inputs[1]
            assert order is not None
            assert order.const_value is not None
            if not np.array_equal(order.const_value.numpy(), matrix.order):
                raise other_order(str(order.name).removesuffix(".weight.order"), name.removesuffix(".weight"))
            return use.node.outputs[0]
    order = tensor_value(graph, f"{name}.order", ir.tensor(matrix.order))
    gather = ir.node("Gather", inputs=[activations, order], attributes={"axis": -1}, name=f"{activations.name}.Gather")
    output = gather.outputs[0]
    output.name, output.type, output.shape = gather.name, activations.type, activations.shape
    producer = activations.producer()
    assert producer is not None
    graph.insert_after(producer, gather)
    return output


def is_look_up(node: ir.Node, position: int, pass_name: str) -> bool:
    """Whether a node takes rows of a weight.

    Raises:
        PassError: it takes something else of it.
    """
    if (node.domain, node.op_type, position) != ("", "Gather", 0):
        return False
    axis = attributes_of(node, {"axis": 0}, pass_name)["axis"]
    if axis != 0:
        raise refuse(node, pass_name, f"axis = {axis}, expected 0: rows of the table")
    return True


def is_product(node: ir.Node, position: int, pass_name: str) -> bool:
    """Whether a node is the product of activations and a transposed weight, and nothing more.

    Raises:
        PassError: it is another product.
    """
    if (node.domain, node.op_type, position) != ("com.microsoft", "FusedMatMul", 1):
        return False
    transposed = attributes_of(node, {"transB": 0}, pass_name)["transB"]
    if transposed != 1:
        raise refuse(node, pass_name, f"transB = {transposed}, expected 1: blocks lie along input features")
    return True


def other_reader(node: ir.Node, position: int, name: str, pass_name: str) -> PassError:
    """The error for a node that no kernel replaces."""
    return refuse(node, pass_name, f"it reads the quantised weight {name} as input {position}")
