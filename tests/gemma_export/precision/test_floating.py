"""One floating-point type for a whole graph, and where in a weight's expression the cast stands."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import GEMMA, SPEC, ArraySource, UnreadableSource, find, random_arrays, semantic_model, set_attribute

from gemma_export.errors import NonFiniteError, PassError
from gemma_export.precision.floating import convert_floats, sink_cast
from gemma_export.targets import TARGETS
from gemma_export.weights import Cast, Concat, Constant, Shift, Stored, Transpose, Weight, WeightTensor

_HALF = torch.float16


def _stored(array: np.ndarray) -> Weight:
    """As binding makes it: stored values widened to float32."""
    return Cast(Stored(ArraySource({"w": array}), "w"), torch.float32)


def _leaves(weight: Weight) -> Iterator[Weight]:
    if isinstance(weight, Concat):
        for part in weight.weights:
            yield from _leaves(part)
    elif isinstance(weight, Transpose):
        yield from _leaves(weight.weight)
    else:
        yield weight


# half an ulp of 1 in float16, and a little more: rounded first, the excess is lost and the tie goes to even
_NEAR_TIE = np.float32(2**-11 * (1 + 2**-12))
_MATRIX = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "build",
    [
        lambda: _stored(_MATRIX),
        lambda: Transpose(_stored(_MATRIX)),
        lambda: Concat((_stored(_MATRIX), _stored(_MATRIX * 2))),
        lambda: Transpose(Concat((_stored(_MATRIX), _stored(_MATRIX * 2)))),
        lambda: Concat((Transpose(_stored(_MATRIX)), Transpose(_stored(_MATRIX * 2)))),
    ],
    ids=["stored", "transposed", "concatenated", "transposed concatenation", "concatenated transpositions"],
)
def test_layout_changes_commute_with_the_cast(build: object) -> None:
    """The cast sinks to the stored tensor, so no float32 copy is transposed; the numbers are rounded once."""
    weight: Weight = build()  # type: ignore[operator]
    expected = weight.tensor().to(_HALF)
    sunk = sink_cast(weight, _HALF)
    assert (sunk.dtype, sunk.shape) == (_HALF, weight.shape)
    assert torch.equal(sunk.tensor(), expected)
    for leaf in _leaves(sunk):
        assert isinstance(leaf, Cast)
        assert leaf.dtype == _HALF
        assert isinstance(leaf.weight, Stored)


def test_arithmetic_does_not_commute() -> None:
    """1 + w is added in float32 and its sum rounded; rounding w before would lose half an ulp."""
    array = np.array([_NEAR_TIE, 0.25], np.float32)
    weight = Shift(_stored(array), 1.0)
    found = sink_cast(weight, _HALF).tensor()
    rounded_once = (np.float32(1) + array).astype(np.float16)
    np.testing.assert_array_equal(found.numpy(), rounded_once)
    rounded_before = Shift(Cast(Stored(ArraySource({"w": array}), "w"), _HALF), 1.0).tensor()
    assert rounded_before[0] == 1 != rounded_once[0]


def test_gains_of_a_whole_graph_are_rounded_once() -> None:
    arrays = random_arrays()
    arrays["model.norm.weight"][:] = _NEAR_TIE
    model = semantic_model(source=ArraySource(arrays))
    TARGETS["ort"].lower(model)
    convert_floats(model, "float16")
    gain = model.graph.initializers["model.norm.gain"].const_value.numpy()
    np.testing.assert_array_equal(gain, (1 + arrays["model.norm.weight"]).astype(np.float16))
    assert (gain == np.float16(1 + 2**-10)).all()


def test_float32_keeps_the_stored_numbers() -> None:
    weight = sink_cast(Transpose(_stored(_MATRIX)), torch.float32)
    np.testing.assert_array_equal(weight.tensor().numpy(), _MATRIX.T)


def test_a_computed_table_is_cast() -> None:
    table = torch.from_numpy(_MATRIX)
    assert torch.equal(sink_cast(Constant(table, "cos_cache"), _HALF).tensor(), table.to(_HALF))


def test_a_narrowing_that_an_expression_holds_already_is_kept() -> None:
    """Only binding's own, exact, widening is replaced."""
    narrowed = Cast(_stored(_MATRIX), torch.bfloat16)
    found = sink_cast(narrowed, _HALF).tensor()
    assert torch.equal(found, torch.from_numpy(_MATRIX).to(torch.bfloat16).to(_HALF))
    assert not torch.equal(found, torch.from_numpy(_MATRIX).to(_HALF))


def _lowered() -> ir.Model:
    model = semantic_model()
    TARGETS["ort"].lower(model)
    return model


def test_a_constant_that_does_not_fit_is_an_error() -> None:
    model = semantic_model()
    set_attribute(model, "ScaledEmbedding", "scale", 65520.0)
    TARGETS["ort"].lower(model)
    with pytest.raises(
        NonFiniteError, match=r"constant model\.embed_tokens\.scale: 65520\.0 does not fit FLOAT16"
    ) as caught:
        convert_floats(model, "float16")
    assert "--fp32" in caught.value.hint


def test_the_largest_constant_that_fits_is_kept() -> None:
    model = semantic_model()
    set_attribute(model, "ScaledEmbedding", "scale", 65519.0)
    TARGETS["ort"].lower(model)
    convert_floats(model, "float16")
    scale = model.graph.initializers["model.embed_tokens.scale"].const_value.numpy()
    assert (scale.dtype, float(scale)) == (np.float16, 65504.0)


def test_a_cast_to_float32_is_refused() -> None:
    model = _lowered()
    node = find(model, "model.layers.1.mlp.Gelu")
    widened = ir.node("Cast", inputs=[node.inputs[0]], attributes={"to": int(ir.DataType.FLOAT)}, name="widened")
    model.graph.insert_before(node, [widened])
    with pytest.raises(PassError, match="widened casts to float32: its graph cannot take float16 as a whole"):
        convert_floats(model, "float16")


def test_integers_stay() -> None:
    model, converted = _lowered(), _lowered()
    convert_floats(converted, "float16")
    for before, after in zip(_values(model), _values(converted), strict=True):
        assert before.name == after.name
        if before.dtype != ir.DataType.FLOAT:
            assert after.dtype == before.dtype
    seqlens = next(found for found in _values(converted) if found.name == "rows.seqlens_k")
    assert seqlens.dtype == ir.DataType.INT32


def test_float32_changes_no_number() -> None:
    model, converted = _lowered(), _lowered()
    convert_floats(converted, "float32")
    for name, before in model.graph.initializers.items():
        after = converted.graph.initializers[name]
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after.const_value.numpy(), before.const_value.numpy())


def test_nothing_is_read() -> None:
    """Weights stay lazy: a source that cannot be read is enough."""
    model = semantic_model(source=UnreadableSource(GEMMA.tensor_shapes(SPEC), 0))
    TARGETS["ort"].lower(model)
    convert_floats(model, "float16")
    table = model.graph.initializers["model.embed_tokens.weight"].const_value
    assert isinstance(table, WeightTensor)
    with pytest.raises(AssertionError, match=r"model\.embed_tokens\.weight was read"):
        table.numpy()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs
