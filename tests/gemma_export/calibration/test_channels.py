"""Calibrated scales of channels: chosen where they help, and a cure for outliers."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import GEMMA, SPEC, ArraySource, deviation, random_arrays, run_steps, semantic_model

from gemma_export.calibration.channels import ACTIVATION_AWARE, SMOOTHING, ChannelScales, Method, measure_channel_scales
from gemma_export.layerwise import checkpoint_weights
from gemma_export.passes import FoldChannelScales
from gemma_export.precision import PRECISIONS, QUANTISERS, SCHEMES, Precision, quantised
from gemma_export.precision.blockwise import block_quantiser, row_quantiser
from gemma_export.precision.scheme import Rule
from gemma_export.targets import TARGETS

_ORT = TARGETS["ort"]
_DYNAMIC = quantised(PRECISIONS["fp32"], SCHEMES["int8-dynamic"])
_BATCHES = [
    torch.tensor([[SPEC.bos_token_id, *np.random.default_rng(seed).integers(4, SPEC.vocab_size, 20).tolist()]])
    for seed in range(3)
]


def _with_outliers(factor: float) -> dict[str, np.ndarray]:
    """The same model, its inputs of attention and MLP each with one channel `factor` times as large."""
    arrays = random_arrays()
    for layer in range(SPEC.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for norm, names, channel in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), 5),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), 11),
        ):
            gain = arrays[f"{prefix}.{norm}.weight"]
            gain[channel] = (1 + gain[channel]) * factor - 1
            for name in names:
                arrays[f"{prefix}.{name}.weight"][:, channel] /= factor
    return arrays


def _graph(
    arrays: dict[str, np.ndarray], scales: ChannelScales | None = None, precision: Precision | None = None
) -> ir.Model:
    model = semantic_model(SPEC, ArraySource(arrays))
    if scales is not None:
        assert FoldChannelScales(scales.exponents)(model).modified
    _ORT.lower(model)
    if precision is not None:
        assert _ORT.quantise is not None
        assert _ORT.quantise_activations is not None
        _ORT.quantise(model, block_quantiser(precision), "float32")
        _ORT.quantise_activations(model, row_quantiser(precision))
    _ORT.finish(model, 0)
    return model


def _measured(factor: float, precision: Precision = _DYNAMIC, method: Method = SMOOTHING) -> ChannelScales:
    weights = checkpoint_weights(ArraySource(_with_outliers(factor)))
    return measure_channel_scales(GEMMA, SPEC, weights, _BATCHES, precision, method, rounds_activations=True)


@functools.cache
def _outliers() -> ChannelScales:
    return _measured(64.0)


def test_outlier_channels_cost_little_once_smoothed() -> None:
    arrays = _with_outliers(64.0)
    expected = run_steps(_graph(arrays)).real("none")
    raw = deviation(run_steps(_graph(arrays, precision=_DYNAMIC)).real("none"), expected)
    smooth = deviation(run_steps(_graph(arrays, _outliers(), _DYNAMIC)).real("none"), expected)
    assert smooth < raw / 4


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_outlier_channels_cost_four_bits_little_once_scaled(quantiser: str) -> None:
    scheme = dataclasses.replace(SCHEMES["int4"], block_size=32, quantiser=quantiser, embedding_bits=8)
    precision = quantised(PRECISIONS["fp32"], scheme)
    arrays = _with_outliers(64.0)
    expected = run_steps(_graph(arrays)).real("none")
    raw = deviation(run_steps(_graph(arrays, precision=precision)).real("none"), expected)
    scales = _measured(64.0, precision, ACTIVATION_AWARE)
    aware = deviation(run_steps(_graph(arrays, scales, precision)).real("none"), expected)
    assert aware < raw / 2


def test_matrices_that_stay_in_floating_point_are_left_alone() -> None:
    scheme = dataclasses.replace(SCHEMES["int4"], rules=(Rule(match="*.mlp.down_proj.weight", bits=0),))
    scales = _measured(64.0, quantised(PRECISIONS["fp32"], scheme), ACTIVATION_AWARE)
    assert scales.exponents
    assert not any("down_proj" in name for name in scales.exponents)


def test_calibration_finds_the_channels_and_takes_them_down() -> None:
    found = _outliers()
    for layer in range(SPEC.num_hidden_layers):
        for name, channel in (("self_attn.q", 5), ("mlp.gate", 11)):
            weight = f"model.layers.{layer}.{name}_proj.weight"
            assert found.strengths[weight] != (0, 0)
            assert int(np.argmax(found.exponents[weight])) == channel
            assert found.exponents[weight][channel] >= 2
    assert found.tokens == 63
    assert set(found.exponents) == {name for name, strength in found.strengths.items() if strength != (0, 0)}
    assert len(found.strengths) == 4 * SPEC.num_hidden_layers


def test_a_model_without_outliers_is_left_alone() -> None:
    assert _measured(1.0).exponents == {}


def test_calibration_repeats() -> None:
    assert _outliers() == _measured(64.0)
