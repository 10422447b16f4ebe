"""The released sizes: traced, lowered and finished without a byte of weights."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from graphs import UnreadableSource, count, released_spec, semantic_model, traced_model

from gemma_export.families import FAMILIES
from gemma_export.targets import TARGETS
from gemma_export.weights import WeightTensor

# semantic nodes of a layer, and of all that stands around the layers
_NODES = {"gemma": (13, 4), "gemma2": (15, 5), "gemma3": (17, 4)}


def _size(variant: str, layers: int, windowed: int, parameters: int, *, slow: bool = True) -> Any:
    """One released size; tracing takes half a second a layer, so one of each family runs by default."""
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(variant, layers, windowed, parameters, marks=marks, id=variant)


# layers with a window, and parameters of the text decoder: those of the published tensors
_SIZES = [
    _size("2b", 18, 0, 2_506_172_416, slow=False),
    _size("7b", 28, 0, 8_537_680_896, slow=False),
    _size("gemma2-2b", 26, 13, 2_614_341_888, slow=False),
    _size("gemma2-9b", 42, 21, 9_241_705_984),
    _size("gemma2-27b", 46, 23, 27_227_128_320),
    _size("gemma3-270m", 18, 15, 268_098_176, slow=False),
    _size("gemma3-1b", 26, 22, 999_885_952),
    _size("gemma3-4b", 34, 29, 3_880_263_168),
    _size("gemma3-12b", 48, 40, 11_766_034_176),
    _size("gemma3-27b", 62, 52, 27_009_346_304),
]


@pytest.mark.parametrize(("variant", "layers", "windowed", "parameters"), _SIZES)
def test_released_size(variant: str, layers: int, windowed: int, parameters: int) -> None:
    spec = released_spec(variant)
    of_a_layer, around = _NODES[spec.family]
    assert len(list(traced_model(spec).graph)) == of_a_layer * layers + around
    source = UnreadableSource(FAMILIES[spec.family].tensor_shapes(spec), 0)
    model = semantic_model(spec, source)
    # of each rotary embedding a table of cosines and one of sines
    rotary = len(spec.rotary_tables) * 2 * spec.max_position_embeddings * spec.head_dim // 2
    assert _stored(model) == parameters + rotary

    target = TARGETS["ort"]
    target.lower(model)
    target.settle(model, spec)
    target.finish(model, 1)
    target.check(model, spec, "float32")
    assert count(model, "GroupQueryAttention", "com.microsoft") == layers
    skips = count(model, "SkipSimplifiedLayerNormalization", "com.microsoft")
    beside_sums = (2 if spec.post_norms else 0) + (2 if spec.qk_norm else 0)
    assert (skips, count(model, "SimplifiedLayerNormalization")) == (2 * layers, 1 + beside_sums * layers)
    assert count(model, "Gelu") == layers
    assert count(model, "Tanh") == (1 if spec.family == "gemma2" else 0)
    # Gemma 3's kernels rotate outside attention, by rows that each step computes
    computed = spec.family == "gemma3"
    assert count(model, "RotaryEmbedding", "com.microsoft") == (2 * layers if computed else 0)
    assert count(model, "Cos") == (2 if computed else 0)
    assert _stored(model) == parameters + (0 if computed else rotary)
    assert [node.attributes["local_window_size"].as_int() for node in _attention(model)] == [
        window or -1 for window in spec.windows
    ]
    assert sum(window > 0 for window in spec.windows) == windowed

    if windowed:
        assert target.windowed is not None
        target.windowed(model)
        target.check(model, spec, "float32")
        kept = [node for node in _attention(model) if "sliding_window_cache" in node.attributes]
        assert len(kept) == windowed
        past = [tensor.shape for tensor in model.graph.inputs if str(tensor.name).startswith("past_key_values.")]
        assert [str(shape[2]) == "window_capacity" for shape in past if shape is not None] == [
            window > 0 for window in spec.windows for _ in ("key", "value")
        ]


def _attention(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "GroupQueryAttention"]


def _stored(model: ir.Model) -> int:
    """Elements of all lazy weights."""
    tensors = [tensor.const_value for tensor in model.graph.initializers.values()]
    return sum(tensor.size for tensor in tensors if isinstance(tensor, WeightTensor))
