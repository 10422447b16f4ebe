"""ComputeRotary: cosine and sine of a step's own positions instead of tables of all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
import torch
from graphs import (
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
    random_arrays,
    run_outputs,
    run_steps,
    semantic_model,
    tap,
)
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding, apply_rotary_pos_emb

from gemma_export.config import DecoderSpec, Rotary
from gemma_export.errors import PassError
from gemma_export.passes import (
    AlignRows,
    ComputeRotary,
    FuseAttentionRotaryOutside,
    FuseGroupQueryAttention,
    LowerAttention,
    LowerHeadNorms,
    SelectColumns,
    SelectLogits,
    StaticStep,
)
from gemma_export.precision.floating import convert_floats

_TABLES = {"cos_cache", "sin_cache", "cos_cache_local", "sin_cache_local"}
_CAPACITY = 24


def _semantic(spec: DecoderSpec = QK_NORM) -> ir.Model:
    return semantic_model(spec, ArraySource(random_arrays(spec)))


def _contrib(spec: DecoderSpec = QK_NORM) -> ir.Model:
    """Rotary embedding as a kernel of onnxruntime, over aligned rows."""
    return apply(_semantic(spec), AlignRows(), FuseAttentionRotaryOutside(plain=False, normalised=True))


def _standard(spec: DecoderSpec = QK_NORM) -> ir.Model:
    """Rotary embedding as the standard operator, over the mask's columns."""
    return apply(_semantic(spec), LowerAttention())


_LOWERED: dict[str, tuple[Callable[..., ir.Model], ir.passes.PassBase]] = {
    "contrib": (_contrib, SelectLogits(0)),
    "standard": (_standard, SelectColumns(0)),
}


@pytest.mark.parametrize("domain", sorted(_LOWERED))
@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(domain: str, padding: str) -> None:
    lower, select = _LOWERED[domain]
    assert_same(apply(lower(), ComputeRotary(), select), _semantic(), padding)


@pytest.mark.parametrize("domain", sorted(_LOWERED))
def test_tables_are_gone_and_layers_share_what_they_can(domain: str) -> None:
    model = apply(_LOWERED[domain][0](), ComputeRotary())
    assert not _TABLES & set(model.graph.initializers)
    # one for the layer with a window, one for the other
    assert count(model, "Cos") == count(model, "Sin") == 2
    half = QK_NORM.head_dim // 2
    for suffix, rotary in QK_NORM.rotary_tables.items():
        frequencies = model.graph.initializers[f"rotary.frequencies{suffix}"].const_value
        assert frequencies is not None
        expected = rotary.theta ** (-np.arange(half) / half) / rotary.factor
        np.testing.assert_allclose(frequencies.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("suffix", ["", "_local"])
def test_the_comparison_above_notices_another_frequency(suffix: str) -> None:
    model = apply(_contrib(), ComputeRotary(), SelectLogits(0))
    value = model.graph.initializers[f"rotary.frequencies{suffix}"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.1), name=value.name)
    found, expected = (run_steps(each).real("none") for each in (model, _semantic()))
    assert deviation(found, expected) > 100 * tolerances.FP32_LOGITS


def test_angles_are_float32_in_a_float16_graph() -> None:
    """At position 100,000 float16 has no numbers left between the turns."""
    model = apply(_contrib(), LowerHeadNorms("SimplifiedLayerNormalization"))
    convert_floats(model, "float16")
    ComputeRotary()(model)
    cosine = next(node for node in model.graph if node.op_type == "Cos")
    assert cosine.inputs[0] is not None
    assert cosine.inputs[0].dtype == ir.DataType.FLOAT
    for rotation in (node for node in model.graph if node.op_type == "RotaryEmbedding"):
        assert {value.dtype for value in rotation.inputs[2:] if value is not None} == {ir.DataType.FLOAT16}


# the longest Gemma 3's: both bases and the factor as released, a small head
_LONG = dataclasses.replace(
    QK_NORM,
    rotary=Rotary(theta=1e6, factor=8.0),
    local_rotary=Rotary(theta=1e4, factor=1.0),
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=131072,
)
_KINDS = {"": "full_attention", "_local": "sliding_attention"}


