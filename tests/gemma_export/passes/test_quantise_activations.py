"""Integer products of the real onnxruntime against a numpy reference of the same rounding."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tolerances
from decoders import Graph
from graphs import (
    LAYERS,
    PADDINGS,
    SPEC,
    UNTIED,
    ArraySource,
    Unoptimised,
    assert_unchanged,
    batch,
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
from gemma_export.passes import QuantiseActivations
from gemma_export.precision import PRECISIONS, SCHEMES, quantised
from gemma_export.precision.blockwise import block_quantiser, row_quantiser
from gemma_export.targets import TARGETS

_ORT = TARGETS["ort"]
_PRECISION = quantised(PRECISIONS["fp32"], SCHEMES["int8-dynamic"])
_BY_ROW = row_quantiser(_PRECISION)


def _lowered(spec: DecoderSpec = SPEC) -> ir.Model:
    model = semantic_model(spec, ArraySource(random_arrays(spec)))
    _ORT.lower(model)
    return model


def _quantised(spec: DecoderSpec = SPEC, keep: int = 0) -> ir.Model:
    return _finished(_lowered(spec), keep)


def _finished(model: ir.Model, keep: int = 0) -> ir.Model:
    assert _ORT.quantise is not None
    assert _ORT.quantise_activations is not None
    _ORT.quantise(model, block_quantiser(_PRECISION), "float32")
    _ORT.quantise_activations(model, _BY_ROW)
    _ORT.finish(model, keep)
    return model


def _codes_by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's codes from -127 to 127 and its step, in float32 like the graph."""
    step = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30)) * np.float32(1 / 127)
    return np.rint(x / step).clip(-128, 127), step


@functools.cache
def _plain(spec: DecoderSpec) -> np.ndarray:
    return run_steps(_quantised(spec)).real("none")


