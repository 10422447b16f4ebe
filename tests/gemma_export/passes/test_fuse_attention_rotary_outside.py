"""FuseAttentionRotaryOutside: rotary embeddings before an attention kernel that cannot rotate, cap or window."""

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
from gemma_export.passes import AlignRows, FuseAttentionRotaryOutside, SelectLogits

_ATTENTION = "model.layers.1.self_attn.Attention"
_FUSED = "model.layers.1.self_attn.GroupQueryAttention"
_REFUSES = f"FuseAttentionRotaryOutside refuses {_ATTENTION} \\(Attention\\): "


def _fuse(model: ir.Model) -> ir.Model:
    return apply(model, AlignRows(), FuseAttentionRotaryOutside())


def test_three_kernels_a_layer() -> None:
    model = semantic_model()
    linears = count(model, "Linear", "gemma")
    _fuse(model)
    assert count(model, "GroupQueryAttention", "com.microsoft") == LAYERS
    assert count(model, "RotaryEmbedding", "com.microsoft") == 2 * LAYERS
    assert count(model, "Attention", "gemma") == 0
    # query, key and value stay apart
    assert count(model, "Linear", "gemma") == linears


def test_inputs_and_attributes() -> None:
    model = semantic_model()
    set_attribute(model, "Attention", "scale", 0.75)
    node = find(_fuse(model), _FUSED)
    assert [tensor.name if tensor else None for tensor in node.inputs] == [
        "model.layers.1.self_attn.query_rotary",
        "model.layers.1.self_attn.key_rotary",
        "model.layers.1.self_attn.v_proj.Linear",
        "past_key_values.1.key",
        "past_key_values.1.value",
        "rows.seqlens_k",
        "rows.total_sequence_length",
    ]
    assert {name: found.value for name, found in node.attributes.items()} == {
        "num_heads": SPEC.num_attention_heads,
        "kv_num_heads": SPEC.num_key_value_heads,
        "scale": 0.75,
    }


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("scale", [0.25, 0.75])
def test_same_numbers(padding: str, scale: float) -> None:
    semantic = semantic_model()
    set_attribute(semantic, "Attention", "scale", scale)
    assert_same(apply(_fuse(semantic.clone()), SelectLogits(0)), semantic, padding)


def test_the_comparison_above_notices_keys_without_rotation() -> None:
    model = apply(_fuse(semantic_model()), SelectLogits(0))
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            rotation = node.inputs[1]
            assert rotation is not None
            node.replace_input_with(1, rotation.producer().inputs[0])  # type: ignore[union-attr]
    found, expected = (run_steps(each).real("none") for each in (model, semantic_model()))
    assert deviation(found, expected) > 1000 * tolerances.FP32_LOGITS


@pytest.mark.parametrize(("name", "number"), [("softcap", 50.0), ("window", 4096)])
def test_refuses_what_the_kernel_would_ignore(name: str, number: float) -> None:
    model = apply(semantic_model(), AlignRows())
    find(model, _ATTENTION).attributes[name] = (
        ir.AttrInt64(name, number) if isinstance(number, int) else ir.AttrFloat32(name, number)
    )
    with pytest.raises(PassError, match=_REFUSES + f"its kernel would ignore {name} = {number}"):
        FuseAttentionRotaryOutside()(model)


def test_refuses_an_unknown_attribute() -> None:
    model = apply(semantic_model(), AlignRows())
    find(model, _ATTENTION).attributes["causal"] = ir.AttrInt64("causal", 0)
    with pytest.raises(PassError, match=_REFUSES + "unknown attribute causal = 0"):
        FuseAttentionRotaryOutside()(model)


def test_refuses_another_mask() -> None:
    model = apply(semantic_model(), AlignRows())
    find(model, _ATTENTION).replace_input_with(5, model.graph.inputs[0])
    with pytest.raises(PassError, match=_REFUSES + "its mask is input_ids, expected attention_mask"):
        FuseAttentionRotaryOutside()(model)


def test_needs_aligned_rows() -> None:
    with pytest.raises(PassError, match=r"no value called 'rows\.seqlens_k'"):
        FuseAttentionRotaryOutside()(semantic_model())


def test_second_run_changes_nothing() -> None:
    model = apply(_fuse(semantic_model()), SelectLogits(0))
    assert_unchanged(model, FuseAttentionRotaryOutside())


def test_ensures_that_no_attention_is_left() -> None:
    with pytest.raises(PassError, match=f"{LAYERS} Attention nodes left"):
        FuseAttentionRotaryOutside().ensures(semantic_model())
