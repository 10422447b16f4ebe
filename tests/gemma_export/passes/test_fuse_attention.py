"""FuseGroupQueryAttention: Attention and its three projections by one projection and one kernel."""

from __future__ import annotations

import numpy as np
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
    tap,
    traced_model,
    value,
)

from gemma_export.errors import PassError
from gemma_export.passes import AlignRows, FuseGroupQueryAttention, SelectLogits

_ATTENTION = "model.layers.1.self_attn.Attention"
_FUSED = "model.layers.1.self_attn.GroupQueryAttention"
_REFUSES = f"FuseGroupQueryAttention refuses {_ATTENTION} \\(Attention\\): "


def _fuse(model: ir.Model) -> ir.Model:
    return apply(model, AlignRows(), FuseGroupQueryAttention())


def test_one_kernel_and_one_projection_a_layer() -> None:
    model = semantic_model()
    linears = count(model, "Linear", "gemma")
    _fuse(model)
    assert count(model, "GroupQueryAttention", "com.microsoft") == LAYERS
    assert count(model, "Attention", "gemma") == 0
    assert count(model, "Linear", "gemma") == linears - 2 * LAYERS


def test_packed_weight_is_query_key_value() -> None:
    model = semantic_model()
    parts = [
        model.graph.initializers[f"model.layers.1.self_attn.{part}_proj.weight"].const_value.numpy() for part in "qkv"
    ]
    initializers = _fuse(model).graph.initializers
    packed = initializers["model.layers.1.self_attn.qkv_proj.weight"]
    assert packed.shape == [SPEC.query_size + 2 * SPEC.key_value_size, SPEC.hidden_size]
    np.testing.assert_array_equal(packed.const_value.numpy(), np.concatenate(parts))
    separate = (".q_proj.weight", ".k_proj.weight", ".v_proj.weight")
    assert not [name for name in initializers if name.endswith(separate)]


def test_inputs_stand_where_the_kernel_reads_them() -> None:
    node = find(_fuse(semantic_model()), _FUSED)
    assert [tensor.name if tensor else None for tensor in node.inputs] == [
        "model.layers.1.self_attn.qkv_proj.Linear",
        None,
        None,
        "past_key_values.1.key",
        "past_key_values.1.value",
        "rows.seqlens_k",
        "rows.total_sequence_length",
        "cos_cache",
        "sin_cache",
        *[None] * 7,
        "rows.query_seqlens",
    ]
    assert [tensor.name for tensor in node.outputs] == [_ATTENTION, "present.1.key", "present.1.value"]


def test_every_attribute_is_carried_over() -> None:
    model = semantic_model()
    for name, number in (("scale", 0.75), ("softcap", 1.5), ("window", 3)):
        set_attribute(model, "Attention", name, number)
    attributes = {name: found.value for name, found in find(_fuse(model), _FUSED).attributes.items()}
    assert attributes == {
        "num_heads": SPEC.num_attention_heads,
        "kv_num_heads": SPEC.num_key_value_heads,
        "scale": 0.75,
        "softcap": 1.5,
        "do_rotary": 1,
        "rotary_interleaved": 0,
        "local_window_size": 3,
    }


def test_absent_softcap_and_window_mean_none() -> None:
    model = semantic_model()
    del find(model, _ATTENTION).attributes["softcap"]
    del find(model, _ATTENTION).attributes["window"]
    attributes = find(_fuse(model), _FUSED).attributes
    assert attributes["softcap"].value == 0.0
    assert attributes["local_window_size"].value == -1


def test_each_layer_keeps_its_own_window() -> None:
    model = semantic_model()
    find(model, _ATTENTION).attributes["window"] = ir.AttrInt64("window", 4)
    _fuse(model)
    assert find(model, _FUSED).attributes["local_window_size"].value == 4
    assert find(model, _FUSED.replace(".1.", ".0.")).attributes["local_window_size"].value == -1


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize(
    ("scale", "softcap", "window"), [(0.25, 0.0, 0), (0.75, 0.0, 0), (0.25, 0.5, 0), (0.25, 0.0, 3), (0.25, 0.5, 1)]
)
def test_same_numbers(padding: str, scale: float, softcap: float, window: int) -> None:
    semantic = semantic_model()
    for name, number in (("scale", scale), ("softcap", softcap), ("window", window)):
        set_attribute(semantic, "Attention", name, number)
    fused = apply(semantic.clone(), AlignRows(), FuseGroupQueryAttention(), SelectLogits(0))
    assert_same(fused, semantic, padding)


@pytest.mark.parametrize(("name", "number"), [("scale", 0.75), ("softcap", 0.5), ("window", 3)])
def test_the_comparison_above_notices_a_lost_attribute(name: str, number: float) -> None:
    changed = semantic_model()
    set_attribute(changed, "Attention", name, number)
    found, expected = (run_steps(model).real("none") for model in (changed, semantic_model()))
    assert deviation(found, expected) > 1000 * tolerances.FP32_LOGITS


def test_second_run_changes_nothing() -> None:
    model = apply(_fuse(semantic_model()), SelectLogits(0))
    assert_unchanged(model, FuseGroupQueryAttention())


def test_needs_aligned_rows() -> None:
    with pytest.raises(PassError, match=r"no value called 'rows\.query_lengths'"):
        FuseGroupQueryAttention()(semantic_model())


def _refused(model: ir.Model, reason: str) -> None:
    apply(model, AlignRows())
    with pytest.raises(PassError, match=_REFUSES + reason):
        FuseGroupQueryAttention()(model)


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


def test_refuses_no_mask() -> None:
    model = semantic_model()
    find(model, _ATTENTION).replace_input_with(5, None)
    _refused(model, "its mask is None, expected attention_mask")


def test_refuses_projections_of_different_values() -> None:
    model = semantic_model()
    find(model, "model.layers.1.self_attn.k_proj.Linear").replace_input_with(0, value(model, "layers.0.mlp_residual"))
    _refused(model, "its projections read different values")


def test_refuses_what_is_no_projection() -> None:
    model = semantic_model()
    normed = value(model, "model.layers.1.input_layernorm.RMSNorm")
    find(model, _ATTENTION).replace_input_with(2, normed)
    _refused(model, r"input model\.layers\.1\.input_layernorm\.RMSNorm is not a Linear projection")


def test_refuses_a_shared_projection() -> None:
    """Values equal to keys, as some later models have them: packing would lose the sharing."""
    model = semantic_model()
    find(model, _ATTENTION).replace_input_with(2, value(model, "model.layers.1.self_attn.k_proj.Linear"))
    _refused(model, r"projection model\.layers\.1\.self_attn\.k_proj\.Linear is read by others too")


def test_refuses_a_projection_that_is_a_graph_output() -> None:
    model = tap(semantic_model(), "model.layers.1.self_attn.q_proj.Linear")
    _refused(model, r"projection model\.layers\.1\.self_attn\.q_proj\.Linear is read by others too")


def test_refuses_unbound_weights() -> None:
    model = apply(traced_model(), AlignRows())
    with pytest.raises(
        PassError,
        match=r"refuses model\.layers\.0\.self_attn\.q_proj\.Linear .*"
        r"input model\.layers\.0\.self_attn\.q_proj\.weight is not a bound weight",
    ):
        FuseGroupQueryAttention()(model)


def test_ensures_that_no_attention_is_left() -> None:
    with pytest.raises(PassError, match=f"{LAYERS} Attention nodes left, first {_ATTENTION.replace('.1.', '.0.')}"):
        FuseGroupQueryAttention().ensures(semantic_model())
