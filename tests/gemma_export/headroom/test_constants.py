"""The largest constant of a graph: masks and factors, not weights, not integers, not infinity."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from gemma_export.headroom import largest_constant
from gemma_export.weights import Constant, WeightTensor


def initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=name, const_value=tensor)
    value.dtype, value.shape = tensor.dtype, tensor.shape
    return value


def model(*, initializers: list[ir.Value], attributes: list[np.ndarray]) -> ir.Model:
    nodes = [
        ir.node("Constant", inputs=[], attributes={"value": ir.tensor(array)}, name=f"constant{number}")
        for number, array in enumerate(attributes)
    ]
    graph = ir.Graph([], [], nodes=nodes, initializers=initializers, opset_imports={"": 23}, name="graph")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(("attributes", "expected"), [([], 50.0), ([np.array(-65504.0, np.float16)], 65504.0)])
def test_of_initializers_and_attributes(attributes: list[np.ndarray], expected: float) -> None:
    weight = Constant(torch.full((2, 2), 1e9), "weight")
    initializers = [
        initializer("factor", ir.tensor(np.float32([45.25, -50.0]), name="factor")),
        initializer("mask", ir.tensor(np.float32([-np.inf, 0.0]), name="mask")),
        initializer("limit", ir.tensor(np.int64([1 << 40]), name="limit")),
        initializer("weight", WeightTensor(weight, "weight")),
    ]
    assert largest_constant(model(initializers=initializers, attributes=attributes)) == expected


def test_a_mask_that_float16_does_not_hold_is_seen() -> None:
    lowest = np.finfo(np.float32).min
    found = largest_constant(model(initializers=[], attributes=[np.array([0.0, lowest], np.float32)]))
    assert found == pytest.approx(3.4e38, rel=0.01)


def test_of_no_constants() -> None:
    assert largest_constant(model(initializers=[], attributes=[])) == 0.0
