"""Matrix products of 8-bit activations, one scale per token, with 8-bit weights, one scale per output feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx_ir as ir

from gemma_export.passes.quantised_matrix import is_product, other_reader
from gemma_export.passes.semantic_nodes import int64_constant, replace, replace_weights, tensor_value
from gemma_export.weights import Weight

__all__ = ["QuantiseActivations", "RowQuantised"]

_NAME = "QuantiseActivations"
_CONTRIB = "com.microsoft"
# of activations: 127 steps each way around the zero point of uint8. The x86 kernels want unsigned activations and
# signed weights: measured, unsigned weights take twice the time, signed activations seven times.
_TOP, _ZERO_POINT = 127, 128
# smallest largest |value| of a token, so that a token of zeros does not divide by zero
_SMALLEST = 1e-30


class RowQuantised(Protocol):
    """A matrix [rows, columns] with one scale per row."""

    @property
    def data(self) -> ir.TensorProtocol:
        """int8 [columns, rows]."""

    @property
    def scales(self) -> ir.TensorProtocol:
        """float32 [rows]."""


class QuantiseActivations(ir.passes.InPlacePass):
    """Integer products whose activations are quantised token by token while the graph runs.

    Before: FusedMatMul(x, W, transB=1)
    After:  scale = max(ReduceMax(Abs(x)), tiny) / 127                    [..., 1]
            codes = QuantizeLinear(x / scale)                             uint8, zero point 128, once for each x
            MatMulIntegerToFloat(codes, data, 1, scales, 128) * scale

    A token's result depends on that token alone, whatever stands beside it: batches, padding and chunks give the same
    numbers. The kernel's sums of int32 hold 66,000 input features.

    Args:
        quantise: (initializer, its lazy weight) -> the quantised matrix, or None for a weight that stays as it is.

    Precondition: `LowerLinear` ran, the graph is float32.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (MatMulIntegerToFloat).
    """

    def __init__(self, quantise: Callable[[str, Weight], RowQuantised | None]) -> None:
        super().__init__()
        self.quantise = quantise

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every product over every weight that `quantise` takes."""
        graph = model.graph
        # value -> its codes and scales: products that read one value share them
        activations: dict[int, tuple[ir.Value, ir.Value]] = {}

        def rewrite(node: ir.Node, position: int, name: str, matrix: RowQuantised) -> None:
            if not is_product(node, position, _NAME):
                raise other_reader(node, position, name, _NAME)
            x = node.inputs[0]
            assert x is not None
            if id(x) not in activations:
                activations[id(x)] = _quantised(graph, x)
            _product(graph, node, name, matrix, *activations[id(x)])

        return ir.passes.PassResult(model, replace_weights(graph, self.quantise, rewrite))


def _quantised(graph: ir.Graph, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Codes, uint8 like x, and scales, float32 [..., 1], right behind the node that makes x."""
    producer = x.producer()
    assert producer is not None
    assert x.shape is not None
    per_token = ir.Shape([*x.shape[:-1], 1])
    prefix, anchor = f"{x.name}.quantise", producer
    last_axis = int64_constant(graph, "constant.[-1]", [-1])

    def add(op_type: str, *inputs: ir.Value, shape: ir.Shape, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        nonlocal anchor
        node = ir.node(op_type, inputs=inputs, name=f"{prefix}.{op_type}")
        output = node.outputs[0]
        output.name, output.type, output.shape = node.name, ir.TensorType(dtype), shape
        graph.insert_after(anchor, node)
        anchor = node
        return output

    largest = add("ReduceMax", add("Abs", x, shape=x.shape), last_axis, shape=per_token)
    bounded = add("Max", largest, _constant(graph, "smallest", _SMALLEST, np.float32), shape=per_token)
    scale = add("Mul", bounded, _constant(graph, "step", 1 / _TOP, np.float32), shape=per_token)
    steps = add("Div", x, scale, shape=x.shape)
    codes = add("QuantizeLinear", steps, *_unit(graph), shape=x.shape, dtype=ir.DataType.UINT8)
    return codes, scale


def _product(graph: ir.Graph, node: ir.Node, name: str, matrix: RowQuantised, codes: ir.Value, scale: ir.Value) -> None:
    one, zero_point = _unit(graph)
    data, scales = (
        tensor_value(graph, f"{name}.{part}", tensor)
        for part, tensor in (("data", matrix.data), ("scales", matrix.scales))
    )
    product = ir.node(
        "MatMulIntegerToFloat",
        inputs=[codes, data, one, scales, zero_point],
        domain=_CONTRIB,
        name=str(node.name).replace(".FusedMatMul", ".MatMulIntegerToFloat"),
    )
    unscaled = product.outputs[0]
    unscaled.name, unscaled.type, unscaled.shape = product.name, node.outputs[0].type, node.outputs[0].shape
    scaled = ir.node("Mul", inputs=[unscaled, scale], name=str(node.name).replace(".FusedMatMul", ".Mul"))
    replace(graph, node, [product, scaled], scaled.outputs)


def _unit(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of the codes: the tokens' own scales are multiplied in afterwards."""
    return _constant(graph, "one", 1, np.float32), _constant(graph, "zero_point", _ZERO_POINT, np.uint8)


def _constant(graph: ir.Graph, name: str, number: float, dtype: type[np.generic]) -> ir.Value:
    return tensor_value(graph, f"activations.{name}", ir.tensor(np.asarray(number, dtype=dtype)))
