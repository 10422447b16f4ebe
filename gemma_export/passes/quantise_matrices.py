"""Matrix products and table look-ups over block-quantised weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import int64_constant, replace, replace_weights, tensor_value
from gemma_export.weights import Weight

__all__ = ["BlockQuantised", "QuantiseMatrices"]

_NAME = "QuantiseMatrices"
_CONTRIB = "com.microsoft"


class BlockQuantised(Protocol):
    """A matrix [rows, columns] in blocks along its columns."""

    @property
    def bits(self) -> int:
        """Of a code."""

    @property
    def block_size(self) -> int:
        """Columns that share a scale."""

    @property
    def rows(self) -> int:
        """Output features."""

    @property
    def columns(self) -> int:
        """Input features, without the padding of the last block."""

    @property
    def data(self) -> ir.TensorProtocol:
        """uint8 [rows, blocks, bytes of a block]."""

    @property
    def table(self) -> ir.TensorProtocol:
        """The same bytes as uint8 [rows, blocks * bytes of a block]."""

    @property
    def scales(self) -> ir.TensorProtocol:
        """[rows, blocks]."""

    @property
    def zero_points(self) -> ir.TensorProtocol | None:
        """uint8 [rows, bytes], or None for the middle of the codes."""


class QuantiseMatrices(ir.passes.InPlacePass):
    """Weights in blocks of integers, for projections, the head and the embedding table.

    Before: FusedMatMul(x, W, transB=1)
    After:  MatMulNBits(x, data, scales, zero_points)

    Before: Gather(W, ids)
    After:  GatherBlockQuantized(table, ids, scales, zero_points), cut to W's columns where the last block is padded

    Both read one weight's bytes: a table tied to the head is stored once.

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
        transposed = node.attributes.get("transB")
        if (node.domain, node.op_type, position) == (_CONTRIB, "FusedMatMul", 1) and transposed is not None:
            self._product(graph, node, name, matrix)
        elif (node.domain, node.op_type, position) == ("", "Gather", 0):
            _look_up(graph, node, name, matrix)
        else:
            raise PassError(
                f"{_NAME}: weight {name} is read by input {position} of {node.name} ({node.op_type})",
                hint="Only FusedMatMul and Gather have a quantised kernel. Report this with --debug.",
            )

    def _product(self, graph: ir.Graph, node: ir.Node, name: str, matrix: BlockQuantised) -> None:
        unknown = sorted(set(node.attributes) - {"transB"})
        if unknown:
            raise PassError(
                f"{_NAME} refuses {node.name}: MatMulNBits has no attribute {unknown[0]}",
                hint="A pass made a matrix product that cannot be quantised. Report this with --debug.",
            )
        attributes = {"bits": matrix.bits, "block_size": matrix.block_size, "K": matrix.columns, "N": matrix.rows}
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        product = ir.node(
            "MatMulNBits",
            inputs=[node.inputs[0], tensor_value(graph, f"{name}.data", matrix.data), *_levels(graph, name, matrix)],
            attributes=attributes,
            domain=_CONTRIB,
            name=str(node.name).replace(".FusedMatMul", ".MatMulNBits"),
        )
        replace(graph, node, [product], product.outputs)


def _look_up(graph: ir.Graph, node: ir.Node, name: str, matrix: BlockQuantised) -> None:
    ids = node.inputs[1]
    rows = ir.node(
        "GatherBlockQuantized",
        inputs=[tensor_value(graph, f"{name}.table", matrix.table), ids, *_levels(graph, name, matrix)],
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


def _levels(graph: ir.Graph, name: str, matrix: BlockQuantised) -> list[ir.Value]:
    levels = [tensor_value(graph, f"{name}.scales", matrix.scales)]
    if matrix.zero_points is not None:
        levels.append(tensor_value(graph, f"{name}.zero_points", matrix.zero_points))
    return levels
