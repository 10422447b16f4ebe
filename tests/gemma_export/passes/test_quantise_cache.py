"""QuantiseCache: int8 past and present, with the codes, the cut-off and the logits that its scales promise."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    SPEC,
    Unoptimised,
    assert_unchanged,
    batch,
    count,
    deviation,
    find,
    run_steps,
    semantic_model,
)

from gemma_export.errors import PassError
from gemma_export.passes import QuantiseCache
from gemma_export.precision import PRECISIONS
from gemma_export.targets import TARGETS

_ORT = TARGETS["ort"]
_NAMES = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
_SHAPE = (1, SPEC.num_key_value_heads, 1, SPEC.head_dim)


def _lowered(precision: str = "fp32", *, batched: bool = True) -> ir.Model:
    model = semantic_model()
    _ORT.lower(model)
    PRECISIONS[precision].apply(model)
    _ORT.finish(model, 0)
    if not batched:
        assert _ORT.compat is not None
        _ORT.compat(model)
    return model


def _states(model: ir.Model) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits and present of a prompt without padding."""
    ids, mask = batch("none")
    return Unoptimised(model).step(ids, mask)


def _scales(share: float = 1.0) -> dict[str, np.ndarray]:
    """From each channel's own largest value; of the second layer far from what the first layer's are."""
    _, present = _states(_lowered())
    return {
        name: (np.abs(state).max(axis=(0, 2), keepdims=True) * np.float32(share / 127)).astype(np.float32)
        for name, state in zip(_NAMES, present, strict=True)
    }


def _quantised(scales: dict[str, np.ndarray], precision: str = "fp32", *, batched: bool = True) -> ir.Model:
    model = _lowered(precision, batched=batched)
    assert QuantiseCache(scales)(model).modified
    return model


@pytest.mark.parametrize("batched", [True, False])
def test_inputs_attributes_and_types(batched: bool) -> None:
    model = _quantised(_scales(), batched=batched)
    node = find(model, "model.layers.1.self_attn.GroupQueryAttention")
    assert [value.name for value in node.inputs[12:14]] == [f"{name}_scale" for name in _NAMES[2:]]
    assert len(node.inputs) == (17 if batched else 14)
    assert node.attributes["k_quant_type"].value == node.attributes["v_quant_type"].value == "PER_CHANNEL"
    assert node.attributes["kv_cache_bit_width"].value == 8
    states = [*model.graph.inputs[2:], *model.graph.outputs[1:]]
    assert len(states) == 4 * LAYERS
    assert {state.dtype for state in states} == {ir.DataType.INT8}
    assert count(model, "GroupQueryAttention", "com.microsoft") == LAYERS
    _ORT.check(model, SPEC, "float32")


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_codes_are_rounded_and_cut_off(share: float) -> None:
    """The first layer's keys and values depend on no cache, so they are known exactly."""
    scales = _scales(share)
    _, exact = _states(_lowered())
    _, found = _states(_quantised(scales))
    for name, state, codes in list(zip(_NAMES, exact, found, strict=True))[:2]:
        quotient = state / scales[name]
        assert codes.dtype == np.int8
        # to the nearest, up to the last place of a quotient that is a tie
        assert np.abs(codes - np.clip(quotient, -128, 127)).max() <= 0.5 + 1e-4
        assert (np.abs(quotient).max() > 400) == (share < 1)
        assert (codes.min() == -128) == (share < 1)


@pytest.mark.parametrize("padding", PADDINGS)
def test_logits_of_padded_batches(padding: str) -> None:
    """Near the exact ones; and what a row gets does not depend on where its padding is."""
    scales = _scales()
    found, exact = (run_steps(model, padding).real(padding) for model in (_quantised(scales), _lowered()))
    assert 0 < deviation(found, exact) <= tolerances.INT8_CACHE_LOGITS
    whole = run_steps(_quantised(scales)).prefill
    lengths = [columns.stop - columns.start for columns in PADDINGS[padding]]
    alone = np.concatenate([whole[row, :length] for row, length in enumerate(lengths)])
    assert deviation(found[: len(alone)], alone) <= tolerances.FP32_LOGITS


def test_float16_activations_keep_float32_scales() -> None:
    model = _quantised(_scales(), "fp16")
    assert {model.graph.initializers[f"{name}_scale"].dtype for name in _NAMES} == {ir.DataType.FLOAT}
    near = deviation(run_steps(model).real("none"), run_steps(_lowered()).real("none"))
    assert 0 < near <= tolerances.INT8_CACHE_LOGITS


def test_a_second_run_changes_nothing() -> None:
    scales = _scales()
    assert_unchanged(_quantised(scales), QuantiseCache(scales))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scale: None, "no scales for past_key_values.1.value"),
        (lambda scale: scale[..., :8], r"scales float32 \[1, 2, 1, 8\] do not fit"),
        (lambda scale: scale.astype(np.float64), "scales float64"),
        (lambda scale: scale * 0, "not all positive"),
        (lambda scale: scale * np.float32(np.nan), "not all positive"),
        (lambda scale: scale * np.float32(np.inf), "not all positive"),
    ],
)
def test_scales_that_do_not_fit_are_refused(change: object, reason: str) -> None:
    scales = {name: np.ones(_SHAPE, np.float32) for name in _NAMES}
    changed = change(scales.pop(_NAMES[-1]))  # type: ignore[operator]
    if changed is not None:
        scales[_NAMES[-1]] = changed
    with pytest.raises(PassError, match=f"QuantiseCache refuses model.layers.1.self_attn.GroupQuery.*{reason}"):
        QuantiseCache(scales)(_lowered())


def test_a_state_that_others_read_is_refused() -> None:
    model = _lowered()
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.0.key")
    model.graph.append(ir.node("Shape", inputs=[past], name="reader"))
    with pytest.raises(PassError, match="its input 3 is no state of its own"):
        QuantiseCache({name: np.ones(_SHAPE, np.float32) for name in _NAMES})(model)
