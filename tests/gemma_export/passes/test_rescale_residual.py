"""RescaleResidual: the residual stream times 2^-k, and every output of the graph as before, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import (
    GEMMA,
    LAYERS,
    PADDINGS,
    SPEC,
    UNTIED,
    ArraySource,
    Unoptimised,
    apply,
    assert_unchanged,
    batch,
    find,
    random_arrays,
    semantic_model,
    serialize,
    tap,
    value,
)

from gemma_export import nn, ops
from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.passes import FuseNorms, RescaleResidual
from gemma_export.passes.semantic_nodes import nodes_of
from gemma_export.precision import PRECISIONS
from gemma_export.targets import TARGETS
from gemma_export.tracing import bind_weights, trace_decoder
from gemma_export.weights import Scale, WeightTensor

_LAST_SUM = f"layers.{LAYERS - 1}.mlp_residual"
_UP = "model.layers.0.mlp.up_proj.Linear"


class PostNormLayer(nn.PreNormLayer):
    """A layer whose branches end in a norm, as in Gemma 2: https://arxiv.org/abs/2408.00118."""

    def __init__(self, index: int, spec: DecoderSpec, layer: nn.PreNormLayer) -> None:
        super().__init__(
            index,
            attention=layer.self_attn,
            mlp=layer.mlp,
            hidden_size=spec.hidden_size,
            epsilon=spec.rms_norm_eps,
        )
        self.pre_feedforward_layernorm = nn.RMSNorm(spec.hidden_size, epsilon=spec.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(spec.hidden_size, epsilon=spec.rms_norm_eps)

    def forward(self, x, context, past):  # type: ignore[no-untyped-def]
        branch, key, value = self.self_attn(self.input_layernorm(x), context, *past)
        point = f"layers.{self.index}."
        x = ops.residual_add(x, self.post_attention_layernorm(branch), point=f"{point}attn_residual")
        branch = self.mlp(self.pre_feedforward_layernorm(x))
        return ops.residual_add(x, self.post_feedforward_layernorm(branch), point=f"{point}mlp_residual"), (key, value)


def post_norm_model() -> ir.Model:
    """The semantic graph of a decoder of such layers, with random weights."""

    def shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
        more = {
            f"model.layers.{layer}.{part}_feedforward_layernorm.weight": (spec.hidden_size,)
            for layer in range(spec.num_hidden_layers)
            for part in ("pre", "post")
        }
        return GEMMA.tensor_shapes(spec) | more

    def build(spec: DecoderSpec) -> nn.Decoder:
        decoder = GEMMA.build(spec)
        layers = [PostNormLayer(index, spec, layer) for index, layer in enumerate(decoder.model.layers)]
        decoder.model.layers = torch.nn.ModuleList(layers)
        return decoder

    family = dataclasses.replace(GEMMA, tensor_shapes=shapes, build=build)
    generator = np.random.default_rng(5)
    arrays = {name: generator.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes(SPEC).items()}
    model = trace_decoder(family, SPEC)
    bind_weights(model, family, SPEC, ArraySource(arrays))
    return model


MODELS = {
    "tied": lambda: semantic_model(source=ArraySource(random_arrays())),
    "untied": lambda: semantic_model(UNTIED, ArraySource(random_arrays(UNTIED))),
    "post-norm": post_norm_model,
}


def outputs(model: ir.Model, padding: str) -> list[np.ndarray]:
    """Logits and cache of a padded prefill, then of a decode step: every real token's."""
    ids, mask = batch(padding)
    graph = Unoptimised(model)
    logits, present = graph.step(ids, mask)
    token = np.arange(5, 5 + len(ids))[:, None]
    step, grown = graph.step(token, np.concatenate((mask, np.ones_like(token)), axis=1), present)
    rows = range(len(ids))
    found = [logits[row, PADDINGS[padding][row]] for row in rows] + [step]
    # a finished graph keeps row b's tokens at its start, a semantic one where they stand; the rest is unspecified
    lengths = mask.sum(1)
    if padding != "none":
        assert any(node.op_type == "GroupQueryAttention" for node in model.graph)
    return [
        *found,
        *(state[row, :, : lengths[row]] for state in present for row in rows),
        *(state[row, :, : lengths[row] + 1] for state in grown for row in rows),
    ]


def finished(model: ir.Model, precision: str = "fp32") -> ir.Model:
    TARGETS["ort"].lower(model)
    PRECISIONS[precision].apply(model)
    TARGETS["ort"].finish(model, 0)
    return model


def equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return all(one.tobytes() == other.tobytes() for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("shift", [1, 6, 16])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_lowered_graph_gives_the_same_bits(name: str, shift: int) -> None:
    plain, scaled = MODELS[name](), apply(MODELS[name](), RescaleResidual(shift))
    names = [node.op_type for node in finished(plain).graph]
    assert [node.op_type for node in finished(scaled).graph] == names, "an extra node"
    padding = {1: "left", 6: "mixed", 16: "right"}[shift]
    assert equal(outputs(scaled, padding), outputs(plain, padding))


@pytest.mark.parametrize("name", ["tied", "post-norm"])
def test_semantic_graph_gives_the_same_bits(name: str) -> None:
    """The function bodies know gain_scale too."""
    plain, scaled = MODELS[name](), apply(MODELS[name](), RescaleResidual(3))
    assert equal(outputs(scaled, "none"), outputs(plain, "none"))


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_stream_is_scaled_and_nothing_else(padding: str) -> None:
    points = [f"layers.{layer}.{part}_residual" for layer in range(LAYERS) for part in ("attn", "mlp")]
    normed = [str(node.outputs[0].name) for node in nodes_of(semantic_model(), "RMSNorm")]
    plain = tap(MODELS["tied"](), *points, *normed)
    scaled = tap(apply(MODELS["tied"](), RescaleResidual(5)), *points, *normed)
    ids, mask = batch(padding)
    found, expected = (
        Unoptimised(model).session.run(
            [*points, *normed],
            {"input_ids": ids, "attention_mask": mask}
            | dict.fromkeys(Unoptimised(model).past_names, np.zeros((3, 2, 0, 16), np.float32)),
        )
        for model in (scaled, plain)
    )
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        factor = np.float32(2.0**-5 if index < len(points) else 1.0)
        np.testing.assert_array_equal(one, other * factor)


def test_without_the_epsilon_correction_it_is_not_exact() -> None:
    scaled = apply(MODELS["tied"](), RescaleResidual(6))
    for node in nodes_of(scaled, "RMSNorm"):
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", SPEC.rms_norm_eps)
    found, expected = outputs(finished(scaled), "none"), outputs(finished(MODELS["tied"]()), "none")
    assert np.abs(found[0] - expected[0]).max() > 1e-2 * expected[0].std()


def test_a_factor_that_is_no_power_of_two_is_not_exact() -> None:
    third = apply(MODELS["tied"](), RescaleResidual(1))
    change = 2 / 3
    (embedding,) = nodes_of(third, "ScaledEmbedding")
    embedding.attributes["scale"] = ir.AttrFloat32("scale", embedding.attributes["scale"].as_float() * change)
    for node in nodes_of(third, "RMSNorm"):
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", node.attributes["epsilon"].as_float() * change**2)
    for initializer in third.graph.initializers.values():
        weight = initializer.const_value.weight
        if isinstance(weight, Scale):
            initializer.const_value = WeightTensor(Scale(weight, change), initializer.name)
    found, expected = outputs(finished(third), "none"), outputs(finished(MODELS["tied"]()), "none")
    assert not equal(found, expected)
    # the scaling itself is right, only rounding differs
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-4 * expected[0].std())


def test_table_and_projections_that_only_read_are_untouched() -> None:
    plain, scaled = semantic_model(), apply(semantic_model(), RescaleResidual(4))
    changed = {
        name
        for name, initializer in scaled.graph.initializers.items()
        if initializer.const_value.tobytes() != plain.graph.initializers[name].const_value.tobytes()
    }
    assert changed == {
        f"model.layers.{layer}.{module}.weight"
        for layer in range(LAYERS)
        for module in ("self_attn.o_proj", "mlp.down_proj")
    }


def test_post_norm_gain_is_rounded_once_in_float32() -> None:
    scaled = post_norm_model()
    stored = {name: value.const_value.numpy() for name, value in scaled.graph.initializers.items()}
    FuseNorms()(apply(scaled, RescaleResidual(6)))
    for layer in range(LAYERS):
        for part, factor in (("post_attention", 2.0**-6), ("post_feedforward", 2.0**-6), ("pre_feedforward", 1.0)):
            name = f"model.layers.{layer}.{part}_layernorm"
            gain = scaled.graph.initializers[f"{name}.gain"].const_value.numpy()
            np.testing.assert_array_equal(gain, (np.float32(1) + stored[f"{name}.weight"]) * np.float32(factor))
        # the projections before the post-norms are not on the stream
        weight = scaled.graph.initializers[f"model.layers.{layer}.self_attn.o_proj.weight"].const_value
        np.testing.assert_array_equal(weight.numpy(), stored[f"model.layers.{layer}.self_attn.o_proj.weight"])


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), RescaleResidual(6)), RescaleResidual(6))


