"""The constants that a graph holds besides its weights: embedding factor, mask values, softcaps."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.weights import WeightTensor

__all__ = ["largest_constant"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def largest_constant(model: ir.Model) -> float:
    """The largest finite |constant| of a finished graph; minus infinity, which masks may use, fits every type."""
    largest = 0.0
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [
        attribute.as_tensor()
        for node in model.graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    ]
    for tensor in tensors:
        if tensor is None or isinstance(tensor, WeightTensor) or tensor.dtype not in _FLOATS:
            continue
        for value in tensor.numpy().astype("float64").reshape(-1).tolist():
            if abs(value) != float("inf"):
                largest = max(largest, abs(value))
    return largest
