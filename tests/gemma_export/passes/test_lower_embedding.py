"""LowerEmbedding: Gather from the shared table, the scale beside it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import PADDINGS, SPEC, apply, assert_same, assert_unchanged, count, find, semantic_model

from gemma_export.errors import PassError
from gemma_export.passes import LowerEmbedding
from gemma_export.passes.lower_embedding import EMBEDDING_SCALE

_NODE = "model.embed_tokens.ScaledEmbedding"


def test_gather_and_mul() -> None:
    model = apply(semantic_model(), LowerEmbedding())
    assert (count(model, "Gather"), count(model, "Mul"), count(model, "ScaledEmbedding", "gemma")) == (1, 1, 0)
    gather = find(model, "model.embed_tokens.Gather")
    assert [tensor.name for tensor in gather.inputs if tensor] == ["model.embed_tokens.weight", "input_ids"]


def test_scale_is_a_float32_scalar_of_its_own() -> None:
    """The table that a tied head shares stays as it is stored."""
    semantic = semantic_model()
    table = semantic.graph.initializers["model.embed_tokens.weight"]
    model = apply(semantic, LowerEmbedding())
    scale = model.graph.initializers[EMBEDDING_SCALE].const_value.numpy()
    assert (scale.dtype, scale.shape) == (np.float32, ())
    assert scale == np.float32(SPEC.hidden_size**0.5)
    assert model.graph.initializers["model.embed_tokens.weight"] is table


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(padding: str) -> None:
    assert_same(apply(semantic_model(), LowerEmbedding()), semantic_model(), padding)


def test_same_numbers_with_another_scale() -> None:
    semantic = semantic_model()
    find(semantic, _NODE).attributes["scale"] = ir.AttrFloat32("scale", 0.375)
    assert_same(apply(semantic.clone(), LowerEmbedding()), semantic, "none")


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), LowerEmbedding()), LowerEmbedding())


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, _NODE).attributes["padding_idx"] = ir.AttrInt64("padding_idx", 0)
    with pytest.raises(
        PassError, match=rf"LowerEmbedding refuses {_NODE} \(ScaledEmbedding\): unknown attribute padding_idx = 0"
    ):
        LowerEmbedding()(model)


def test_refuses_a_missing_scale() -> None:
    model = semantic_model()
    del find(model, _NODE).attributes["scale"]
    with pytest.raises(PassError, match=f"refuses {_NODE} .*attribute scale is missing"):
        LowerEmbedding()(model)


def test_refuses_a_table_that_a_precision_has_changed() -> None:
    model = semantic_model()
    model.graph.initializers["model.embed_tokens.weight"].type = ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(PassError, match=f"refuses {_NODE} .*its table is not float32"):
        LowerEmbedding()(model)


def test_ensures_that_no_embedding_is_left() -> None:
    with pytest.raises(PassError, match=f"LowerEmbedding: 1 ScaledEmbedding nodes left, first {_NODE}"):
        LowerEmbedding().ensures(semantic_model())