@pytest.mark.parametrize("name", ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_a_product_equals_its_definition(name: str) -> None:
    model = _quantised()
    module = f"model.layers.1.{name}"
    node, scaled = find(model, f"{module}.MatMulIntegerToFloat"), find(model, f"{module}.Mul")
    division = node.inputs[0].producer().inputs[0].producer()
    x, output = division.inputs[0], scaled.outputs[0]
    data, scales = (node.inputs[position].const_value.numpy() for position in (1, 3))
    tokens = np.random.default_rng(5).integers(4, SPEC.vocab_size, (2, 5))
    tap(model, *(value.name for value in (x, output)))
    inputs, found = run_outputs(model, [x.name, output.name], tokens, np.ones_like(tokens))
    codes, step = _codes_by_hand(inputs)
    expected = (codes.astype(np.int64) @ data.astype(np.int64)) * scales.astype(np.float64) * step
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    # and the stored weights stand for the checkpoint's
    original = _lowered().graph.initializers[f"{module}.weight"].const_value.numpy()
    assert np.abs(data.T * scales[:, None] - original).max() <= scales.max() * 0.5001


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
def test_near_the_float_graph(spec: DecoderSpec) -> None:
    model = _lowered(spec)
    _ORT.finish(model, 0)
    expected = run_steps(model).real("none")
    assert tolerances.FP32_LOGITS < deviation(_plain(spec), expected) <= tolerances.INT8_ACTIVATIONS


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_padding_leaves_real_tokens_alone(padding: str) -> None:
    """Rows hold other tokens than without padding, so each real row is compared with itself run alone."""
    found = run_steps(_quantised(), padding).real(padding)
    reference = _run_alone(padding)
    assert deviation(found, reference) <= tolerances.INT8_DYNAMIC_REORDERED


def _run_alone(padding: str) -> np.ndarray:
    graph = Unoptimised(_quantised())
    ids, _ = batch(padding)
    prefills, decodes = [], []
    for row, columns in enumerate(PADDINGS[padding]):
        alone = ids[row : row + 1, columns]
        logits, present = graph.step(alone, np.ones_like(alone))
        prefills.append(logits[0])
        token = np.array([[5 + row]])
        logits, _ = graph.step(token, np.ones((1, alone.shape[1] + 1), np.int64), present[: len(graph.past_names)])
        decodes.append(logits[:, -1])
    return np.concatenate([*prefills, *decodes])


def test_a_neighbour_changes_nothing_at_all() -> None:
    """One scale for the whole step would let a loud row round its neighbour away: the same row, bit for bit."""
    graph = Unoptimised(_quantised())
    tokens = np.random.default_rng(8).integers(4, SPEC.vocab_size, (3, 6))
    together, _ = graph.step(tokens, np.ones_like(tokens))
    others, _ = graph.step(np.stack([tokens[0], tokens[2], tokens[1]]), np.ones_like(tokens))
    assert np.array_equal(together[0], others[0])


def test_a_token_does_not_see_the_ones_after_it() -> None:
    graph = Unoptimised(_quantised())
    tokens = np.random.default_rng(9).integers(4, SPEC.vocab_size, (1, 8))
    whole, _ = graph.step(tokens, np.ones_like(tokens))
    for size in (1, 3):
        assert deviation(graph.chunks(tokens, size), whole) <= tolerances.INT8_DYNAMIC_REORDERED


def test_optimisations_do_not_change_the_numbers() -> None:
    model = _quantised()
    tokens = np.random.default_rng(10).integers(4, SPEC.vocab_size, (2, 6))
    optimised, _ = Graph(serialize(model)).step(tokens, np.ones_like(tokens))
    plain, _ = Unoptimised(model).step(tokens, np.ones_like(tokens))
    assert deviation(optimised, plain) <= tolerances.INT8_DYNAMIC_REORDERED


def test_a_token_of_zeros_gives_zeros() -> None:
    """0 / 0 would be NaN: the scale has a smallest value, whose step is a normal float32 number."""
    model = _quantised()
    node = find(model, "model.layers.0.self_attn.qkv_proj.MatMulIntegerToFloat")
    bounded = node.inputs[0].producer().inputs[0].producer().inputs[1].producer().inputs[0].producer()
    assert bounded.op_type == "Max"
    assert np.finfo(np.float32).smallest_normal < float(bounded.inputs[1].const_value.numpy()) / 127 < 1e-20
    # a table of zeros makes every token's stream, norms and inputs zero
    arrays = random_arrays() | {"model.embed_tokens.weight": np.zeros((SPEC.vocab_size, SPEC.hidden_size), np.float32)}
    zeros = semantic_model(SPEC, ArraySource(arrays))
    _ORT.lower(zeros)
    assert not run_steps(_finished(zeros)).real("none").any()


def test_every_projection_is_rewritten_and_inputs_are_quantised_once() -> None:
    model = _quantised()
    assert count(model, "MatMulIntegerToFloat", "com.microsoft") == 5 * LAYERS
    # gate and up share one
    assert count(model, "QuantizeLinear") == count(model, "ReduceMax") == 4 * LAYERS
    assert count(model, "MatMulNBits", "com.microsoft") == 1
    assert count(model, "GatherBlockQuantized", "com.microsoft") == 1
    assert count(model, "FusedMatMul", "com.microsoft") == 0
    assert not any(str(name).endswith("_proj.weight") for name in model.graph.initializers)


def test_the_finished_graph_passes_the_targets_check() -> None:
    model = _quantised(keep=1)
    _ORT.check(model, SPEC, "float32")
    options = onnxruntime.SessionOptions()
    onnxruntime.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])


def test_what_the_scheme_leaves_out_stays() -> None:
    assert_unchanged(_lowered(), QuantiseActivations(lambda name, weight: None))


def test_a_second_run_finds_nothing() -> None:
    model = _lowered()
    assert QuantiseActivations(_BY_ROW)(model).modified
    assert not QuantiseActivations(_BY_ROW)(model).modified


def test_refuses_a_product_that_the_kernel_cannot_express() -> None:
    model = _lowered()
    find(model, "model.layers.1.mlp.up_proj.FusedMatMul").attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
    with pytest.raises(PassError, match=r"refuses .*up_proj\.FusedMatMul .*alpha = 0\.5"):
        QuantiseActivations(_BY_ROW)(model)


def test_refuses_another_reader() -> None:
    model = _lowered()
    weight = model.graph.initializers["model.layers.0.mlp.down_proj.weight"]
    model.graph.append(ir.node("Identity", inputs=[weight], name="odd"))
    with pytest.raises(PassError, match=r"refuses odd .*down_proj\.weight as input 0"):
        QuantiseActivations(_BY_ROW)(model)
