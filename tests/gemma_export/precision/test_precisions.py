"""The registered floating-point precisions on a whole lowered graph."""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import (
    GEMMA,
    LAYERS,
    PADDINGS,
    SPEC,
    ArraySource,
    deviation,
    random_arrays,
    run_steps,
    semantic_model,
    serialize,
)

from gemma_export.checkpoint import SyntheticSource
from gemma_export.errors import NonFiniteError
from gemma_export.precision import PRECISIONS
from gemma_export.targets import TARGETS
from gemma_export.tensors import TensorSource
from gemma_export.weights import WeightTensor
from gemma_validation import widen_bfloat16

# float16 has 11 bits of mantissa: 5e-4 an operation, a few of them through two layers
_FP16_LOGITS = 2e-2
# bfloat16 has 8 bits, eight times coarser; only the weights are rounded here
_BF16_LOGITS = 1e-1
_DOWN = "model.layers.1.mlp.down_proj.weight"


def _graph(precision: str, source: TensorSource | None = None) -> ir.Model:
    model = semantic_model(source=source)
    TARGETS["ort"].lower(model)
    PRECISIONS[precision].apply(model)
    TARGETS["ort"].finish(model, 0)
    return model


_HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@pytest.mark.parametrize("precision", sorted(_HALVES))
def test_half_precision_leaves_no_float32_value(precision: str) -> None:
    model = _graph(precision)
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs if output.name]
    assert {tensor.dtype for tensor in values} == {
        _HALVES[precision],
        ir.DataType.INT64,
        ir.DataType.INT32,
        ir.DataType.BOOL,
    }
    for tensor in model.graph.initializers.values():
        assert tensor.const_value.dtype == tensor.dtype, tensor.name


@pytest.mark.parametrize("precision", sorted(_HALVES))
def test_half_precision_leaves_no_float32_in_the_file(precision: str) -> None:
    proto = onnx.load_from_string(serialize(_graph(precision)))
    infos = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    assert len(infos) > 20 * LAYERS
    assert onnx.TensorProto.FLOAT not in {info.type.tensor_type.elem_type for info in infos}
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        targets = [attribute.i for attribute in node.attribute if node.op_type == "Cast"]
        assert onnx.TensorProto.FLOAT not in targets
        assert not [attribute for attribute in node.attribute if attribute.HasField("t")]


def test_fp32_is_float32_throughout() -> None:
    model = _graph("fp32")
    floating = [tensor for tensor in model.graph.initializers.values() if tensor.dtype.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {ir.DataType.FLOAT}
    assert {tensor.const_value.dtype for tensor in floating} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_description_agrees_with_the_graph(precision: str) -> None:
    described, model = PRECISIONS[precision], _graph(precision)
    weights = [tensor for tensor in model.graph.initializers.values() if isinstance(tensor.const_value, WeightTensor)]
    for tensor in weights:
        assert tensor.const_value.dtype.numpy() == np.dtype(described.weight_dtype)
        assert described.stored_nbytes(tuple(tensor.shape)) == tensor.const_value.nbytes
    past = model.graph.inputs[2]
    assert past.dtype is not None
    assert past.dtype.numpy() == np.dtype(described.activation_dtype)


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_fp16_numbers(padding: str) -> None:
    found, expected = (run_steps(_graph(precision), padding).real(padding) for precision in ("fp16", "fp32"))
    assert 0 < deviation(found, expected) < _FP16_LOGITS


def test_bf16_numbers_by_their_weights() -> None:
    """The CPU has no bfloat16 kernels: the same graph with the rounded weights, in float32."""
    rounded = widen_bfloat16(_graph("bf16"))
    found, expected = (run_steps(model).real("none") for model in (rounded, _graph("fp32")))
    assert 0 < deviation(found, expected) < _BF16_LOGITS


def test_bf16_gains_are_added_in_float32_and_rounded_once() -> None:
    arrays = random_arrays()
    arrays["model.norm.weight"][:] = np.float32(2**-8 * (1 + 2**-12))
    gain = _graph("bf16", ArraySource(arrays)).graph.initializers["model.norm.gain"].const_value.numpy()
    # half a unit in the last place of 1, and a little more
    assert (gain.astype(np.float32) == 1 + 2**-7).all()


def test_bf16_takes_what_float16_cannot() -> None:
    assert _stream(_graph("bf16", _poisoned(_DOWN, (11, 30), 70000.0))) > 0


def _stream(model: ir.Model) -> int:
    """Writes every weight as the artifact writer does; the number of bytes."""
    file = io.BytesIO()
    for tensor in model.graph.initializers.values():
        if isinstance(tensor.const_value, WeightTensor):
            tensor.const_value.tofile(file)
    return file.tell()


def _poisoned(name: str, position: tuple[int, ...], number: float) -> ArraySource:
    arrays = random_arrays()
    arrays[name][position] = number
    return ArraySource(arrays)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        (_DOWN, (11, 30)),
        ("model.layers.0.self_attn.v_proj.weight", (31, 23)),
        ("model.embed_tokens.weight", (39, 0)),
        ("model.layers.1.input_layernorm.weight", (7,)),
    ],
)
@pytest.mark.parametrize("number", [70000.0, -70000.0, 65536.0])
def test_a_weight_beyond_float16_is_named_while_it_streams(
    name: str, position: tuple[int, ...], number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position is the checkpoint's, though the stored tensor is packed, transposed and read in chunks."""
    monkeypatch.setattr("gemma_export.weights._CHUNK_BYTES", 256)
    source = _poisoned(name, position, number)
    model = _graph("fp16", source)
    with pytest.raises(NonFiniteError, match=rf"tensor {name}, position \[{str(list(position))[1:-1]}\]: ") as caught:
        _stream(model)
    assert "does not fit float16" in caught.value.message
    assert "--fp32" in caught.value.hint
    assert _stream(_graph("fp32", source)) > 0


def test_a_gain_can_overflow_where_its_weight_does_not() -> None:
    """65519 rounds to the largest float16, 1 + 65519 to infinity."""
    arrays = random_arrays()
    arrays["model.norm.weight"][3] = 65519.0
    assert np.isfinite(arrays["model.norm.weight"].astype(np.float16)).all()
    with pytest.raises(NonFiniteError, match=r"tensor model\.norm\.weight, position \[3\]: 65520 does not fit float16"):
        _stream(_graph("fp16", ArraySource(arrays)))


def test_the_largest_weights_that_fit_are_rounded_down() -> None:
    model = _graph("fp16", _poisoned(_DOWN, (11, 30), 65519.0))
    assert _stream(model) > 0
    stored = model.graph.initializers[_DOWN].const_value.numpy()
    assert stored[11, 30] == np.float16(65504)


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_damaged_weight_is_an_error_in_every_precision(precision: str, number: float) -> None:
    model = _graph(precision, _poisoned(_DOWN, (0, 2), number))
    with pytest.raises(NonFiniteError, match=rf"tensor {_DOWN}, position \[0, 2\]: {number}, expected"):
        _stream(model)


def test_bfloat16_checkpoints_are_rounded_once_too() -> None:
    source = SyntheticSource(GEMMA.tensor_shapes(SPEC), 0)
    raw = bytearray(source.tensors[_DOWN].nbytes)
    source.read_into(_DOWN, 0, memoryview(raw))
    stored = np.frombuffer(raw, ml_dtypes.bfloat16).reshape(source.tensors[_DOWN].shape)
    found = _graph("fp16", source).graph.initializers[_DOWN].const_value.numpy()
    np.testing.assert_array_equal(found, stored.astype(np.float32).astype(np.float16))
