"""The ort target: what its finished graphs hold, what it refuses, what its data file stores."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
from graphs import LAYERS, PADDINGS, SPEC, UNTIED, apply, assert_same, find, semantic_model, serialize, value

from gemma_export import passes
from gemma_export.artifact.plan import stays_inline
from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.families import FAMILIES
from gemma_export.precision import PRECISIONS, SCHEMES, Precision, quantised
from gemma_export.precision.block_weight import BlockPart
from gemma_export.precision.blockwise import block_quantiser, row_quantiser
from gemma_export.targets import TARGETS
from gemma_export.targets.onnxruntime_releases import first_release
from gemma_export.weights import WeightTensor

_ORT = TARGETS["ort"]
_LOWERINGS = (
    passes.AlignRows,
    passes.FuseGroupQueryAttention,
    passes.FuseNorms,
    passes.LowerGeGLU,
    passes.LowerLinear,
    passes.LowerEmbedding,
)


_QUANTISED = {
    precision.name: precision
    for precision in (
        quantised(activations, scheme)
        for activations in PRECISIONS.values()
        for scheme in SCHEMES.values()
        # refused: integer products are for float32 activations
        if not scheme.dynamic or activations.activation_dtype == "float32"
    )
}
_ALL = {**PRECISIONS, **_QUANTISED}


def _apply(precision: Precision, model: ir.Model) -> None:
    if precision.scheme is not None:
        assert _ORT.quantise is not None
        assert _ORT.quantise_activations is not None
        _ORT.quantise(model, block_quantiser(precision), precision.activation_dtype)
        _ORT.quantise_activations(model, row_quantiser(precision))
    precision.apply(model)


def _finished(keep: int = 0, spec: DecoderSpec = SPEC) -> ir.Model:
    model = semantic_model(spec)
    _ORT.lower(model)
    _ORT.finish(model, keep)
    return model


@pytest.mark.parametrize("keep", [0, 1, 8])
@pytest.mark.parametrize("precision", _ALL.values(), ids=list(_ALL))
def test_finished_graphs_pass_the_check(precision: Precision, keep: int) -> None:
    model = semantic_model()
    _ORT.lower(model)
    _apply(precision, model)
    _ORT.finish(model, keep)
    _ORT.check(model, SPEC, precision.activation_dtype)
    assert not model.functions
    assert dict(model.graph.opset_imports) == {"": 21, "com.microsoft": 1}
    assert {node.domain for node in model.graph} == {"", "com.microsoft"}


def test_graphs_without_batched_chunks_pass_the_check_and_need_no_new_release() -> None:
    model = _finished()
    assert first_release(model) == "1.32.0"
    _ORT.compat(model)
    _ORT.check(model, SPEC, "float32")
    assert first_release(model) == "1.20.0"


@pytest.mark.parametrize("precision", _ALL.values(), ids=list(_ALL))
def test_static_graphs_pass_the_check_and_need_no_new_release(precision: Precision) -> None:
    model = semantic_model()
    _ORT.lower(model)
    _apply(precision, model)
    assert _ORT.static is not None
    _ORT.static(model)
    _ORT.finish(model, 1)
    before = serialize(model)
    _ORT.compat(model)
    assert serialize(model) == before
    _ORT.check(model, SPEC, precision.activation_dtype)
    assert first_release(model) == ("1.20.0" if precision.scheme is None else "1.23.0")
    assert {node.domain for node in model.graph} == {"", "com.microsoft"}
    logits = next(output for output in model.graph.outputs if output.name == "logits")
    assert logits.shape == [1, 1, SPEC.vocab_size]


def test_quantised_graphs_need_the_release_that_reads_packed_tables() -> None:
    model = semantic_model()
    _ORT.lower(model)
    _apply(_QUANTISED["int4"], model)
    _ORT.finish(model, 1)
    _ORT.compat(model)
    assert first_release(model) == "1.23.0"
    levels = {node.attributes["accuracy_level"].value for node in model.graph if node.op_type == "MatMulNBits"}
    assert levels == {4}


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
def test_same_numbers(spec: DecoderSpec, padding: str) -> None:
    assert_same(_finished(spec=spec), semantic_model(spec), padding)


def test_same_inputs_give_the_same_bytes() -> None:
    assert serialize(_finished()) == serialize(_finished())


def test_twins_share_every_weight() -> None:
    model = semantic_model()
    _ORT.lower(model)
    twins = [model.clone(), model.clone()]
    for keep, twin in enumerate(twins):
        _ORT.finish(twin, keep)
    first, second = (
        {name: id(tensor.const_value) for name, tensor in twin.graph.initializers.items() if _is_weight(tensor)}
        for twin in twins
    )
    assert first == second
    assert len(first) == 3 + 7 * LAYERS + 1


_COUNTS = {
    "GroupQueryAttention": LAYERS,
    "SkipSimplifiedLayerNormalization": 2 * LAYERS,
    "SimplifiedLayerNormalization": 1,
    "Gelu": LAYERS,
    "FusedMatMul": 5 * LAYERS + 1,
}


@pytest.mark.parametrize("op_type", sorted(_COUNTS))
@pytest.mark.parametrize("surplus", [-1, 1])
def test_check_counts_every_fusion(op_type: str, surplus: int) -> None:
    model = _finished()
    node = next(node for node in model.graph if node.op_type == op_type)
    if surplus < 0:
        node.op_type = "Reshape"
    else:
        next(node for node in model.graph if node.op_type == "Mul").op_type = op_type
    expected = _COUNTS[op_type]
    message = rf"target ort: expected {expected} {op_type} nodes for {LAYERS} layers, found {expected + surplus}"
    with pytest.raises(PassError, match=message):
        _ORT.check(model, SPEC, "float32")


@pytest.mark.parametrize(
    "left_out", [passes.FuseGroupQueryAttention, passes.FuseNorms, passes.LowerGeGLU, passes.LowerLinear]
)
def test_check_notices_a_pass_left_out(left_out: type[ir.passes.InPlacePass]) -> None:
    model = semantic_model()
    apply(model, *(lowering() for lowering in _LOWERINGS if lowering is not left_out))
    _ORT.finish(model, 1)
    with pytest.raises(PassError, match=f"target ort: expected .* for {LAYERS} layers, found"):
        _ORT.check(model, SPEC, "float32")


def test_check_notices_a_semantic_node() -> None:
    model = semantic_model()
    _ORT.lower(model)
    with pytest.raises(PassError, match=r"no kernel for LastTokens \(float32\) of decoder\.LastTokens"):
        _ORT.check(model, SPEC, "float32")


@pytest.mark.parametrize(
    ("op_type", "source", "dtype"), [("Erf", "layers.1.mlp_residual", "float32"), ("Sign", "rows.first", "int64")]
)
def test_check_refuses_what_is_not_on_the_allow_list(op_type: str, source: str, dtype: str) -> None:
    model = _finished()
    model.graph.append(ir.node(op_type, inputs=[value(model, source)], name="odd"))
    with pytest.raises(PassError, match=rf"the cpu provider has no kernel for {op_type} \({dtype}\) of odd"):
        _ORT.check(model, SPEC, "float32")


def test_check_refuses_a_type_without_kernel() -> None:
    model = _finished()
    value(model, "model.layers.0.mlp.gate_proj.Linear").type = ir.TensorType(ir.DataType.BFLOAT16)
    with pytest.raises(PassError, match=r"no kernel for Gelu \(bfloat16\) of model\.layers\.0\.mlp\.Gelu"):
        _ORT.check(model, SPEC, "float32")


def test_check_refuses_a_node_without_types() -> None:
    model = _finished()
    gelu = find(model, "model.layers.0.mlp.Gelu")
    for tensor in (*gelu.inputs, *gelu.outputs):
        tensor.type = None
    with pytest.raises(PassError, match=r"target ort: model\.layers\.0\.mlp\.Gelu has no typed input or output"):
        _ORT.check(model, SPEC, "float32")


def test_check_asks_every_provider_of_the_activation_dtype() -> None:
    """A float32 graph declared as float16 would reach CUDA, whose attention has no float32 kernel."""
    _ORT.check(_finished(), SPEC, "float32")
    with pytest.raises(PassError, match=r"the cuda provider has no kernel for GroupQueryAttention \(float32\)"):
        _ORT.check(_finished(), SPEC, "float16")


def test_a_refusal_of_a_pass_reaches_the_user_as_it_is() -> None:
    """Not wrapped by onnx-ir's own error, whose message says neither node nor reason."""
    model = semantic_model()
    find(model, "model.norm.RMSNorm").attributes["axis"] = ir.AttrInt64("axis", -2)
    with pytest.raises(PassError, match=r"refuses model\.norm\.RMSNorm .*unknown attribute axis = -2") as caught:
        _ORT.lower(model)
    assert caught.value.hint


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", _ALL.values(), ids=list(_ALL))
def test_stored_tensors_are_what_the_graph_stores(precision: Precision, spec: DecoderSpec) -> None:
    shapes = FAMILIES["gemma"].tensor_shapes(spec)
    planned = Counter(
        nbytes for name, shape in _ORT.stored_tensors(shapes, spec) for _, nbytes in precision.stored(name, shape)
    )
    model = semantic_model(spec)
    _ORT.lower(model)
    _apply(precision, model)
    _ORT.finish(model, 1)
    tensors = [tensor for tensor in model.graph.initializers.values() if tensor.const_value is not None]
    assert len(tensors) == len(model.graph.initializers)
    # a table and the head tied to it are one range of bytes
    distinct = {id(tensor.const_value.weight): tensor for tensor in tensors if _is_weight(tensor)}
    assert planned == Counter(len(tensor.const_value.tobytes()) for tensor in distinct.values())
    # what the plan does not know is small enough to stay inside the graph
    assert all(stays_inline(tensor.const_value.nbytes) for tensor in tensors if not _is_weight(tensor))


def test_stored_tensors_have_names_of_their_own() -> None:
    names = [name for name, _ in _ORT.stored_tensors(FAMILIES["gemma"].tensor_shapes(UNTIED), UNTIED)]
    assert len(set(names)) == len(names)


def test_interface_survives_lowering() -> None:
    semantic, finished = semantic_model(), _finished()
    for side in ("inputs", "outputs"):
        expected, found = (
            [(tensor.name, tensor.dtype, str(tensor.shape)) for tensor in getattr(model.graph, side)]
            for model in (semantic, finished)
        )
        assert found == expected


def _is_weight(tensor: ir.Value) -> bool:
    return isinstance(tensor.const_value, WeightTensor | BlockPart)
