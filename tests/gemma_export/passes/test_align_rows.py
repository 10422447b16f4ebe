"""AlignRows: every row starts at index 0, and the lengths that go with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import PADDINGS, apply, assert_same, assert_unchanged, batch, count, find, run_outputs, semantic_model, tap

from gemma_export.errors import PassError
from gemma_export.passes import AlignRows, FuseGroupQueryAttention, LowerEmbedding, SelectLogits
from gemma_export.passes.align_rows import FIRST, QUERY_LENGTHS, SEQLENS_K

_ALIGNED_IDS = "rows.input_ids"
_EMBEDDING = "model.embed_tokens.ScaledEmbedding"

# what a step's columns are, and the mask over past and present columns
_MASKS = {
    "one row without any token": [[0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]],
    "one row ended in an earlier chunk": [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]],
    "decode": [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]],
}
_COLUMNS = {"one row without any token": 4, "one row ended in an earlier chunk": 3, "decode": 1}


def test_the_embedding_reads_rolled_ids() -> None:
    model = apply(semantic_model(), AlignRows())
    ids = find(model, _EMBEDDING).inputs[0]
    assert ids is not None
    assert ids.name == _ALIGNED_IDS
    assert count(model, "GatherElements") == 1
    (raw,) = [tensor for tensor in model.graph.inputs if tensor.name == "input_ids"]
    assert {node.op_type for node, _ in raw.uses()} == {"GatherElements", "Shape"}


def _check_by_hand(ids: np.ndarray, mask: np.ndarray) -> None:
    model = tap(apply(semantic_model(), AlignRows()), _ALIGNED_IDS, FIRST, QUERY_LENGTHS, SEQLENS_K)
    rolled, first, lengths, seqlens = run_outputs(model, [_ALIGNED_IDS, FIRST, QUERY_LENGTHS, SEQLENS_K], ids, mask)
    assert seqlens.dtype == np.int32
    for row, tokens in enumerate(ids):
        own = mask[row, -len(tokens) :]
        total, here = int(mask[row].sum()), int(own.sum())
        start = int(own.argmax()) if here else 0
        assert first[row].tolist() == [start]
        np.testing.assert_array_equal(rolled[row], np.roll(tokens, -start))
        np.testing.assert_array_equal(rolled[row, :here], tokens[own == 1])
        # the kernel needs one key of a row that has no token at all, and none of a row that is merely idle
        assert lengths[row].tolist() == [here if total else 1]
        assert seqlens[row] == max(total, 1) - 1


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_lengths_of_a_padded_prefill(padding: str) -> None:
    _check_by_hand(*batch(padding))


@pytest.mark.parametrize("name", sorted(_MASKS))
def test_lengths_of_other_steps(name: str) -> None:
    mask = np.array(_MASKS[name])
    ids = np.arange(4, 4 + len(mask) * _COLUMNS[name]).reshape(len(mask), -1)
    _check_by_hand(ids, mask)


@pytest.mark.parametrize("padding", ["none", "right"])
def test_rows_that_start_at_zero_stay(padding: str) -> None:
    assert_same(apply(semantic_model(), AlignRows()), semantic_model(), padding)


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers_once_attention_and_logits_follow(padding: str) -> None:
    aligned = apply(semantic_model(), AlignRows(), FuseGroupQueryAttention(), SelectLogits(0))
    assert_same(aligned, semantic_model(), padding)


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), AlignRows()), AlignRows())


def test_refuses_other_ids() -> None:
    model = semantic_model()
    masked = ir.node("Mul", inputs=list(model.graph.inputs[:2]), name="masked")
    masked.outputs[0].name = "masked_ids"
    embedding = find(model, _EMBEDDING)
    model.graph.insert_before(embedding, [masked])
    embedding.replace_input_with(0, masked.outputs[0])
    with pytest.raises(PassError, match=f"AlignRows refuses {_EMBEDDING} .*its ids are masked_ids, expected input_ids"):
        AlignRows()(model)


def test_refuses_an_embedding_that_is_lowered_already() -> None:
    with pytest.raises(PassError, match="AlignRows: expected one ScaledEmbedding, found 0"):
        AlignRows()(apply(semantic_model(), LowerEmbedding()))


def test_refuses_a_second_embedding() -> None:
    model = semantic_model()
    embedding = find(model, _EMBEDDING)
    twin = ir.node(
        "ScaledEmbedding", list(embedding.inputs), {"scale": 1.0}, domain="gemma", name="per_layer.ScaledEmbedding"
    )
    model.graph.insert_before(embedding, [twin])
    with pytest.raises(PassError, match="AlignRows: expected one ScaledEmbedding, found 2"):
        AlignRows()(model)
