"""LowerLinear: FusedMatMul over weights as the checkpoint stores them."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import (
    LAYERS,
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
    value,
)

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.passes import LowerLinear

_NODE = "model.layers.1.mlp.down_proj.Linear"
_SPECS = pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])


def _products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "FusedMatMul"]


def test_every_projection_and_the_head_is_one_node() -> None:
    model = apply(semantic_model(), LowerLinear())
    # query, key, value, output, gate, up, down; the head
    assert count(model, "FusedMatMul", "com.microsoft") == 7 * LAYERS + 1
    assert all(node.attributes["transB"].value == 1 for node in _products(model))
    assert count(model, "Linear", "gemma") == 0


def test_weights_stay_as_they_are_stored() -> None:
    semantic = semantic_model()
    before = {name: id(tensor.const_value) for name, tensor in semantic.graph.initializers.items()}
    after = apply(semantic, LowerLinear()).graph.initializers
    assert {name: id(tensor.const_value) for name, tensor in after.items()} == before
    assert after["model.layers.1.mlp.down_proj.weight"].shape == [SPEC.hidden_size, SPEC.intermediate_size]


def test_tied_head_reads_the_embedding_table_itself() -> None:
    model = apply(semantic_model(), LowerLinear())
    table = find(model, "model.embed_tokens.ScaledEmbedding").inputs[1]
    assert _products(model)[-1].inputs[1] is table


def test_untied_head_reads_its_own_table() -> None:
    model = apply(semantic_model(UNTIED), LowerLinear())
    head = _products(model)[-1]
    assert head.inputs[1] is model.graph.initializers["lm_head.weight"]
    assert head.inputs[1].shape == [SPEC.vocab_size, SPEC.hidden_size]


@_SPECS
@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(padding: str, spec: DecoderSpec) -> None:
    assert_same(apply(semantic_model(spec), LowerLinear()), semantic_model(spec), padding)


def test_second_run_changes_nothing() -> None:
    model = apply(semantic_model(), LowerLinear())
    model.graph.register_initializer(ir.Value(name="unused", const_value=ir.tensor([1])))
    assert_unchanged(model, LowerLinear())


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, _NODE).attributes["bias"] = ir.AttrInt64("bias", 1)
    with pytest.raises(PassError, match=rf"LowerLinear refuses {_NODE} \(Linear\): unknown attribute bias = 1"):
        LowerLinear()(model)


def test_refuses_an_untyped_input() -> None:
    model = semantic_model()
    value(model, "model.layers.1.mlp.GeGLU").type = None
    with pytest.raises(PassError, match=f"refuses {_NODE} .*its input has no type"):
        LowerLinear()(model)


def test_refuses_unbound_weights() -> None:
    name = r"model\.layers\.0\.self_attn\.q_proj"
    with pytest.raises(PassError, match=rf"refuses {name}\.Linear .*input {name}\.weight is not a bound weight"):
        LowerLinear()(traced_model())


def test_refuses_a_computed_weight() -> None:
    model = semantic_model()
    find(model, "lm_head.Linear").replace_input_with(1, value(model, "layers.0.mlp_residual"))
    with pytest.raises(
        PassError, match=r"refuses lm_head\.Linear .*input layers\.0\.mlp_residual is not a bound weight"
    ):
        LowerLinear()(model)


def test_ensures_that_no_linear_is_left() -> None:
    with pytest.raises(PassError, match=f"LowerLinear: {7 * LAYERS + 1} Linear nodes left"):
        LowerLinear().ensures(semantic_model())
