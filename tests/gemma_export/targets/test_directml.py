"""The directml target: its structure, its restrictions, and the same numbers on the CPU provider."""

from __future__ import annotations

import dataclasses
from collections import Counter

import onnx
import onnx_ir as ir
import pytest
from graphs import LAYERS, PADDINGS, SPEC, UNTIED, assert_same, semantic_model, serialize, set_attribute

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.families import FAMILIES
from gemma_export.precision import PRECISIONS, Precision
from gemma_export.targets import TARGETS
from gemma_export.targets.directml_support import _KERNELS, _ON_CPU, OPSET_CEILING, supported
from gemma_export.targets.onnxruntime_releases import first_release
from gemma_export.weights import WeightTensor

_DIRECTML = TARGETS["directml"]
_RUNNABLE = [precision for precision in PRECISIONS.values() if precision.activation_dtype in _DIRECTML.providers]


def _finished(keep: int = 0, spec: DecoderSpec = SPEC, precision: Precision | None = None) -> ir.Model:
    model = semantic_model(spec)
    _DIRECTML.lower(model)
    if precision is not None:
        precision.apply(model)
    _DIRECTML.finish(model, keep)
    return model


@pytest.mark.parametrize("keep", [0, 1, 8])
@pytest.mark.parametrize("precision", _RUNNABLE, ids=lambda precision: precision.name)
def test_finished_graphs_pass_the_check(precision: Precision, keep: int) -> None:
    model = _finished(keep, precision=precision)
    _DIRECTML.check(model, SPEC, precision.activation_dtype)
    assert not model.functions
    assert dict(model.graph.opset_imports) == {"": 21, "com.microsoft": 1}


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
def test_same_numbers_on_the_cpu(spec: DecoderSpec, padding: str) -> None:
    assert_same(_finished(spec=spec), semantic_model(spec), padding)


def test_no_query_lengths_no_packed_inputs_no_rotation_in_attention() -> None:
    for node in _finished().graph:
        if node.op_type == "GroupQueryAttention":
            assert len(node.inputs) == 7
            assert all(value is not None for value in node.inputs)
            assert set(node.attributes) == {"num_heads", "kv_num_heads", "scale"}


def test_every_release_with_directml_loads_it() -> None:
    assert first_release(_finished()) == "1.20.0"


def test_chunks_are_not_for_this_kernel() -> None:
    assert _DIRECTML.chunks == "none"


def _limited(name: str, number: float) -> tuple[DecoderSpec, ir.Model]:
    """All layers with a softcap, or the second one with a window."""
    model = semantic_model()
    if name == "softcap":
        set_attribute(model, "Attention", name, number)
        return dataclasses.replace(SPEC, attention_softcap=number), model
    attention = [node for node in model.graph if node.op_type == "Attention"][1]
    attention.attributes[name] = ir.AttrInt64(name, int(number))
    return dataclasses.replace(SPEC, windows=(0, int(number))), model


@pytest.mark.parametrize(("name", "number"), [("softcap", 0.5), ("window", 3)])
@pytest.mark.parametrize("precision", _RUNNABLE, ids=lambda precision: precision.name)
def test_attention_that_the_kernel_cannot_do(precision: Precision, name: str, number: float) -> None:
    spec, semantic = _limited(name, number)
    model = semantic.clone()
    _DIRECTML.lower(model)
    precision.apply(model)
    _DIRECTML.settle(model, spec)
    _DIRECTML.finish(model, 0)
    _DIRECTML.check(model, spec, precision.activation_dtype)
    if precision.activation_dtype == "float32":
        assert_same(model, semantic, "mixed")


@pytest.mark.parametrize(("name", "number"), [("softcap", 0.5), ("window", 3)])
def test_the_check_notices_attention_with_another_limit(name: str, number: float) -> None:
    """The kernel in its place would drop what the specification says."""
    spec, _ = _limited(name, number)
    with pytest.raises(PassError, match=r"target directml: expected [01] GroupQueryAttention nodes for 2 layers"):
        _DIRECTML.check(_finished(), spec, "float32")


def test_the_check_notices_attention_that_is_left() -> None:
    spec, model = _limited("window", 3)
    _DIRECTML.lower(model)
    _DIRECTML.finish(model, 0)
    with pytest.raises(PassError, match="target directml: expected 0 Attention nodes for 2 layers, found 1"):
        _DIRECTML.check(model, spec, "float32")


@pytest.mark.parametrize(
    "op_type", ["GroupQueryAttention", "RotaryEmbedding", "SkipSimplifiedLayerNormalization", "FastGelu", "FusedMatMul"]
)
def test_check_counts_every_fusion(op_type: str) -> None:
    model = _finished()
    next(node for node in model.graph if node.op_type == op_type).op_type = "Reshape"
    with pytest.raises(PassError, match=rf"target directml: expected \d+ {op_type} nodes for {LAYERS} layers"):
        _DIRECTML.check(model, SPEC, "float32")


def test_check_refuses_the_standard_gelu() -> None:
    model = _finished()
    product = next(node for node in model.graph if node.name == "model.layers.0.mlp.Mul")
    gelu = ir.node("Gelu", inputs=[product.inputs[1]], name="odd")
    gelu.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(gelu)
    with pytest.raises(PassError, match=r"no kernel for Gelu-20 \(float32\) of odd"):
        _DIRECTML.check(model, SPEC, "float32")


def test_check_refuses_bfloat16() -> None:
    model = _finished()
    for node in model.graph:
        if node.op_type == "FastGelu":
            assert node.inputs[0] is not None
            node.inputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    with pytest.raises(PassError, match=r"no kernel for FastGelu-1 \(bfloat16\)"):
        _DIRECTML.check(model, SPEC, "float32")


def test_every_standard_kernel_is_of_the_opset_that_is_written() -> None:
    """The ceiling: at opset 23 Cast, Shape, Squeeze and Unsqueeze would be newer than DirectML's kernels."""
    for domain, op_type in _KERNELS:
        if domain == "" and op_type != "SimplifiedLayerNormalization":
            schema = onnx.defs.get_schema(op_type, OPSET_CEILING, "")
            assert schema.since_version == _KERNELS[domain, op_type].version, op_type
    newer = onnx.defs.get_schema("Cast", 23, "").since_version
    assert not supported("", "Cast", "int64", newer)


def test_only_index_arithmetic_is_left_to_the_cpu() -> None:
    assert {dtype for _, _, dtype in _ON_CPU} == {"int64"}
    assert not supported("com.microsoft", "GatherBlockQuantized", "float32", 1)


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", _RUNNABLE, ids=lambda precision: precision.name)
def test_stored_tensors_are_what_the_graph_stores(precision: Precision, spec: DecoderSpec) -> None:
    shapes = FAMILIES["gemma"].tensor_shapes(spec)
    planned = Counter(precision.stored_nbytes(shape) for _, shape in _DIRECTML.stored_tensors(shapes, spec))
    tensors = _finished(1, spec, precision).graph.initializers.values()
    weights = [tensor.const_value for tensor in tensors if isinstance(tensor.const_value, WeightTensor)]
    assert planned == Counter(len(weight.tobytes()) for weight in weights)


def test_same_inputs_give_the_same_bytes() -> None:
    assert serialize(_finished()) == serialize(_finished())
