"""LowerGeGLU: Gelu(tanh) and Mul."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    apply,
    assert_same,
    assert_unchanged,
    count,
    deviation,
    find,
    run_steps,
    semantic_model,
)

from gemma_export.errors import PassError
from gemma_export.passes import LowerGeGLU

_NODE = "model.layers.1.mlp.GeGLU"
_GELU = "model.layers.1.mlp.Gelu"


def test_every_geglu_is_lowered() -> None:
    model = apply(semantic_model(), LowerGeGLU())
    assert count(model, "Gelu") == count(model, "Mul") == LAYERS
    assert count(model, "GeGLU", "gemma") == 0


def test_gelu_is_of_the_gate_and_by_tanh() -> None:
    model = apply(semantic_model(), LowerGeGLU())
    gelu, product = find(model, _GELU), find(model, "model.layers.1.mlp.Mul")
    assert gelu.attributes["approximate"].value == "tanh"
    assert [tensor.name for tensor in gelu.inputs if tensor] == ["model.layers.1.mlp.gate_proj.Linear"]
    assert [tensor.name for tensor in product.inputs if tensor] == [_GELU, "model.layers.1.mlp.up_proj.Linear"]
    assert product.outputs[0].name == _NODE


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(padding: str) -> None:
    assert_same(apply(semantic_model(), LowerGeGLU()), semantic_model(), padding)


def test_the_comparison_above_notices_gate_and_up_exchanged() -> None:
    model = apply(semantic_model(), LowerGeGLU())
    gelu, product = find(model, _GELU), find(model, "model.layers.1.mlp.Mul")
    gate, up = gelu.inputs[0], product.inputs[1]
    gelu.replace_input_with(0, up)
    product.replace_input_with(1, gate)
    found, expected = (run_steps(each).real("none") for each in (model, semantic_model()))
    assert deviation(found, expected) > 1000 * tolerances.FP32_LOGITS


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_the_contrib_kernel_has_the_same_numbers(padding: str) -> None:
    model = apply(semantic_model(), LowerGeGLU(contrib=True))
    assert count(model, "FastGelu", "com.microsoft") == LAYERS
    assert count(model, "Gelu") == count(model, "GeGLU", "gemma") == 0
    assert_same(model, semantic_model(), padding)


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), LowerGeGLU()), LowerGeGLU())


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, _NODE).attributes["approximate"] = ir.AttrString("approximate", "none")
    with pytest.raises(
        PassError, match=rf"LowerGeGLU refuses {_NODE} \(GeGLU\): unknown attribute approximate = 'none'"
    ):
        LowerGeGLU()(model)


def test_ensures_that_no_geglu_is_left() -> None:
    with pytest.raises(PassError, match=f"LowerGeGLU: {LAYERS} GeGLU nodes left"):
        LowerGeGLU().ensures(semantic_model())
