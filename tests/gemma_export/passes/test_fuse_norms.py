"""FuseNorms: RMSNorm, and the residual add before it, by onnxruntime's kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import (
    LAYERS,
    PADDINGS,
    ArraySource,
    apply,
    assert_same,
    assert_unchanged,
    batch,
    count,
    find,
    random_arrays,
    run_outputs,
    semantic_model,
    tap,
    traced_model,
    value,
)

from gemma_export.errors import PassError
from gemma_export.passes import FuseNorms

_CONTRIB = "com.microsoft"
_SKIP = "SkipSimplifiedLayerNormalization"
_NORM = "model.layers.1.post_attention_layernorm.RMSNorm"
_FINAL = "model.norm.RMSNorm"
_LAST_SUM = f"layers.{LAYERS - 1}.mlp_residual"


def _counts(model: ir.Model) -> tuple[int, int, int]:
    return count(model, _SKIP, _CONTRIB), count(model, "SimplifiedLayerNormalization"), count(model, "Add")


def test_every_norm_is_fused_and_all_but_the_first_take_their_add() -> None:
    model = apply(semantic_model(), FuseNorms())
    assert _counts(model) == (2 * LAYERS, 1, 0)
    assert count(model, "RMSNorm", "gemma") == count(model, "ResidualAdd", "gemma") == 0


def test_sum_is_the_fourth_output_and_keeps_its_name() -> None:
    model = apply(semantic_model(), FuseNorms())
    node = find(model, _NORM.replace(".RMSNorm", f".{_SKIP}"))
    assert [tensor.name for tensor in node.outputs] == [_NORM, "", "", "layers.1.attn_residual"]
    assert [tensor.name for tensor in node.inputs if tensor] == [
        "layers.0.mlp_residual",
        "model.layers.1.self_attn.o_proj.Linear",
        "model.layers.1.post_attention_layernorm.gain",
    ]


def test_gain_is_one_plus_weight_in_float32() -> None:
    arrays = random_arrays()
    initializers = apply(semantic_model(source=ArraySource(arrays)), FuseNorms()).graph.initializers
    for name in ("model.norm", "model.layers.0.input_layernorm"):
        gain = initializers[f"{name}.gain"].const_value.numpy()
        assert gain.dtype == np.float32
        np.testing.assert_array_equal(gain, np.float32(1) + arrays[f"{name}.weight"])
        assert f"{name}.weight" not in initializers


@pytest.mark.parametrize("name", ["model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm"])
def test_epsilon_is_carried_over(name: str) -> None:
    model = semantic_model()
    find(model, f"{name}.RMSNorm").attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.125)
    fused = value(apply(model, FuseNorms()), f"{name}.RMSNorm").producer()
    assert fused is not None
    assert fused.attributes["epsilon"].value == 0.125


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(padding: str) -> None:
    assert_same(apply(semantic_model(), FuseNorms()), semantic_model(), padding)


@pytest.mark.parametrize("epsilon", [0.125, 4.0])
def test_same_numbers_with_an_epsilon_that_matters(epsilon: float) -> None:
    semantic = semantic_model()
    for node in semantic.graph:
        if node.op_type == "RMSNorm":
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
    assert_same(apply(semantic.clone(), FuseNorms()), semantic, "none")


def test_sum_without_a_norm_stays_an_add() -> None:
    semantic = semantic_model()
    find(semantic, _FINAL).replace_input_with(0, value(semantic, "layers.0.mlp_residual"))
    tap(semantic, _LAST_SUM)
    fused = apply(semantic.clone(), FuseNorms())
    # the first layer's sum now serves two norms: one takes the add, the other reads the sum
    assert _counts(fused) == (2 * LAYERS - 1, 2, 1)
    assert find(fused, _LAST_SUM).op_type == "Add"
    assert_same(fused, semantic, "none")
    found, expected = (run_outputs(model, [_LAST_SUM], *batch("none"))[0] for model in (fused, semantic))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_sum_that_is_read_before_its_norm_stays_in_order() -> None:
    semantic = semantic_model()
    add = find(semantic, _LAST_SUM)
    negated = ir.node("Neg", inputs=[add.outputs[0]], name="negated")
    negated.outputs[0].name, negated.outputs[0].type = "negated", add.outputs[0].type
    semantic.graph.insert_after(add, [negated])
    tap(semantic, "negated")
    assert_same(apply(semantic.clone(), FuseNorms()), semantic, "none")


def test_sum_that_is_a_graph_output_stays_one() -> None:
    model = apply(tap(semantic_model(), _LAST_SUM), FuseNorms())
    assert _counts(model) == (2 * LAYERS, 1, 0)
    assert model.graph.outputs[-1] is value(model, _LAST_SUM)


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), FuseNorms()), FuseNorms())


def test_second_run_leaves_even_unused_initializers() -> None:
    model = apply(semantic_model(), FuseNorms())
    model.graph.register_initializer(ir.Value(name="unused", const_value=ir.tensor([1])))
    assert_unchanged(model, FuseNorms())


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, _NORM).attributes["axis"] = ir.AttrInt64("axis", -2)
    with pytest.raises(PassError, match=rf"FuseNorms refuses {_NORM} \(RMSNorm\): unknown attribute axis = -2"):
        FuseNorms()(model)


def test_refuses_a_missing_epsilon() -> None:
    model = semantic_model()
    del find(model, _NORM).attributes["epsilon"]
    with pytest.raises(PassError, match=f"refuses {_NORM} .*attribute epsilon is missing"):
        FuseNorms()(model)


def test_refuses_an_untyped_input() -> None:
    model = semantic_model()
    value(model, "layers.1.attn_residual").type = None
    with pytest.raises(PassError, match=f"refuses {_NORM} .*its input has no type"):
        FuseNorms()(model)


def test_refuses_unbound_weights() -> None:
    name = r"model\.layers\.0\.input_layernorm"
    with pytest.raises(PassError, match=rf"refuses {name}\.RMSNorm .*input {name}\.weight is not a bound weight"):
        FuseNorms()(traced_model())


def test_refuses_a_computed_weight() -> None:
    model = semantic_model()
    find(model, _NORM).replace_input_with(1, value(model, "layers.0.mlp_residual"))
    with pytest.raises(PassError, match=rf"refuses {_NORM} .*input layers\.0\.mlp_residual is not a bound weight"):
        FuseNorms()(model)


@pytest.mark.parametrize(("op_type", "number"), [("RMSNorm", 2 * LAYERS + 1), ("ResidualAdd", 2 * LAYERS)])
def test_ensures_that_nothing_semantic_is_left(op_type: str, number: int) -> None:
    model = semantic_model()
    other = {"RMSNorm": "ResidualAdd", "ResidualAdd": "RMSNorm"}[op_type]
    for node in model.graph:
        if node.op_type == other:
            node.op_type = "Other"
    with pytest.raises(PassError, match=f"FuseNorms: {number} {op_type} nodes left"):
        FuseNorms().ensures(model)
