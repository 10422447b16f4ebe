"""The released sizes: traced and lowered in seconds, without a byte of weights."""

from __future__ import annotations

import pytest
from graphs import GEMMA, UnreadableSource, count, released_spec, semantic_model, traced_model

from gemma_export.targets import TARGETS
from gemma_export.weights import WeightTensor


@pytest.mark.parametrize(
    ("variant", "layers", "norms", "parameters"), [("2b", 18, 37, 2_506_172_416), ("7b", 28, 57, 8_537_680_896)]
)
def test_released_size(variant: str, layers: int, norms: int, parameters: int) -> None:
    spec = released_spec(variant)
    assert len(list(traced_model(spec).graph)) == 13 * layers + 4
    model = semantic_model(spec, UnreadableSource(GEMMA.tensor_shapes(spec), 0))
    tensors = [tensor.const_value for tensor in model.graph.initializers.values()]
    rotary = 2 * spec.max_position_embeddings * spec.head_dim // 2
    assert sum(tensor.size for tensor in tensors if isinstance(tensor, WeightTensor)) == parameters + rotary

    target = TARGETS["ort"]
    target.lower(model)
    target.finish(model, 1)
    target.check(model, spec, "float32")
    assert count(model, "GroupQueryAttention", "com.microsoft") == layers
    skips = count(model, "SkipSimplifiedLayerNormalization", "com.microsoft")
    assert (skips, skips + count(model, "SimplifiedLayerNormalization")) == (norms - 1, norms)
    assert count(model, "Gelu") == layers
    lowered = [tensor.const_value for tensor in model.graph.initializers.values()]
    assert sum(tensor.size for tensor in lowered if isinstance(tensor, WeightTensor)) == parameters + rotary
