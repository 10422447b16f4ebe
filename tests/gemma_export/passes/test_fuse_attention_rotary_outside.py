"""FuseAttentionRotaryOutside: rotary embeddings before an attention kernel that cannot rotate, cap or window."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    QK_NORM,
    SPEC,
    ArraySource,
    Unoptimised,
    apply,
    assert_same,
    assert_unchanged,
    count,
    deviation,
    find,
    random_arrays,
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


def _normalised() -> ir.Model:
    return semantic_model(QK_NORM, ArraySource(random_arrays(QK_NORM)))


def test_the_full_kernel_takes_softcap_window_and_lengths() -> None:
    model = _normalised()
    set_attribute(model, "Attention", "softcap", 3.0)
    apply(model, AlignRows(), FuseAttentionRotaryOutside(plain=False))
    local, everything = (find(model, f"model.layers.{layer}.self_attn.GroupQueryAttention") for layer in (0, 1))
    assert local.attributes["local_window_size"].as_int() == QK_NORM.windows[0]
    assert everything.attributes["local_window_size"].as_int() == -1
    for node in (local, everything):
        assert node.attributes["softcap"].as_float() == 3.0
        assert "do_rotary" not in node.attributes
        assert len(node.inputs) == 17
        assert node.inputs[16] is not None
        assert node.inputs[16].name == "rows.query_seqlens"
    tables = [
        rotation.inputs[2].name  # type: ignore[union-attr]
        for rotation in model.graph
        if rotation.op_type == "RotaryEmbedding"
    ]
    assert tables == ["cos_cache_local", "cos_cache_local", "cos_cache", "cos_cache"]


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_the_full_kernel_has_the_same_numbers(padding: str, softcap: float) -> None:
    semantic = _normalised()
    set_attribute(semantic, "Attention", "softcap", softcap)
    fused = apply(semantic.clone(), AlignRows(), FuseAttentionRotaryOutside(plain=False), SelectLogits(0))
    assert_same(fused, semantic, padding)


def test_only_normalised_heads_where_that_is_asked_for() -> None:
    assert_unchanged(apply(semantic_model(), AlignRows()), FuseAttentionRotaryOutside(plain=False, normalised=True))
    model = apply(_normalised(), AlignRows())
    assert FuseAttentionRotaryOutside(plain=False, normalised=True)(model).modified
    assert count(model, "GroupQueryAttention", "com.microsoft") == LAYERS


def test_padding_behind_the_context_s_end_stays_within_the_tables() -> None:
    """A row that ends at the last position of the tables, in a chunk padded to more columns than are left."""
    spec = dataclasses.replace(QK_NORM, max_position_embeddings=8)
    model = semantic_model(spec, ArraySource(random_arrays(spec)))
    apply(model, AlignRows(), FuseAttentionRotaryOutside(plain=False), SelectLogits(0))
    graph = Unoptimised(model)
    ids = np.random.default_rng(6).integers(4, spec.vocab_size, (2, 8))
    first = np.array([[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    _, past = graph.step(ids, first)
    second = np.concatenate((first, [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]), axis=1)
    logits, _ = graph.step(ids[:, :5], second, past)
    assert np.isfinite(logits[0, 0]).all()
    assert np.isfinite(logits[1]).all()
