"""Matrix products and table look-ups over block-quantised weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from gemma_export.passes.quantised_matrix import (
    QuantisedMatrix,
    is_look_up,
    is_product,
    ordered_input,
    other_reader,
    stored_values,
)
from gemma_export.passes.semantic_nodes import int64_constant, replace, replace_weights, tensor_value
from gemma_export.weights import Weight

__all__ = ["BlockQuantised", "QuantiseMatrices"]

_NAME = "QuantiseMatrices"
_CONTRIB = "com.microsoft"


class BlockQuantised(QuantisedMatrix, Protocol):
    """As the contrib kernels read it: data as uint8 [rows, blocks, bytes of a block], scales as [rows, blocks].

    Zero points are uint8 [rows, bytes].
    """

    @property
    def rows(self) -> int:
        """Output features."""

    @property
    def table(self) -> ir.TensorProtocol:
        """The data's bytes as uint8 [rows, blocks * bytes of a block]."""


class QuantiseMatrices(ir.passes.InPlacePass):
    """Weights in blocks of integers, for projections, the head and the embedding table.

    Before: FusedMatMul(x, W, transB=1)
    After:  MatMulNBits(x, data, scales, zero_points)

    Before: Gather(W, ids)
    After:  GatherBlockQuantized(table, ids, scales, zero_points), cut to W's columns where the last block is padded

    Both read one weight's bytes: a table tied to the head is stored once. Where columns are stored in another order, x
    is Gather(x, order).

    Args:
        quantise: (initializer, its lazy weight) -> the quantised matrix, or None for a weight that stays as it is.
        accuracy_level: of MatMulNBits: 4 lets the CPU quantise activations to 8 bits, block by block; 0 does not.

    Precondition: `LowerLinear` and `LowerEmbedding` ran, the graph is float32.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (MatMulNBits,
    GatherBlockQuantized).
    """

    def __init__(self, quantise: Callable[[str, Weight], BlockQuantised | None], *, accuracy_level: int) -> None:
        super().__init__()
        self.quantise, self.accuracy_level = quantise, accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every reader of every weight that `quantise` takes."""
        rewrite = functools.partial(self._rewrite, model.graph)
        return ir.passes.PassResult(model, replace_weights(model.graph, self.quantise, rewrite))

    def _rewrite(self, graph: ir.Graph, node: ir.Node, position: int, name: str, matrix: BlockQuantised) -> None:
        if is_product(node, position, _NAME):
            self._product(graph, node, name, matrix)
        elif is_look_up(node, position, _NAME):
            _look_up(graph, node, name, matrix)
        else:
            raise other_reader(node, position, name, _NAME)

    def _product(self, graph: ir.Graph, node: ir.Node, name: str, matrix: BlockQuantised) -> None:
        attributes = {"bits": matrix.bits, "block_size": matrix.block_size, "K": matrix.columns, "N": matrix.rows}
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        product = ir.node(
            "MatMulNBits",
            inputs=[ordered_input(graph, node, name, matrix), *stored_values(graph, name, matrix)],
            attributes=attributes,
            domain=_CONTRIB,
            name=str(node.name).replace(".FusedMatMul", ".MatMulNBits"),
        )
        replace(graph, node, [product], product.outputs)


def _look_up(graph: ir.Graph, node: ir.Node, name: str, matrix: BlockQuantised) -> None:
    ids = node.inputs[1]
    _, *levels = stored_values(graph, name, matrix)
    rows = ir.node(
        "GatherBlockQuantized",
        inputs=[tensor_value(graph, f"{name}.table", matrix.table), ids, *levels],
        attributes={"bits": matrix.bits, "block_size": matrix.block_size, "gather_axis": 0, "quantize_axis": 1},
        domain=_CONTRIB,
        name=str(node.name).replace(".Gather", ".GatherBlockQuantized"),
    )
    padded = -(-matrix.columns // matrix.block_size) * matrix.block_size
    if padded == matrix.columns:
        replace(graph, node, [rows], rows.outputs)
        return
    whole = rows.outputs[0]
    assert node.outputs[0].shape is not None
    whole.name, whole.type = rows.name, node.outputs[0].type
    whole.shape = ir.Shape([*node.outputs[0].shape[:-1], padded])
    ends = [int64_constant(graph, f"constant.[{number}]", [number]) for number in (0, matrix.columns, -1)]
    cut = ir.node("Slice", inputs=[whole, *ends], name=str(node.name).replace(".Gather", ".Slice"))
    replace(graph, node, [rows, cut], cut.outputs)
