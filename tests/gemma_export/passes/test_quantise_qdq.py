"""Integer weights in standard operators against the contrib kernels over the same values."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    SPEC,
    UNTIED,
    ArraySource,
    assert_unchanged,
    count,
    deviation,
    find,
    random_arrays,
    run_outputs,
    run_steps,
    semantic_model,
    serialize,
    tap,
)

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.passes import QuantiseMatrices, QuantiseQdq
from gemma_export.precision import PRECISIONS, SCHEMES, WeightScheme, quantised
from gemma_export.precision.blockwise import block_quantiser
from gemma_export.targets import TARGETS, Target

_INT4, _INT8 = SCHEMES["int4"], SCHEMES["int8"]
# hidden 24, 36 and 64: the first two are no multiples of a block
_SCHEMES = {
    "int4": dataclasses.replace(_INT4, block_size=32),
    "int4 symmetric": dataclasses.replace(_INT4, block_size=32, symmetric=True, quantiser="rtn"),
    "int4, table 8": dataclasses.replace(_INT4, block_size=64, embedding_bits=8),
    "int8": _INT8,
    "int8 zero points": dataclasses.replace(_INT8, block_size=32, symmetric=False),
}
# a table whose rows end in whole blocks, of an even number: with zero points
_WIDE = dataclasses.replace(SPEC, hidden_size=64)
_PORTABLE = TARGETS["portable"]
_ORT_QDQ = TARGETS["ort"].with_format("qdq")
assert _ORT_QDQ is not None
_TARGETS = pytest.mark.parametrize("target", [_PORTABLE, _ORT_QDQ], ids=["portable", "ort"])


def _lowered(target: Target, spec: DecoderSpec) -> ir.Model:
    model = semantic_model(spec, ArraySource(random_arrays(spec)))
    target.lower(model)
    return model


def _qdq(
    scheme: WeightScheme, spec: DecoderSpec = SPEC, target: Target = _PORTABLE, activations: str = "fp32"
) -> ir.Model:
    model = _lowered(target, spec)
    precision = quantised(PRECISIONS[activations], dataclasses.replace(scheme, format="qdq"))
    assert target.quantise is not None
    target.quantise(model, block_quantiser(precision), precision.activation_dtype)
    precision.apply(model)
    target.finish(model, 0)
    return model


def _nbits(scheme: WeightScheme, spec: DecoderSpec, activations: str = "fp32") -> ir.Model:
    """Contrib kernels, with activations at full precision."""
    target = TARGETS["ort"]
    model = _lowered(target, spec)
    precision = quantised(PRECISIONS[activations], scheme)
    QuantiseMatrices(block_quantiser(precision), accuracy_level=0)(model)
    precision.apply(model)
    target.finish(model, 0)
    return model


@_TARGETS
@pytest.mark.parametrize("spec", [SPEC, UNTIED, _WIDE], ids=["tied", "untied", "divisible"])
@pytest.mark.parametrize("name", sorted(_SCHEMES))
def test_computes_what_the_contrib_kernels_do(name: str, spec: DecoderSpec, target: Target) -> None:
    scheme = _SCHEMES[name]
    found = run_steps(_qdq(scheme, spec, target)).real("none")
    assert deviation(found, run_steps(_nbits(scheme, spec)).real("none")) <= tolerances.FP32_LOGITS


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_padded_batches(padding: str) -> None:
    scheme = _SCHEMES["int4"]
    found = run_steps(_qdq(scheme), padding).real(padding)
    assert deviation(found, run_steps(_nbits(scheme, SPEC), padding).real(padding)) <= tolerances.FP32_LOGITS


@_TARGETS
@pytest.mark.parametrize("name", ["int4", "int8 zero points"])
def test_float16_activations(name: str, target: Target) -> None:
    scheme = _SCHEMES[name]
    found = run_steps(_qdq(scheme, target=target, activations="fp16")).real("none")
    assert 0 < deviation(found, run_steps(_nbits(scheme, SPEC, "fp16")).real("none")) <= tolerances.FP16_LOGITS


@pytest.mark.parametrize("activations", ["fp32", "fp16"])
@pytest.mark.parametrize("spec", [SPEC, _WIDE], ids=["padded", "divisible"])
@pytest.mark.parametrize("name", sorted(_SCHEMES))
def test_looked_up_rows_are_bit_for_bit_those_of_the_contrib_kernel(
    name: str, spec: DecoderSpec, activations: str
) -> None:
    """The rows before the factor on the embedding: one rounding of an exact product on both sides."""
    ids = np.array([[3, 4, 39], [0, 8, 3]])
    rows = []
    for model in (_qdq(_SCHEMES[name], spec, activations=activations), _nbits(_SCHEMES[name], spec, activations)):
        looked_up = find(model, "model.embed_tokens.Mul").inputs[0]
        assert looked_up is not None
        rows += run_outputs(tap(model, str(looked_up.name)), [str(looked_up.name)], ids, np.ones_like(ids))
    assert rows[0].shape == (2, 3, spec.hidden_size)
    assert rows[0].std() > 0.1
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize("activations", ["fp32", "fp16"])
@pytest.mark.parametrize("name", sorted(_SCHEMES))
def test_finished_graphs_are_standard_and_pass_the_checks(name: str, activations: str) -> None:
    model = _qdq(_SCHEMES[name], activations=activations)
    _PORTABLE.check(model, SPEC, PRECISIONS[activations].activation_dtype)
    assert {node.domain for node in model.graph} == {""}
    onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)


@pytest.mark.parametrize("activations", ["fp32", "fp16"])
@pytest.mark.parametrize("name", sorted(_SCHEMES))
def test_the_ort_target_takes_the_format(name: str, activations: str) -> None:
    model = _qdq(_SCHEMES[name], target=_ORT_QDQ, activations=activations)
    _ORT_QDQ.check(model, SPEC, PRECISIONS[activations].activation_dtype)
    assert count(model, "DequantizeLinear") == 5 * LAYERS + 1
    assert count(model, "FusedMatMul", "com.microsoft") == 0


@pytest.mark.parametrize("name", sorted(_SCHEMES))
def test_sessions_fold_every_product(name: str, tmp_path: object) -> None:
    """No DequantizeLinear is left to unpack a matrix at every step; the tied head's neither."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimised.onnx"
    options.log_severity_level = 3
    onnxruntime.InferenceSession(serialize(_qdq(_SCHEMES[name])), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert found["MatMulNBits"] == 7 * LAYERS + 1
    assert found["DequantizeLinear"] == 0


def test_a_tied_table_is_stored_once() -> None:
    model = _qdq(_SCHEMES["int4"], _WIDE)
    parts = {name: value.const_value for name, value in model.graph.initializers.items() if ".embed_tokens." in name}
    head = find(model, "lm_head.DequantizeLinear")
    assert [value.name for value in head.inputs] == [
        f"model.embed_tokens.weight.{part}" for part in ("data", "scales", "zero_points")
    ]
    for table, part in (("table", "data"), ("table_scales", "scales"), ("table_zero_points", "zero_points")):
        alias, own = (parts[f"model.embed_tokens.weight.{name}"] for name in (table, part))
        assert alias.weight is own.weight


def test_what_the_scheme_leaves_out_stays() -> None:
    assert_unchanged(_lowered(_PORTABLE, SPEC), QuantiseQdq(lambda name, weight: None))


def test_a_second_run_finds_nothing() -> None:
    model = _lowered(_PORTABLE, SPEC)
    scheme = dataclasses.replace(_SCHEMES["int4"], format="qdq")
    rewrite = QuantiseQdq(block_quantiser(quantised(PRECISIONS["fp32"], scheme)))
    assert rewrite(model).modified
    assert not rewrite(model).modified


def test_refuses_another_reader() -> None:
    model = _lowered(_PORTABLE, SPEC)
    table = model.graph.initializers["model.embed_tokens.weight"]
    model.graph.append(ir.node("Identity", inputs=[table], name="odd"))
    scheme = dataclasses.replace(_SCHEMES["int4"], format="qdq")
    with pytest.raises(
        PassError,
        match=r"refuses odd \(Identity\): it reads the quantised weight model\.embed_tokens\.weight as input 0",
    ):
        QuantiseQdq(block_quantiser(quantised(PRECISIONS["fp32"], scheme)))(model)


@pytest.mark.parametrize(
    ("target", "name", "attribute", "reason"),
    [
        (_ORT_QDQ, "model.layers.1.mlp.up_proj.FusedMatMul", ir.AttrInt64("transB", 0), "transB = 0, expected 1"),
        (_PORTABLE, "model.embed_tokens.Gather", ir.AttrInt64("axis", 1), "axis = 1, expected 0"),
        (
            _PORTABLE,
            "model.layers.1.mlp.up_proj.Transpose",
            ir.AttrInt64s("perm", [0, 1]),
            r"perm = \[0, 1\], expected \[1, 0\]",
        ),
    ],
)
def test_refuses_another_side_of_the_matrix(target: Target, name: str, attribute: ir.Attr, reason: str) -> None:
    model = _lowered(target, SPEC)
    find(model, name).attributes[attribute.name] = attribute
    scheme = dataclasses.replace(_SCHEMES["int4"], format="qdq")
    with pytest.raises(PassError, match=rf"refuses {name}.*{reason}"):
        QuantiseQdq(block_quantiser(quantised(PRECISIONS["fp32"], scheme)))(model)
