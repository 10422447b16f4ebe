"""Quantised kernels of the real onnxruntime against float arithmetic on the dequantised weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
import torch
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
    run_steps,
    semantic_model,
)

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.passes import QuantiseMatrices
from gemma_export.precision import PRECISIONS, SCHEMES, WeightScheme, quantised
from gemma_export.precision.block_codes import BlockCodes, dequantise
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.blockwise import block_quantiser
from gemma_export.targets import TARGETS
from gemma_export.weights import Constant, Weight, WeightTensor

_ORT = TARGETS["ort"]
Matrices = Callable[[str, Weight], BlockWeight | None]


def _matrices(scheme: WeightScheme, activations: str = "fp32") -> Matrices:
    return block_quantiser(quantised(PRECISIONS[activations], scheme))


def _lowered(spec: DecoderSpec = SPEC) -> ir.Model:
    model = semantic_model(spec, ArraySource(random_arrays(spec)))
    _ORT.lower(model)
    return model


def _quantised(scheme: WeightScheme, spec: DecoderSpec = SPEC, level: int = 0, activations: str = "fp32") -> ir.Model:
    model = _lowered(spec)
    QuantiseMatrices(_matrices(scheme, activations), accuracy_level=level)(model)
    PRECISIONS[activations].apply(model)
    _ORT.finish(model, 0)
    return model


def _values(matrix: BlockWeight) -> np.ndarray:
    parts = [torch.from_numpy(part.numpy().copy()) for part in (matrix.data, matrix.scales)]
    zero_points = None if matrix.zero_points is None else torch.from_numpy(matrix.zero_points.numpy().copy())
    codes = BlockCodes(data=parts[0], scales=parts[1], zero_points=zero_points)
    return dequantise(codes, matrix.layout).numpy()[:, : matrix.columns]


def _float_twin(scheme: WeightScheme, spec: DecoderSpec = SPEC, activations: str = "fp32") -> ir.Model:
    """The float32 graph over what the quantised weights stand for."""
    model = _lowered(spec)
    matrices = _matrices(scheme, activations)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, WeightTensor):
            matrix = matrices(str(value.name), value.const_value.weight)
            if matrix is not None:
                constant = Constant(torch.from_numpy(_values(matrix).copy()), str(value.name))
                value.const_value = WeightTensor(constant, value.name)
    _ORT.finish(model, 0)
    return model


@functools.cache
def _expected(scheme: WeightScheme, spec: DecoderSpec, padding: str) -> np.ndarray:
    return run_steps(_float_twin(scheme, spec), padding).real(padding)


_INT4, _INT8 = SCHEMES["int4"], SCHEMES["int8"]
# hidden 24, 36 and 64: no block divides the first two, and the table has one block: an odd number
_SCHEMES = {
    "int4": dataclasses.replace(_INT4, block_size=32),
    "int4 symmetric": dataclasses.replace(_INT4, block_size=32, symmetric=True, quantiser="rtn"),
    "int4 wide": dataclasses.replace(_INT4, block_size=256),
    "int4, table 8": dataclasses.replace(_INT4, block_size=64, embedding_bits=8),
    "int8": _INT8,
    "int8 zero points": dataclasses.replace(_INT8, block_size=32, symmetric=False),
}
# a table whose rows end in whole blocks, of an even number: zero points are packed in pairs
_WIDE = dataclasses.replace(SPEC, hidden_size=64)


@pytest.mark.parametrize("spec", [SPEC, UNTIED, _WIDE], ids=["tied", "untied", "divisible"])
@pytest.mark.parametrize("name", sorted(_SCHEMES))
def test_kernels_compute_with_the_dequantised_weights(name: str, spec: DecoderSpec) -> None:
    scheme = _SCHEMES[name]
    found = run_steps(_quantised(scheme, spec)).real("none")
    assert deviation(found, _expected(scheme, spec, "none")) <= tolerances.FP32_LOGITS


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_padded_batches(padding: str) -> None:
    scheme = _SCHEMES["int4"]
    found = run_steps(_quantised(scheme), padding).real(padding)
    assert deviation(found, _expected(scheme, SPEC, padding)) <= tolerances.FP32_LOGITS


@pytest.mark.parametrize("name", sorted(_SCHEMES))
def test_eight_bit_activations_are_near(name: str) -> None:
    """Accuracy level 4 rounds activations to 8 bits in each block: near, and not the same."""
    scheme = _SCHEMES[name]
    found = run_steps(_quantised(scheme, level=4)).real("none")
    assert tolerances.FP32_LOGITS < deviation(found, _expected(scheme, SPEC, "none")) <= tolerances.INT8_ACTIVATIONS


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_float16_activations(name: str) -> None:
    scheme = _SCHEMES[name]
    found = run_steps(_quantised(scheme, activations="fp16")).real("none")
    expected = run_steps(_float_twin(scheme, activations="fp16")).real("none")
    assert 0 < deviation(found, expected) <= tolerances.FP16_LOGITS


def test_a_tied_table_is_stored_once() -> None:
    model = _quantised(_SCHEMES["int4"], _WIDE)
    table = find(model, "model.embed_tokens.GatherBlockQuantized")
    head = next(
        node for node in model.graph if node.op_type == "MatMulNBits" and node.inputs[1].name.startswith("model.embed")
    )
    assert table.inputs[0].const_value.weight is head.inputs[1].const_value.weight
    assert table.inputs[2:] == head.inputs[2:]
    assert len(table.inputs) == 4
    assert table.inputs[0].const_value.tobytes() == head.inputs[1].const_value.tobytes()


def test_every_product_and_look_up_is_rewritten() -> None:
    model = _quantised(_SCHEMES["int4"])
    assert count(model, "MatMulNBits", "com.microsoft") == 5 * LAYERS + 1
    assert count(model, "FusedMatMul", "com.microsoft") == 0
    assert count(model, "GatherBlockQuantized", "com.microsoft") == 1
    assert count(model, "Gather") == 0
    # the padding of a table's last block is cut off
    assert any(node.name == "model.embed_tokens.Slice" for node in model.graph)
    assert not any(node.name == "model.embed_tokens.Slice" for node in _quantised(_SCHEMES["int4"], _WIDE).graph)


@pytest.mark.parametrize("level", [0, 4])
def test_attributes_say_the_layout(level: int) -> None:
    model = _quantised(_SCHEMES["int4"], level=level)
    node = find(model, "model.layers.0.mlp.down_proj.MatMulNBits")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes.pop("accuracy_level", 0) == level
    assert attributes == {"bits": 4, "block_size": 32, "K": SPEC.intermediate_size, "N": SPEC.hidden_size}


def test_what_the_scheme_leaves_out_stays() -> None:
    model = _lowered()
    assert_unchanged(model, QuantiseMatrices(lambda name, weight: None, accuracy_level=4))


def test_a_second_run_finds_nothing() -> None:
    model = _lowered()
    rewrite = QuantiseMatrices(_matrices(_SCHEMES["int4"]), accuracy_level=4)
    assert rewrite(model).modified
    assert not rewrite(model).modified


def test_refuses_a_product_that_the_kernel_cannot_express() -> None:
    model = _lowered()
    find(model, "model.layers.1.mlp.up_proj.FusedMatMul").attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
    with pytest.raises(
        PassError,
        match=r"refuses model\.layers\.1\.mlp\.up_proj\.FusedMatMul \(FusedMatMul\): unknown attribute alpha = 0\.5",
    ):
        QuantiseMatrices(_matrices(_SCHEMES["int4"]), accuracy_level=4)(model)


def test_refuses_another_reader() -> None:
    model = _lowered()
    table = model.graph.initializers["model.embed_tokens.weight"]
    model.graph.append(ir.node("Identity", inputs=[table], name="odd"))
    with pytest.raises(
        PassError,
        match=r"refuses odd \(Identity\): it reads the quantised weight model\.embed_tokens\.weight as input 0",
    ):
        QuantiseMatrices(_matrices(_SCHEMES["int4"]), accuracy_level=4)(model)


@pytest.mark.parametrize(
    ("name", "attribute", "reason"),
    [
        ("model.layers.1.mlp.up_proj.FusedMatMul", ir.AttrInt64("transB", 0), "transB = 0, expected 1"),
        ("model.embed_tokens.Gather", ir.AttrInt64("axis", 1), "axis = 1, expected 0"),
    ],
)
def test_refuses_another_side_of_the_matrix(name: str, attribute: ir.Attr, reason: str) -> None:
    model = _lowered()
    find(model, name).attributes[attribute.name] = attribute
    with pytest.raises(PassError, match=rf"refuses {name}.*{reason}"):
        QuantiseMatrices(_matrices(_SCHEMES["int4"]), accuracy_level=4)(model)
