"""StaticStep: one row, one position, and a mask as long as the cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    SPEC,
    UNTIED,
    Unoptimised,
    apply,
    assert_unchanged,
    count,
    deviation,
    semantic_model,
    set_attribute,
    tap,
)

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.passes import AlignRows, FuseGroupQueryAttention, SelectLogits, StaticStep

_CAPACITY = 24
# what moves rows or positions about, or gives a shape that depends on numbers
_GONE = ("ArgMax", "Equal", "GatherElements", "GatherND", "Mod", "Neg", "Range", "Slice")


def _fused(spec: DecoderSpec = SPEC) -> ir.Model:
    return apply(semantic_model(spec), AlignRows(), FuseGroupQueryAttention())


def _static(spec: DecoderSpec = SPEC) -> ir.Model:
    return apply(_fused(spec), StaticStep())


def _shape(value: ir.Value) -> list[int | str | None]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def test_nothing_moves_rows_or_positions() -> None:
    model = _static()
    assert all(count(model, op_type) == 0 for op_type in _GONE)
    assert count(model, "LastTokens", "gemma") == 0
    assert count(model, "GroupQueryAttention", "com.microsoft") == LAYERS
    assert all(len(node.inputs) == 9 for node in model.graph if node.op_type == "GroupQueryAttention")
    assert next(node for node in model.graph if node.op_type == "ScaledEmbedding").inputs[0] is model.graph.inputs[0]


def test_the_host_sees_shapes_only() -> None:
    """GroupQueryAttention's total is the one number that CUDA sessions keep on the CPU: it comes from Shape alone."""
    model = _static()
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    chain = []
    value = attention.inputs[6]
    while value is not None and value.producer() is not None:
        chain.append(value.producer())
        value = chain[-1].inputs[0]
    assert [node.op_type for node in chain] == ["Cast", "Squeeze", "Shape"]
    assert value is not None
    assert value.name == "attention_mask"


def test_one_row_and_one_position_are_declared_everywhere() -> None:
    model = _static()
    shapes = {str(value.name): _shape(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    heads, size = SPEC.num_key_value_heads, SPEC.head_dim
    assert shapes["input_ids"] == [1, 1]
    assert shapes["attention_mask"] == [1, "total_sequence_length"]
    assert shapes["past_key_values.1.value"] == [1, heads, "past_sequence_length", size]
    assert shapes["present.1.value"] == [1, heads, "total_sequence_length", size]
    assert shapes["logits"] == [1, 1, SPEC.vocab_size]
    inner = [_shape(value) for node in model.graph for value in node.outputs if value.shape is not None]
    assert not any(symbol in shape for shape in inner for symbol in ("batch_size", "sequence_length"))


def test_nothing_is_left_that_nobody_reads() -> None:
    model = _static()
    outputs = {id(output) for output in model.graph.outputs}
    for node in model.graph:
        assert any(output.uses() or id(output) in outputs for output in node.outputs), node.name
    assert all(tensor.uses() for tensor in model.graph.initializers.values())


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("attribute", [None, ("window", 5), ("softcap", 3.0)], ids=["plain", "window", "softcap"])
def test_same_numbers_over_a_buffer_of_garbage(spec: DecoderSpec, attribute: tuple[str, float] | None) -> None:
    def attention(model: ir.Model) -> ir.Model:
        if attribute is not None:
            set_attribute(model, "Attention", *attribute)
        return model

    ids = np.random.default_rng(4).integers(4, spec.vocab_size, (1, 17))
    lowered = apply(attention(semantic_model(spec)), AlignRows(), FuseGroupQueryAttention())
    expected = Unoptimised(apply(lowered.clone(), SelectLogits(0))).chunks(ids, 1)
    graph = Unoptimised(apply(lowered, StaticStep()))
    _, heads, _, size = graph.state_shape
    garbage = np.random.default_rng(5)
    past = [garbage.normal(scale=9, size=(1, heads, _CAPACITY, size)).astype(graph.dtype) for _ in graph.past_names]
    found = []
    for position in range(ids.shape[1]):
        mask = (np.arange(_CAPACITY) <= position)[None]
        logits, past = graph.step(ids[:, position : position + 1], mask, past)
        # the operator takes the buffer's length for the cache's
        assert {state.shape[2] for state in past} == {_CAPACITY}
        found.append(logits)
    assert deviation(np.concatenate(found, axis=1), expected) <= tolerances.FP32_LOGITS


def test_second_run_changes_nothing() -> None:
    assert_unchanged(_static(), StaticStep())


def test_rows_that_were_never_aligned_are_refused() -> None:
    with pytest.raises(PassError, match=r"no value called 'rows\.input_ids'"):
        StaticStep()(semantic_model())


def test_chosen_positions_are_refused() -> None:
    with pytest.raises(PassError, match="StaticStep: expected one LastTokens, found 0"):
        StaticStep()(apply(_fused(), SelectLogits(1)))


def test_several_last_positions_are_refused() -> None:
    model = _fused()
    set_attribute(model, "LastTokens", "keep", 8)
    with pytest.raises(PassError, match="keep is 8, expected 0"):
        StaticStep()(model)


def test_a_reader_that_it_does_not_know_is_refused() -> None:
    with pytest.raises(ir.passes.PostconditionError) as caught:
        StaticStep()(tap(_fused(), "rows.first"))
    assert isinstance(caught.value.__cause__, PassError)
    assert "StaticStep: rows.first, rows.sequence_length left" in caught.value.__cause__.message
