"""LowerAttention: the standard RotaryEmbedding and Attention, one mask for each distinct window."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    SPEC,
    apply,
    assert_same,
    assert_unchanged,
    count,
    deviation,
    find,
    run_steps,
    semantic_model,
    set_attribute,
)

from gemma_export.errors import PassError
from gemma_export.passes import LowerAttention

_ATTENTION = "model.layers.1.self_attn.Attention"
_REFUSES = f"LowerAttention refuses {_ATTENTION} \\(Attention\\): "


def test_three_nodes_a_layer_and_one_prelude() -> None:
    model = apply(semantic_model(), LowerAttention())
    assert count(model, "Attention") == LAYERS
    assert count(model, "RotaryEmbedding") == 2 * LAYERS
    assert count(model, "Attention", "gemma") == 0
    # positions and mask are computed once, however many layers there are
    assert count(model, "CumSum") == count(model, "Range") == count(model, "LessOrEqual") == 1
    assert count(model, "Less") == 0


def test_inputs_and_attributes() -> None:
    model = semantic_model()
    for name, number in (("scale", 0.75), ("softcap", 1.5), ("window", 3)):
        set_attribute(model, "Attention", name, number)
    node = find(apply(model, LowerAttention()), _ATTENTION)
    assert [tensor.name for tensor in node.inputs if tensor] == [
        "model.layers.1.self_attn.query_rotary",
        "model.layers.1.self_attn.key_rotary",
        "model.layers.1.self_attn.v_proj.Linear",
        "attention.visible_window_3",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert [tensor.name for tensor in node.outputs] == [_ATTENTION, "present.1.key", "present.1.value"]
    assert {name: found.value for name, found in node.attributes.items()} == {
        "q_num_heads": SPEC.num_attention_heads,
        "kv_num_heads": SPEC.num_key_value_heads,
        "scale": 0.75,
        "softcap": 1.5,
    }


def test_each_window_has_its_own_mask() -> None:
    model = semantic_model()
    find(model, _ATTENTION).attributes["window"] = ir.AttrInt64("window", 4)
    apply(model, LowerAttention())
    masks = [node.inputs[3] for node in model.graph if node.op_type == "Attention"]
    assert [mask.name for mask in masks if mask] == ["attention.visible", "attention.visible_window_4"]


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize(
    ("scale", "softcap", "window"), [(0.25, 0.0, 0), (0.75, 0.0, 0), (0.25, 0.5, 0), (0.25, 0.0, 3), (0.25, 0.5, 1)]
)
def test_same_numbers(padding: str, scale: float, softcap: float, window: int) -> None:
    semantic = semantic_model()
    for name, number in (("scale", scale), ("softcap", softcap), ("window", window)):
        set_attribute(semantic, "Attention", name, number)
    assert_same(apply(semantic.clone(), LowerAttention()), semantic, padding)


def test_the_comparison_above_notices_a_mask_of_another_window() -> None:
    models = [semantic_model(), semantic_model()]
    for model, window in zip(models, (3, 4), strict=True):
        set_attribute(model, "Attention", "window", window)
    found, expected = (run_steps(apply(model, LowerAttention())).real("none") for model in models)
    assert deviation(found, expected) > 1000 * tolerances.FP32_LOGITS


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), LowerAttention()), LowerAttention())


def _refused(model: ir.Model, reason: str) -> None:
    with pytest.raises(PassError, match=_REFUSES + reason):
        LowerAttention()(model)


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, _ATTENTION).attributes["attention_bias"] = ir.AttrFloat32("attention_bias", 0.5)
    _refused(model, r"unknown attribute attention_bias = 0\.5")


@pytest.mark.parametrize("name", ["num_heads", "kv_num_heads", "scale"])
def test_refuses_a_missing_attribute(name: str) -> None:
    model = semantic_model()
    del find(model, _ATTENTION).attributes[name]
    _refused(model, f"attribute {name} is missing")


def test_refuses_another_mask() -> None:
    model = semantic_model()
    find(model, _ATTENTION).replace_input_with(5, model.graph.inputs[0])
    _refused(model, "its mask is input_ids, expected attention_mask")


def test_refuses_a_key_without_a_type() -> None:
    model = semantic_model()
    key = find(model, _ATTENTION).inputs[1]
    assert key is not None
    key.type = None
    _refused(model, "its key has no type")


def test_ensures_that_no_attention_is_left() -> None:
    with pytest.raises(PassError, match=f"{LAYERS} Attention nodes left"):
        LowerAttention().ensures(semantic_model())
