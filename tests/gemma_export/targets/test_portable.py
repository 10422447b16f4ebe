"""The portable target: standard operators only, inlined or as functions whose bodies are standard."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir
import pytest
from graphs import LAYERS, PADDINGS, SPEC, UNTIED, assert_same, find, run_steps, semantic_model, serialize

from gemma_export.artifact.plan import stays_inline
from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.families import FAMILIES
from gemma_export.precision import PRECISIONS, Precision
from gemma_export.targets import TARGETS, Target
from gemma_export.targets.onnxruntime_releases import first_release
from gemma_export.weights import WeightTensor

_INLINED = TARGETS["portable"]
assert _INLINED.with_functions is not None
_FUNCTIONS = _INLINED.with_functions
_TARGETS = pytest.mark.parametrize("target", [_INLINED, _FUNCTIONS], ids=["inlined", "functions"])
_RUNNABLE = [precision for precision in PRECISIONS.values() if precision.activation_dtype in _INLINED.providers]


def _finished(target: Target, keep: int = 0, spec: DecoderSpec = SPEC, precision: Precision | None = None) -> ir.Model:
    model = semantic_model(spec)
    target.lower(model)
    if precision is not None:
        precision.apply(model)
    target.finish(model, keep)
    return model


@_TARGETS
@pytest.mark.parametrize("keep", [0, 1, 8])
@pytest.mark.parametrize("precision", _RUNNABLE, ids=lambda precision: precision.name)
def test_finished_graphs_pass_our_check_and_the_checker_of_onnx(
    target: Target, precision: Precision, keep: int
) -> None:
    model = _finished(target, keep, precision=precision)
    target.check(model, SPEC, precision.activation_dtype)
    onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)


def test_inlined_graphs_have_one_domain_and_no_function() -> None:
    model = _finished(_INLINED)
    assert not model.functions
    assert dict(model.graph.opset_imports) == {"": 23}
    assert {node.domain for node in model.graph} == {""}


def test_kept_functions_are_the_semantic_operators() -> None:
    model = _finished(_FUNCTIONS, keep=1)
    assert dict(model.graph.opset_imports) == {"": 23, "gemma": 1}
    assert {node.domain for node in model.graph} == {"gemma"}
    assert {name for _, name, _ in model.functions} == {node.op_type for node in model.graph}
    for function in model.functions.values():
        assert {node.domain for node in function} == {""}


def test_a_function_that_nothing_calls_is_left_out() -> None:
    assert "LastTokens" not in {name for _, name, _ in _finished(_FUNCTIONS, keep=0).functions}
    assert "LastTokens" in {name for _, name, _ in _finished(_FUNCTIONS, keep=1).functions}


@_TARGETS
@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
def test_same_numbers(target: Target, spec: DecoderSpec, padding: str) -> None:
    assert_same(_finished(target, spec=spec), semantic_model(spec), padding)


@_TARGETS
def test_last_token_of_padded_rows(target: Target) -> None:
    everything = run_steps(_finished(target), "mixed").prefill
    last = run_steps(_finished(target, keep=1), "mixed").prefill
    for row, columns in enumerate(PADDINGS["mixed"]):
        assert abs(last[row, 0] - everything[row, columns.stop - 1]).max() < 1e-6


@_TARGETS
def test_first_release_is_the_one_that_knows_opset_23(target: Target) -> None:
    assert first_release(_finished(target)) == "1.23.0"


@_TARGETS
@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", _RUNNABLE, ids=lambda precision: precision.name)
def test_stored_tensors_are_what_the_graph_stores(target: Target, precision: Precision, spec: DecoderSpec) -> None:
    shapes = FAMILIES["gemma"].tensor_shapes(spec)
    planned = Counter(precision.stored_nbytes(shape) for _, shape in target.stored_tensors(shapes, spec))
    tensors = list(_finished(target, 1, spec, precision).graph.initializers.values())
    weights = [tensor for tensor in tensors if isinstance(tensor.const_value, WeightTensor)]
    assert planned == Counter(len(tensor.const_value.tobytes()) for tensor in weights)
    assert all(stays_inline(tensor.const_value.nbytes) for tensor in tensors if tensor not in weights)


@_TARGETS
def test_same_inputs_give_the_same_bytes(target: Target) -> None:
    assert serialize(_finished(target)) == serialize(_finished(target))


_INLINED_COUNTS = ["Attention", "RotaryEmbedding", "RMSNormalization", "Gelu", "MatMul"]
_FUNCTION_COUNTS = ["Attention", "RMSNorm", "GeGLU", "Linear", "ResidualAdd", "ScaledEmbedding"]


@pytest.mark.parametrize(
    ("target", "op_type"),
    [*((_INLINED, name) for name in _INLINED_COUNTS), *((_FUNCTIONS, name) for name in _FUNCTION_COUNTS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_counts_every_operator(target: Target, op_type: str) -> None:
    model = _finished(target)
    next(node for node in model.graph if node.op_type == op_type).op_type = "Reshape"
    with pytest.raises(PassError, match=rf"target portable: expected \d+ {op_type} nodes for {LAYERS} layers"):
        target.check(model, SPEC, "float32")


def test_check_refuses_a_contrib_operator() -> None:
    model = _finished(_INLINED)
    next(node for node in model.graph if node.op_type == "Mul").domain = "com.microsoft"
    with pytest.raises(PassError, match=r"com\.microsoft::Mul, which not every runtime knows"):
        _INLINED.check(model, SPEC, "float32")


def test_check_refuses_a_contrib_operator_inside_a_function() -> None:
    model = _finished(_FUNCTIONS)
    body = next(function for (_, name, _), function in model.functions.items() if name == "GeGLU")
    next(node for node in body if node.op_type == "Gelu").domain = "com.microsoft"
    with pytest.raises(PassError, match=r"com\.microsoft::Gelu, which not every runtime knows"):
        _FUNCTIONS.check(model, SPEC, "float32")


def test_check_refuses_a_function_without_a_body() -> None:
    model = _finished(_FUNCTIONS)
    del model.functions["gemma", "GeGLU", ""]
    with pytest.raises(PassError, match=r"model\.layers\.0\.mlp\.GeGLU has no function body"):
        _FUNCTIONS.check(model, SPEC, "float32")


def test_check_notices_a_semantic_node_that_was_not_lowered() -> None:
    model = semantic_model()
    _INLINED.lower(model)
    with pytest.raises(PassError, match=r"decoder\.LastTokens is gemma::LastTokens"):
        _INLINED.check(model, SPEC, "float32")
    assert find(model, "decoder.LastTokens")
