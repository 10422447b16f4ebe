"""Binding: every initializer gets a lazy float32 expression, and nothing is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from graphs import GEMMA, SPEC, UNTIED, ArraySource, UnreadableSource, random_arrays, semantic_model, traced_model

from gemma_export.config import DecoderSpec
from gemma_export.errors import TracingError
from gemma_export.nn import rotary_tables
from gemma_export.tracing import bind_weights
from gemma_export.weights import WeightTensor

_SPECS = pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])


@_SPECS
def test_nothing_is_read(spec: DecoderSpec) -> None:
    model = semantic_model(spec, UnreadableSource(GEMMA.tensor_shapes(spec), 0))
    assert all(isinstance(tensor.const_value, WeightTensor) for tensor in model.graph.initializers.values())
    with pytest.raises(AssertionError, match="was read"):
        model.graph.initializers["model.norm.weight"].const_value.numpy()


@_SPECS
def test_initializers_hold_the_checkpoints_numbers(spec: DecoderSpec) -> None:
    arrays = random_arrays(spec)
    initializers = semantic_model(spec, ArraySource(arrays)).graph.initializers
    for name, array in arrays.items():
        found = initializers[name].const_value.numpy()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array)
        assert initializers[name].shape == array.shape


@_SPECS
def test_a_tied_table_is_one_initializer_that_two_nodes_read(spec: DecoderSpec) -> None:
    initializers = semantic_model(spec).graph.initializers
    users = {node.op_type for node, _ in initializers["model.embed_tokens.weight"].uses()}
    assert users == ({"ScaledEmbedding", "Linear"} if spec.tie_word_embeddings else {"ScaledEmbedding"})
    assert ("lm_head.weight" in initializers) is not spec.tie_word_embeddings


@pytest.mark.parametrize("context", [64, 17])
def test_rotary_tables_have_the_specifications_length(context: int) -> None:
    spec = dataclasses.replace(SPEC, max_position_embeddings=context)
    initializers = semantic_model(spec).graph.initializers
    tables = rotary_tables(positions=context, head_dim=SPEC.head_dim, rotary=SPEC.rotary)
    for name, table in zip(("cos_cache", "sin_cache"), tables, strict=True):
        assert initializers[name].shape == [context, SPEC.head_dim // 2]
        np.testing.assert_array_equal(initializers[name].const_value.numpy(), table.numpy())


def test_a_family_whose_tensors_are_not_the_graphs_is_an_error() -> None:
    def shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
        return {**GEMMA.tensor_shapes(spec), "model.layers.0.post_feedforward_layernorm.weight": (spec.hidden_size,)}

    wrong = dataclasses.replace(GEMMA, tensor_shapes=shapes)
    source = ArraySource({name: np.zeros(shape) for name, shape in shapes(SPEC).items()})
    with pytest.raises(
        TracingError, match=r"differ from the family's tensors: model\.layers\.0\.post_feedforward_layernorm\.weight$"
    ):
        bind_weights(traced_model(), wrong, SPEC, source)


def test_a_graph_that_is_not_tied_as_the_specification_says_is_an_error() -> None:
    with pytest.raises(TracingError, match=r"differ from the family's tensors: model\.embed_tokens\.weight$"):
        bind_weights(traced_model(SPEC), GEMMA, UNTIED, ArraySource(random_arrays(UNTIED)))
