"""One floating-point type for a whole graph: fp32, fp16 and bf16 are this with another name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from gemma_export.errors import NonFiniteError, PassError
from gemma_export.weights import Cast, Concat, Transpose, Weight, WeightTensor

__all__ = ["convert_floats", "sink_cast"]

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ONNX = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def convert_floats(model: ir.Model, dtype: str) -> None:
    """Gives every float32 value of a lowered graph another floating-point type, in place.

    Args:
        model: a lowered graph: no explicit casts to float32. Function bodies stay: they take any type.
        dtype: "float32", "float16" or "bfloat16".

    Raises:
        PassError: the graph holds a cast to float32, whose meaning this would change.
        NonFiniteError: a constant of the graph does not fit the type.
    """
    element = _ONNX[dtype]
    for node in model.graph:
        target = node.attributes.get("to")
        if node.op_type == "Cast" and target is not None and target.value == ir.DataType.FLOAT:
            raise PassError(
                f"{node.name} casts to float32: its graph cannot take {dtype} as a whole", hint="Report this bug."
            )
        for value in node.outputs:
            _retype(value, element)
    for value in model.graph.inputs:
        _retype(value, element)
    for value in model.graph.initializers.values():
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        if value.dtype == element and not isinstance(value.const_value, WeightTensor):
            # constants, and scales of quantised weights, which are lazy: nothing to cast
            continue
        if isinstance(value.const_value, WeightTensor):
            weight = sink_cast(value.const_value.weight, _TORCH[dtype])
            value.const_value = WeightTensor(weight, value.name)
        else:
            value.const_value = _cast_constant(str(value.name), value.const_value.numpy(), element)
        value.type = ir.TensorType(element)


def sink_cast(weight: Weight, dtype: torch.dtype) -> Weight:
    """The same expression with one cast, as near to the stored tensor as the value allows.

    Layout changes commute with a cast; arithmetic (1 + w, w * 2^-k) does not: it stays in float32, its result is cast.
    """
    if isinstance(weight, Transpose):
        return Transpose(sink_cast(weight.weight, dtype))
    if isinstance(weight, Concat):
        return Concat(tuple(sink_cast(part, dtype) for part in weight.weights))
    if isinstance(weight, Cast) and weight.dtype == torch.float32:
        # binding's widening to float32 is exact, so casting the stored values directly gives the same numbers
        return Cast(weight.weight, dtype)
    return Cast(weight, dtype)


def _retype(value: ir.Value, element: ir.DataType) -> None:
    if value.dtype == ir.DataType.FLOAT:
        value.type = ir.TensorType(element)


def _cast_constant(name: str, array: np.ndarray, element: ir.DataType) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):
        cast = array.astype(element.numpy())
    if not np.isfinite(cast.astype(np.float32)).all():
        raise NonFiniteError(
            f"constant {name}: {array.tolist()} does not fit {element.name}",
            hint="Export with --fp32: this architecture's constants exceed the range of the chosen precision.",
        )
    return ir.tensor(cast)
