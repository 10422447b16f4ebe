"""FoldInputOrder: the order of a down projection's features moves into gate and up, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quantised_checkpoints import Layout, Quantised, write

from gemma_export.checkpoint import architecture_view, open_checkpoint, read_quantisation
from gemma_export.families import FAMILIES
from gemma_export.passes import FoldInputOrder
from gemma_export.passes.semantic_nodes import nodes_of
from gemma_export.stored_codes import stored_matrix
from gemma_export.tracing import bind_weights, trace_decoder
from gemma_export.weights import WeightTensor

_MLP = "model.layers.0.mlp"


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return write(tmp_path_factory.mktemp("fold") / "checkpoint", Layout(desc_act=True, symmetric=False))


def _semantic(quantised: Quantised) -> ir.Model:
    opened = open_checkpoint(quantised.directory)
    config = {key: value for key, value in opened.config.items() if key != "quantization_config"}
    family = FAMILIES["gemma"]
    spec, _ = family.parse_config(config)
    assert opened.source is not None
    view = architecture_view(opened.source, read_quantisation(opened.config), family.tensor_shapes(spec))
    model = trace_decoder(family, spec)
    bind_weights(model, family, spec, view)
    return model


def _weight(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[f"{_MLP}.{name}.weight"].const_value
    assert isinstance(tensor, WeightTensor)
    return tensor.numpy()


def _has_order(model: ir.Model, name: str) -> bool:
    tensor = model.graph.initializers[f"{_MLP}.{name}.weight"].const_value
    assert isinstance(tensor, WeightTensor)
    matrix = stored_matrix(tensor.weight, name)
    assert matrix is not None
    return matrix.order() is not None


def test_rows_and_columns_move_together_once(quantised: Quantised) -> None:
    model = _semantic(quantised)
    assert _has_order(model, "down_proj")
    assert FoldInputOrder()(model).modified
    order = np.argsort(quantised.matrices[f"{_MLP}.down_proj"].groups, kind="stable")
    assert (order != np.arange(len(order))).any()
    means = {name: quantised.matrices[f"{_MLP}.{name}"].dequantised() for name in ("gate_proj", "up_proj", "down_proj")}
    np.testing.assert_array_equal(_weight(model, "gate_proj"), means["gate_proj"][order])
    np.testing.assert_array_equal(_weight(model, "up_proj"), means["up_proj"][order])
    np.testing.assert_array_equal(_weight(model, "down_proj"), means["down_proj"][:, order])
    assert not _has_order(model, "down_proj")
    # of their own inputs, which nothing can absorb
    assert _has_order(model, "gate_proj")
    assert not FoldInputOrder()(model).modified


def test_features_that_others_read_stay(quantised: Quantised) -> None:
    model = _semantic(quantised)
    for node in nodes_of(model, "GeGLU"):
        up = node.inputs[1]
        assert up is not None
        extra = ir.node("Identity", inputs=[up], name=f"{node.name}.reader")
        model.graph.append(extra)
    assert not FoldInputOrder()(model).modified
    np.testing.assert_array_equal(_weight(model, "up_proj"), quantised.matrices[f"{_MLP}.up_proj"].dequantised())
