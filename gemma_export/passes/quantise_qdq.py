"""Matrix products and table look-ups over block-quantised weights in standard operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx_ir as ir

from gemma_export.passes.quantised_matrix import (
    QuantisedMatrix,
    is_look_up,
    is_product,
    ordered_input,
    other_reader,
    stored_values,
)
from gemma_export.passes.semantic_nodes import int64_constant, refuse, replace, replace_weights, tensor_value
from gemma_export.weights import Weight

__all__ = ["QuantiseQdq", "TransposedBlocks"]

_NAME = "QuantiseQdq"


class TransposedBlocks(QuantisedMatrix, Protocol):
    """As standard operators read it: data as int4, uint4, int8 or uint8 [columns, rows], scales as [blocks, rows].

    Zero points are [blocks, rows] in the data's type; without them the codes are signed.
    """

    @property
    def table(self) -> ir.TensorProtocol:
        """The data's bytes for look-ups: of 4-bit codes uint8 [columns, rows / 2]."""

    @property
    def table_scales(self) -> ir.TensorProtocol:
        """The scales' bytes for look-ups."""

    @property
    def table_zero_points(self) -> ir.TensorProtocol | None:
        """The zero points' bytes for look-ups, like `table`."""


class QuantiseQdq(ir.passes.InPlacePass):
    """Weights in blocks of integers behind DequantizeLinear, for projections, the head and the embedding table.

    Before: MatMul(x, Transpose(W)), or FusedMatMul(x, W, transB=1)
    After:  MatMul(x, DequantizeLinear(data, scales, zero_points; axis=0))

    Before: Gather(W, ids)
    After:  Transpose((codes - zero points) * scales), of the columns that the ids name: see `_LookUp`

    The data lies as [columns, rows]: with blocks along its first dimension onnxruntime folds DequantizeLinear and
    MatMul into MatMulNBits when a session loads, and OpenVINO into its compressed FullyConnected; with a Transpose
    between the two onnxruntime unpacks the whole matrix at every step (both read off optimised graphs: onnxruntime
    1.32, OpenVINO 2026.4).

    Args:
        quantise: (initializer, its lazy weight) -> the quantised matrix, or None for a weight that stays as it is.

    Precondition: `LowerLinearToMatMul` or `LowerLinear`, and `LowerEmbedding` ran, the graph is float32, a table of
    4 bits has an even number of rows.
    Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
    """

    def __init__(self, quantise: Callable[[str, Weight], TransposedBlocks | None]) -> None:
        super().__init__()
        self.quantise = quantise

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every reader of every weight that `quantise` takes."""
        rewrite = functools.partial(_rewrite, model.graph)
        return ir.passes.PassResult(model, replace_weights(model.graph, self.quantise, rewrite))


def _rewrite(graph: ir.Graph, node: ir.Node, position: int, name: str, matrix: TransposedBlocks) -> None:
    if is_look_up(node, position, _NAME):
        _LookUp(graph, node, name, matrix).build()
    elif is_product(node, position, _NAME):
        _product(graph, node, name, matrix)
    elif (product := _transposed_product(node)) is not None:
        _product(graph, product, name, matrix)
        graph.remove(node, safe=True)
    else:
        raise other_reader(node, position, name, _NAME)


def _transposed_product(node: ir.Node) -> ir.Node | None:
    """The one MatMul that reads a transposed weight."""
    if (node.domain, node.op_type) != ("", "Transpose"):
        return None
    perm = node.attributes.get("perm")
    if perm is not None and list(perm.as_ints()) != [1, 0]:
        raise refuse(node, _NAME, f"perm = {list(perm.as_ints())}, expected [1, 0]")
    uses = list(node.outputs[0].uses())
    products = [use.node for use in uses if (use.node.domain, use.node.op_type, use.idx) == ("", "MatMul", 1)]
    return products[0] if len(products) == len(uses) == 1 else None


def _product(graph: ir.Graph, node: ir.Node, name: str, matrix: TransposedBlocks) -> None:
    prefix = str(node.name).removesuffix(".FusedMatMul").removesuffix(".MatMul")
    weight = ir.node(
        "DequantizeLinear",
        inputs=stored_values(graph, name, matrix),
        attributes={"axis": 0, "block_size": matrix.block_size},
        name=f"{prefix}.DequantizeLinear",
    )
    output = weight.outputs[0]
    output.name, output.shape = weight.name, ir.Shape(matrix.data.shape.numpy())
    output.type = ir.TensorType(ir.DataType.FLOAT)
    product = ir.node("MatMul", inputs=[ordered_input(graph, node, name, matrix), output], name=f"{prefix}.MatMul")
    replace(graph, node, [weight, product], product.outputs)


class _LookUp:
    """Rows of a table, dequantised in the activations' arithmetic: exact until the one rounding of the product.

    Neither of two shorter ways serves. DequantizeLinear of the whole table would be gigabytes, OpenVINO has none of
    gathered rows (its shapes must be known), and it computes bit operations on uint8 wrongly where shifts differ by
    element. So nibbles are taken apart by Floor, which all float types do exactly: numbers stay below 256.

    ids [batch_size, sequence_length] -> codes [columns, batch_size, sequence_length] -> the look-up's output.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node, name: str, matrix: TransposedBlocks) -> None:
        self.graph, self.node, self.name, self.matrix = graph, node, name, matrix
        self.prefix = str(node.name).removesuffix(".Gather")
        self.nodes: list[ir.Node] = []
        # where the activations' type is read off
        self.like = tensor_value(graph, f"{name}.table_scales", matrix.table_scales)

    def build(self) -> None:
        """Puts the nodes where the Gather was."""
        matrix, ids = self.matrix, self.node.inputs[1]
        column = self._add("Range", *(int64_constant(self.graph, f"constant.{n}", n) for n in (0, matrix.columns, 1)))
        block = self._add("Div", column, int64_constant(self.graph, f"constant.{matrix.block_size}", matrix.block_size))
        codes = self._codes("table", matrix.table, ids)
        if matrix.table_zero_points is not None:
            zero_points = self._codes("table_zero_points", matrix.table_zero_points, ids)
            codes = self._add("Sub", codes, self._add("Gather", zero_points, block))
        elif matrix.bits == 4:
            # two's complement: 8 and more stand for the negative numbers
            negative = self._add("Floor", self._add("Mul", codes, self._float(1 / 8)))
            codes = self._add("Sub", codes, self._add("Mul", negative, self._float(16)))
        scales = self._add("Gather", self._add("Gather", self.like, ids, axis=1), block)
        product = self._add("Mul", codes, scales)
        rows = self._add("Transpose", product, perm=[1, 2, 0])
        replace(self.graph, self.node, self.nodes, [rows])

    def _codes(self, part: str, tensor: ir.TensorProtocol, ids: ir.Value | None) -> ir.Value:
        stored = tensor_value(self.graph, f"{self.name}.{part}", tensor)
        if self.matrix.bits == 8:
            return self._add("CastLike", self._add("Gather", stored, ids, axis=1), self.like)
        two = int64_constant(self.graph, "constant.2", 2)
        pairs = self._add("CastLike", self._add("Gather", stored, self._add("Div", ids, two), axis=1), self.like)
        high = self._add("Floor", self._add("Mul", pairs, self._float(1 / 16)))
        low = self._add("Sub", pairs, self._add("Mul", high, self._float(16)))
        odd = self._add("Cast", self._add("Mod", ids, two), to=int(ir.DataType.BOOL))
        return self._add("Where", odd, high, low)

    def _float(self, number: float) -> ir.Value:
        name = f"constant.{number:g}.float"
        return tensor_value(self.graph, name, ir.tensor(np.asarray(number, dtype=np.float32)))

    def _add(self, op_type: str, *inputs: ir.Value | None, **attributes: int | list[int]) -> ir.Value:
        number = sum(node.op_type == op_type for node in self.nodes)
        node = ir.node(op_type, inputs=inputs, attributes=attributes, name=f"{self.prefix}.{op_type}_{number}")
        output = node.outputs[0]
        output.name, output.type = node.name, ir.TensorType(_element_type(node, self.like))
        self.nodes.append(node)
        return output


def _element_type(node: ir.Node, like: ir.Value) -> ir.DataType:
    if node.op_type == "Cast":
        return ir.DataType.BOOL
    if node.op_type == "CastLike":
        return ir.DataType.FLOAT
    source = node.inputs[1] if node.op_type == "Where" else node.inputs[0]
    assert source is not None
    assert source.dtype is not None
    # the graph is float32 still, whatever the scales will be
    return source.dtype if source.dtype != like.dtype else ir.DataType.FLOAT
