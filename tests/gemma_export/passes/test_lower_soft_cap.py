"""LowerSoftCap: Div, Tanh and Mul behind the head."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    PADDINGS,
    POST_NORM,
    ArraySource,
    Unoptimised,
    apply,
    assert_unchanged,
    batch,
    count,
    deviation,
    random_arrays,
    semantic_model,
)

from gemma_export.errors import PassError
from gemma_export.passes import LowerSoftCap, SelectColumns


def _model() -> ir.Model:
    return semantic_model(POST_NORM, ArraySource(random_arrays(POST_NORM)))


def test_three_operators() -> None:
    model = apply(_model(), LowerSoftCap())
    assert count(model, "Div") == count(model, "Tanh") == count(model, "Mul") == 1
    assert count(model, "SoftCap", "gemma") == 0
    assert model.graph.outputs[0].name == "logits"


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(padding: str) -> None:
    ids, mask = batch(padding)
    real = mask.astype(bool)
    expected, _ = Unoptimised(_model()).step(ids, mask)
    found, _ = Unoptimised(apply(_model(), LowerSoftCap())).step(ids, mask)
    assert deviation(found[real], expected[real]) <= tolerances.FP32_LOGITS
    # the bound bends: dropping it would show
    assert abs(expected).max() > 0.9 * POST_NORM.final_softcap


def test_positions_are_chosen_before_it() -> None:
    """The shapes of the values between the head and the output follow what is kept."""
    model = apply(_model(), LowerSoftCap(), SelectColumns(1))
    (tanh,) = [node for node in model.graph if node.op_type == "Tanh"]
    for value in (tanh.inputs[0], tanh.outputs[0], model.graph.outputs[0]):
        assert value is not None
        assert value.shape is not None
        assert list(value.shape)[1] == 1


def test_a_bound_of_nothing_is_refused() -> None:
    model = _model()
    (node,) = [node for node in model.graph if node.op_type == "SoftCap"]
    node.attributes["cap"] = ir.AttrFloat32("cap", 0.0)
    with pytest.raises(PassError, match="cap is 0, expected a number above 0"):
        LowerSoftCap()(model)


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(_model(), LowerSoftCap()), LowerSoftCap())


def test_ensures_that_none_is_left() -> None:
    with pytest.raises(PassError, match="LowerSoftCap: 1 SoftCap nodes left"):
        LowerSoftCap().ensures(_model())
