"""A bfloat16 graph with its rounded numbers in float32: what bfloat16 weights cost, where no bfloat16 kernel runs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

__all__ = ["widen_bfloat16"]


def widen_bfloat16(model: ir.Model) -> ir.Model:
    """The same graph with every bfloat16 tensor in float32.

    Weights keep their bfloat16 values, activations are computed in float32: the drift that is left is the weights'
    alone. onnxruntime's CPU provider has no bfloat16 kernels, so this is what can be measured without CUDA.

    Args:
        model: a graph, its weights readable; it is not changed.

    Returns:
        A copy with float32 weights in memory.
    """
    wide = model.clone()
    for tensor in wide.graph.initializers.values():
        constant = tensor.const_value
        if constant is not None and constant.dtype == ir.DataType.BFLOAT16:
            array = np.asarray(constant.numpy()).view(ml_dtypes.bfloat16).astype(np.float32)
            tensor.const_value = ir.tensor(array.reshape(tuple(constant.shape.numpy())), name=tensor.name)
    values = [*wide.graph.inputs, *wide.graph.initializers.values()]
    values += [value for node in wide.graph for value in node.outputs]
    for value in values:
        if value.dtype == ir.DataType.BFLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in wide.graph:
        # rows of rotary embedding are computed in float32 and rounded
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == int(ir.DataType.BFLOAT16):
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    return wide
