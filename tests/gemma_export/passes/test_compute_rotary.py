"""ComputeRotary: cosine and sine of a step's own positions instead of tables of all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
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
    run_steps,
    semantic_model,
)

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


def _semantic() -> ir.Model:
    return semantic_model(QK_NORM, ArraySource(random_arrays(QK_NORM)))


def _contrib() -> ir.Model:
    """Rotary embedding as a kernel of onnxruntime, over aligned rows."""
    return apply(_semantic(), AlignRows(), FuseAttentionRotaryOutside(plain=False, normalised=True))


def _standard() -> ir.Model:
    """Rotary embedding as the standard operator, over the mask's columns."""
    return apply(_semantic(), LowerAttention())


_LOWERED: dict[str, tuple[Callable[[], ir.Model], ir.passes.PassBase]] = {
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