def test_another_shift_on_top_is_refused() -> None:
    model = apply(semantic_model(), RescaleResidual(6))
    with pytest.raises(PassError, match=r"scaled by 2\^-6 already"):
        RescaleResidual(5)(model)


def test_shift_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        RescaleResidual(0)


def _insert_after(model: ir.Model, name: str, op_type: str) -> None:
    read = value(model, name)
    node = ir.node(op_type, inputs=[read], name=f"strange.{op_type}")
    node.outputs[0].name, node.outputs[0].type = node.name, read.type
    producer = read.producer()
    assert producer is not None
    model.graph.insert_after(producer, [node])
    tap(model, node.name)


def refusal(model: ir.Model, match: str) -> None:
    """The pass refuses, and has changed nothing before it noticed."""
    before = serialize(model)
    with pytest.raises(PassError, match=match):
        RescaleResidual(6)(model)
    assert serialize(model) == before


def test_refuses_a_reader_that_is_no_norm() -> None:
    model = semantic_model()
    _insert_after(model, "layers.0.attn_residual", "Neg")
    refusal(model, r"refuses strange\.Neg \(Neg\): it reads the residual stream layers\.0\.attn_residual as input 0")


def test_refuses_a_stream_that_is_added_as_a_branch() -> None:
    model = semantic_model()
    find(model, _LAST_SUM).replace_input_with(1, value(model, "layers.0.mlp_residual"))
    refusal(model, rf"refuses {_LAST_SUM} \(ResidualAdd\): it reads .* as input 1")