@functools.cache
def _long_reference() -> Gemma3RotaryEmbedding:
    linear = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    config = Gemma3TextConfig(
        head_dim=_LONG.head_dim,
        num_hidden_layers=2,
        max_position_embeddings=131072,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": linear, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    )
    return Gemma3RotaryEmbedding(config)


def _reference_rows(kind: str, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of positions [S] in the reference's float32, [1, S, head_dim]."""
    return _long_reference()(torch.zeros(()), torch.from_numpy(positions)[None], layer_type=kind)


@pytest.mark.parametrize("last", [32_771, 131_071])
@pytest.mark.parametrize("domain", sorted(_LOWERED))
def test_far_positions_are_the_references(domain: str, last: int) -> None:
    """Eight tokens behind a cache of all before them: rows around 32,767 and up to the context's end, and what they
    rotate in a layer of each kind."""
    positions = np.arange(last - 7, last + 1)
    lower, select = _LOWERED[domain]
    model = apply(lower(_LONG), ComputeRotary(), select)
    rows = [f"rotary{suffix}.{function}" for suffix in _KINDS for function in ("cos", "sin")]
    nodes = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert len(nodes) == 2 * _LONG.num_hidden_layers
    turned = [value.name for node in nodes for value in (node.inputs[0], node.outputs[0])]
    tap(model, *dict.fromkeys(str(name) for name in (*rows, *turned)))
    ids = np.random.default_rng(6).integers(4, _LONG.vocab_size, (1, 8))
    found = run_outputs(model, [*rows, *turned], ids, np.ones((1, last + 1)))
    half = _LONG.head_dim // 2
    for index, kind in enumerate(_KINDS.values()):
        for own, wanted in zip(found[2 * index : 2 * index + 2], _reference_rows(kind, positions), strict=True):
            np.testing.assert_allclose(own.reshape(8, half), wanted[0, :, :half], rtol=0, atol=tolerances.ROTARY_ROWS)
    for index, node in enumerate(nodes):
        before, after = (torch.from_numpy(array) for array in found[4 + 2 * index : 6 + 2 * index])
        # the first layer has the window
        kind = _KINDS["_local" if ".layers.0." in str(node.name) else ""]
        heads = before.reshape(1, 8, -1, _LONG.head_dim)
        expected, _ = apply_rotary_pos_emb(heads, heads, *_reference_rows(kind, positions), unsqueeze_dim=2)
        np.testing.assert_allclose(after.reshape(expected.shape), expected, rtol=0, atol=tolerances.ONE_OPERATOR)


def test_one_token_over_a_cache_of_full_capacity() -> None:
    """The static step takes its position from the row's length."""
    ids = np.random.default_rng(4).integers(4, SPEC.vocab_size, (1, 17))
    lowered = apply(_contrib(), ComputeRotary())
    expected = Unoptimised(apply(lowered.clone(), SelectLogits(0))).chunks(ids, 1)
    graph = Unoptimised(apply(lowered, StaticStep()))
    _, heads, _, size = graph.state_shape
    past = [np.full((1, heads, _CAPACITY, size), 7, graph.dtype) for _ in graph.past_names]
    found = []
    for position in range(ids.shape[1]):
        mask = (np.arange(_CAPACITY) <= position)[None]
        logits, past = graph.step(ids[:, position : position + 1], mask, past)
        found.append(logits)
    assert deviation(np.concatenate(found, axis=1), expected) <= tolerances.FP32_LOGITS


def test_a_kernel_that_rotates_inside_keeps_its_tables() -> None:
    model = apply(semantic_model(), AlignRows(), FuseGroupQueryAttention())
    with pytest.raises(PassError, match="cos_cache, sin_cache is still read by a kernel that rotates inside"):
        ComputeRotary()(model)


def test_tables_of_two_layers_are_not_mixed() -> None:
    model = _contrib()
    rotation = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    rotation.replace_input_with(3, model.graph.initializers["sin_cache"])
    with pytest.raises(PassError, match="its tables are cos_cache_local and sin_cache"):
        ComputeRotary()(model)


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(_contrib(), ComputeRotary()), ComputeRotary())
