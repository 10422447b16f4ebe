"""DropQueryLengths: the graph for onnxruntime releases without query_seqlens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    SPEC,
    Unoptimised,
    apply,
    assert_same,
    assert_unchanged,
    count,
    deviation,
    find,
    semantic_model,
    tap,
)
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from gemma_export.passes import AlignRows, DropQueryLengths, FuseGroupQueryAttention, SelectLogits

_LENGTHS = "rows.query_seqlens"


def _fused(keep: int = 0) -> ir.Model:
    return apply(semantic_model(), AlignRows(), FuseGroupQueryAttention(), SelectLogits(keep))


def test_every_attention_loses_the_input_and_nothing_else() -> None:
    model = _fused()
    before = find(model, "model.layers.1.self_attn.GroupQueryAttention")
    inputs, attributes = list(before.inputs), dict(before.attributes)
    apply(model, DropQueryLengths())
    assert count(model, "GroupQueryAttention", "com.microsoft") == LAYERS
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            assert len(node.inputs) == 9
    assert list(before.inputs) == inputs[:9]
    assert dict(before.attributes) == attributes


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_nothing_is_left_that_nobody_reads(keep: int) -> None:
    model = apply(_fused(keep), DropQueryLengths())
    interface = {id(output) for output in model.graph.outputs}
    for node in model.graph:
        assert any(output.uses() or id(output) in interface for output in node.outputs), node.name
    assert all(tensor.uses() for tensor in model.graph.initializers.values())
    assert _LENGTHS not in {output.name for node in model.graph for output in node.outputs}


def test_lengths_that_are_a_graph_output_stay() -> None:
    model = apply(tap(_fused(), _LENGTHS), DropQueryLengths())
    assert [output.name for output in model.graph.outputs].count(_LENGTHS) == 1
    producer = model.graph.outputs[-1].producer()
    assert producer is not None
    assert producer in list(model.graph)


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers_in_whole_prompts_and_decode_steps(padding: str) -> None:
    assert_same(apply(_fused(), DropQueryLengths()), semantic_model(), padding)


def _chunks(model: ir.Model, ids: np.ndarray) -> np.ndarray:
    return Unoptimised(model).chunks(ids, 3)


def test_same_numbers_in_chunks_of_one_row() -> None:
    ids = np.random.default_rng(5).integers(4, SPEC.vocab_size, (1, 8))
    found = _chunks(apply(_fused(), DropQueryLengths()), ids)
    assert deviation(found, _chunks(semantic_model(), ids)) <= tolerances.FP32_LOGITS


def test_chunks_of_several_rows_are_refused_by_the_kernel_not_wrong() -> None:
    ids = np.random.default_rng(5).integers(4, SPEC.vocab_size, (2, 8))
    assert np.isfinite(_chunks(_fused(), ids)).all()
    with pytest.raises(
        InvalidArgument, match="batch_size must be 1 when sequence_length > 1 and past context is given"
    ):
        _chunks(apply(_fused(), DropQueryLengths()), ids)


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(_fused(), DropQueryLengths()), DropQueryLengths())


def test_a_semantic_graph_has_nothing_to_drop() -> None:
    assert_unchanged(semantic_model(), DropQueryLengths())