def test_refuses_a_stream_that_is_an_output() -> None:
    refusal(tap(semantic_model(), "layers.0.mlp_residual"), r"layers\.0\.mlp_residual of its stream is an output")


def test_refuses_a_writer_that_is_no_projection() -> None:
    model = semantic_model()
    find(model, _LAST_SUM).replace_input_with(1, value(model, "model.layers.1.mlp.GeGLU"))
    refusal(model, r"refuses model\.layers\.1\.mlp\.GeGLU .*neither a projection nor a norm")


def test_refuses_a_branch_that_others_read() -> None:
    model = semantic_model()
    _insert_after(model, "model.layers.1.mlp.down_proj.Linear", "Neg")
    refusal(model, r"refuses model\.layers\.1\.mlp\.down_proj\.Linear .*its output .* is used elsewhere too")


def test_refuses_a_shared_weight() -> None:
    model = semantic_model()
    shared = model.graph.initializers["model.layers.0.self_attn.o_proj.weight"]
    find(model, "model.layers.1.self_attn.o_proj.Linear").replace_input_with(1, shared)
    refusal(model, r"its weight model\.layers\.0\.self_attn\.o_proj\.weight is used elsewhere too")


def test_refuses_a_branch_from_outside() -> None:
    model = semantic_model()
    find(model, _LAST_SUM).replace_input_with(1, model.graph.inputs[2])
    refusal(model, r"its branch .* is computed by no node")


def test_refuses_an_epsilon_that_float32_could_not_hold_scaled() -> None:
    model = semantic_model()
    find(model, "model.norm.RMSNorm").attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-36)
    refusal(model, r"refuses model\.norm\.RMSNorm .*no normal float32 number")


@pytest.mark.parametrize("op_type", ["RMSNorm", "ScaledEmbedding"])
def test_refuses_an_unknown_attribute(op_type: str) -> None:
    model = semantic_model()
    nodes_of(model, op_type)[0].attributes["axis"] = ir.AttrInt64("axis", 1)
    refusal(model, "unknown attribute axis = 1")


def test_refuses_a_lowered_graph() -> None:
    refusal(finished(semantic_model()), "expected one ScaledEmbedding, found 0")


def test_ensures_that_every_sum_is_on_the_stream() -> None:
    """A second stream, beside the one that starts at the embedding, would stay unscaled."""
    model = semantic_model()
    other = ir.node("ResidualAdd", inputs=[value(model, _UP), value(model, _UP)], domain="gemma", name="other")
    other.outputs[0].name, other.outputs[0].type = "other", value(model, _UP).type
    model.graph.insert_after(find(model, _UP), [other])
    refusal(model, f"expected {2 * LAYERS + 1} sums on the residual stream, found {2 * LAYERS}")
    with pytest.raises(PassError, match="sums on the residual stream"):
        RescaleResidual(6).ensures(model)


def test_ensures_that_every_sum_has_its_norm() -> None:
    model = semantic_model()
    find(model, "model.norm.RMSNorm").replace_input_with(0, value(model, _UP))
    refusal(model, f"expected {2 * LAYERS + 1} norms on the residual stream, found {2 * LAYERS}")
