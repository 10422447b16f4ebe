"""LowerLinearToMatMul: MatMul over a transposition of the stored weight."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import (
    PADDINGS,
    SPEC,
    UNTIED,
    apply,
    assert_same,
    assert_unchanged,
    count,
    find,
    semantic_model,
    traced_model,
)

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.passes import LowerLinearToMatMul

_NODE = "model.layers.1.mlp.down_proj.Linear"


def test_every_projection_and_the_head() -> None:
    model = semantic_model()
    linears = count(model, "Linear", "gemma")
    apply(model, LowerLinearToMatMul())
    assert count(model, "MatMul") == count(model, "Transpose") == linears
    assert count(model, "Linear", "gemma") == 0


def test_the_weight_stays_as_stored() -> None:
    model = apply(semantic_model(), LowerLinearToMatMul())
    transpose = find(model, "model.layers.1.mlp.down_proj.Transpose")
    (stored,) = transpose.inputs
    assert stored is model.graph.initializers["model.layers.1.mlp.down_proj.weight"]
    assert stored.shape == [SPEC.hidden_size, SPEC.intermediate_size]
    assert transpose.outputs[0].shape == [SPEC.intermediate_size, SPEC.hidden_size]
    assert transpose.attributes["perm"].value == (1, 0)
    assert find(model, "model.layers.1.mlp.down_proj.MatMul").outputs[0].name == _NODE


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
def test_same_numbers(spec: DecoderSpec, padding: str) -> None:
    assert_same(apply(semantic_model(spec), LowerLinearToMatMul()), semantic_model(spec), padding)


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), LowerLinearToMatMul()), LowerLinearToMatMul())


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, _NODE).attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
    with pytest.raises(PassError, match=rf"LowerLinearToMatMul refuses {_NODE} \(Linear\): unknown attribute alpha"):
        LowerLinearToMatMul()(model)


def test_refuses_unbound_weights() -> None:
    with pytest.raises(PassError, match="is not a bound weight"):
        LowerLinearToMatMul()(traced_model())


def test_refuses_an_input_without_a_type() -> None:
    model = semantic_model()
    source = find(model, _NODE).inputs[0]
    assert source is not None
    source.type = None
    with pytest.raises(PassError, match="its input has no type"):
        LowerLinearToMatMul()(model)


def test_ensures_that_no_linear_is_left() -> None:
    with pytest.raises(PassError, match="Linear nodes left"):
        LowerLinearToMatMul().ensures(semantic_model())
