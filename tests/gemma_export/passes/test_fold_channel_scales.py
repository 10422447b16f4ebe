"""Scales of channels move between activations and weights: exactly, on every target, and never where others look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
import torch
from graphs import SPEC, UNTIED, ArraySource, deviation, find, random_arrays, run_steps, semantic_model

from gemma_export.channel_scales import ScaledRows
from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.passes import FoldChannelScales
from gemma_export.targets import TARGETS
from gemma_export.weights import Constant

_O_PROJ = "model.layers.0.self_attn.o_proj.weight"


def _exponents() -> dict[str, list[int]]:
    """Of every point, the heads that share a value alike."""
    generator = np.random.default_rng(1)
    exponents = {}
    for layer in range(SPEC.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name, size in (
            ("self_attn.q", SPEC.hidden_size),
            ("mlp.gate", SPEC.hidden_size),
            ("mlp.down", SPEC.intermediate_size),
        ):
            exponents[f"{prefix}.{name}_proj.weight"] = generator.integers(-8, 9, size).tolist()
        values = generator.integers(-8, 9, (SPEC.num_key_value_heads, 1, SPEC.head_dim))
        heads = values.repeat(SPEC.num_attention_heads // SPEC.num_key_value_heads, 1)
        exponents[f"{prefix}.self_attn.o_proj.weight"] = heads.reshape(-1).tolist()
    return exponents


def _model(spec: DecoderSpec = SPEC) -> ir.Model:
    return semantic_model(spec, ArraySource(random_arrays(spec)))


def _lowered(target: str, spec: DecoderSpec, exponents: Mapping[str, Sequence[float]]) -> ir.Model:
    model = _model(spec)
    assert FoldChannelScales(exponents)(model).modified == bool(exponents)
    TARGETS[target].lower(model)
    TARGETS[target].finish(model, 0)
    return model


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("target", TARGETS)
def test_float32_logits_keep_every_bit(target: str, spec: DecoderSpec) -> None:
    plain, folded = (run_steps(_lowered(target, spec, exponents)) for exponents in ({}, _exponents()))
    assert np.array_equal(plain.prefill, folded.prefill)
    assert np.array_equal(plain.decode, folded.decode)


@pytest.mark.parametrize("target", TARGETS)
def test_other_factors_round_each_number_once(target: str) -> None:
    fractions = {name: [exponent / 7 for exponent in exponents] for name, exponents in _exponents().items()}
    plain, folded = (run_steps(_lowered(target, SPEC, exponents)).real("none") for exponents in ({}, fractions))
    assert not np.array_equal(plain, folded)
    assert deviation(folded, plain) <= tolerances.FP32_LOGITS


def test_factors_are_the_nearest_float32_and_whole_exponents_exact() -> None:
    exponents = [*range(-126, 128), 0.5, -3.25, 7 / 3]
    factors = ScaledRows(Constant(torch.ones(len(exponents)), "w"), exponents).tensor().numpy()
    assert np.array_equal(factors, np.array([2.0**exponent for exponent in exponents], dtype=np.float32))


@pytest.mark.parametrize(
    ("name", "producer"),
    [
        ("self_attn.q_proj", "input_layernorm"),
        ("self_attn.o_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "post_attention_layernorm"),
        ("mlp.down_proj", "mlp.up_proj"),
    ],
)
def test_each_point_changes_producer_and_readers(name: str, producer: str) -> None:
    """And would change the logits if either were left out: the weights really differ."""
    exponents = [3] * (SPEC.intermediate_size if "down" in name else 64 if "o_proj" in name else SPEC.hidden_size)
    before, after = _model(), _model()
    FoldChannelScales({f"model.layers.1.{name}.weight": exponents})(after)
    changed = {
        initializer.removeprefix("model.layers.1.").removesuffix(".weight")
        for initializer, value in after.graph.initializers.items()
        if not np.array_equal(value.const_value.numpy(), before.graph.initializers[initializer].const_value.numpy())
    }
    readers = {"self_attn.q_proj": {"self_attn.k_proj", "self_attn.v_proj"}, "mlp.gate_proj": {"mlp.up_proj"}}
    assert changed == {name, producer} | readers.get(name, set())


def test_a_gain_is_rounded_once() -> None:
    """(1 + w) * 2^-k - 1 does not hold all bits of a small gain; the lowered norm has them."""
    model = _model()
    name = "model.layers.0.mlp.gate_proj.weight"
    FoldChannelScales({name: [12] * SPEC.hidden_size})(model)
    TARGETS["ort"].lower(model)
    stored = random_arrays()["model.layers.0.post_attention_layernorm.weight"]
    gain = model.graph.initializers["model.layers.0.post_attention_layernorm.gain"].const_value.numpy()
    expected = (stored + np.float32(1)) * np.float32(2.0**-12)
    assert np.array_equal(gain, expected)
    assert not np.array_equal((expected - np.float32(1)) + np.float32(1), expected)


def test_heads_that_share_a_value_must_agree() -> None:
    exponents = [0] * (SPEC.num_attention_heads * SPEC.head_dim)
    exponents[0] = 1
    with pytest.raises(PassError, match="heads that share a value have different exponents"):
        FoldChannelScales({_O_PROJ: exponents})(_model())


def test_another_reader_is_refused() -> None:
    model = _model()
    product = find(model, "model.layers.0.mlp.gate_proj.Linear")
    model.graph.append(ir.node("Identity", inputs=[product.inputs[0]], name="odd"))
    with pytest.raises(PassError, match="refuses odd"):
        FoldChannelScales({"model.layers.0.mlp.gate_proj.weight": [1] * SPEC.hidden_size})(model)


def test_an_unknown_producer_is_refused() -> None:
    with pytest.raises(PassError, match=r"comes from decoder\.LastTokens, expected a norm"):
        FoldChannelScales({"lm_head.weight": [1] * SPEC.hidden_size})(_model(UNTIED))


def test_a_shared_weight_is_refused() -> None:
    model = _model()
    weight = find(model, "model.layers.0.mlp.up_proj.Linear").inputs[1]
    model.graph.append(ir.node("Identity", inputs=[weight], name="odd"))
    with pytest.raises(PassError, match=r"refuses .*up_proj\.weight is used elsewhere too"):
        FoldChannelScales({"model.layers.0.mlp.down_proj.weight": [1] * SPEC.intermediate_size})(model)


def test_an_unknown_weight_is_refused() -> None:
    with pytest.raises(PassError, match="no weight nowhere"):
        FoldChannelScales({"nowhere": [1]})(_model())


def test_nothing_to_scale_changes_nothing() -> None:
    assert not FoldChannelScales({})(_model()).modified
