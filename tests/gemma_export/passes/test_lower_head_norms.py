"""LowerHeadNorms: norms of query and key heads between two reshapes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    QK_NORM,
    ArraySource,
    Unoptimised,
    apply,
    assert_unchanged,
    batch,
    count,
    deviation,
    find,
    random_arrays,
    semantic_model,
)

from gemma_export.errors import PassError
from gemma_export.passes import LowerHeadNorms

_KERNELS = ("RMSNormalization", "SimplifiedLayerNormalization")


def _model() -> ir.Model:
    return semantic_model(QK_NORM, ArraySource(random_arrays(QK_NORM)))


@pytest.mark.parametrize("kernel", _KERNELS)
def test_every_norm_is_lowered(kernel: str) -> None:
    model = apply(_model(), LowerHeadNorms(kernel))
    assert count(model, kernel) == 2 * LAYERS
    assert count(model, "Reshape") == 4 * LAYERS
    assert count(model, "HeadNorm", "gemma") == 0
    # the gain 1 + w took the place of w
    assert "model.layers.0.self_attn.q_norm.gain" in model.graph.initializers
    assert "model.layers.0.self_attn.q_norm.weight" not in model.graph.initializers


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(kernel: str, padding: str) -> None:
    ids, mask = batch(padding)
    expected, _ = Unoptimised(_model()).step(ids, mask)
    found, _ = Unoptimised(apply(_model(), LowerHeadNorms(kernel))).step(ids, mask)
    real = mask.astype(bool)
    assert deviation(found[real], expected[real]) <= tolerances.FP32_LOGITS


def test_the_comparison_above_notices_a_gain_without_one() -> None:
    ids, mask = batch("none")
    expected, _ = Unoptimised(_model()).step(ids, mask)
    model = apply(_model(), LowerHeadNorms("RMSNormalization"))
    value = model.graph.initializers["model.layers.0.self_attn.k_norm.gain"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() - np.float32(1), name=value.name)
    found, _ = Unoptimised(model).step(ids, mask)
    assert deviation(found, expected) > 100 * tolerances.FP32_LOGITS


def test_epsilon_and_heads_are_the_node_s() -> None:
    model = apply(_model(), LowerHeadNorms("SimplifiedLayerNormalization"))
    norm = find(model, "model.layers.1.self_attn.k_norm.SimplifiedLayerNormalization")
    assert norm.attributes["epsilon"].as_float() == pytest.approx(QK_NORM.rms_norm_eps)
    assert norm.attributes["stash_type"].as_int() == 1
    split = find(model, "model.layers.1.self_attn.k_norm.split.Reshape")
    shape = split.inputs[1]
    assert shape is not None
    assert shape.const_value is not None
    assert shape.const_value.numpy().tolist() == [0, 0, QK_NORM.num_key_value_heads, QK_NORM.head_dim]


def test_second_run_changes_nothing() -> None:
    model = apply(_model(), LowerHeadNorms("RMSNormalization"))
    assert_unchanged(model, LowerHeadNorms("RMSNormalization"))


def test_ensures_that_none_is_left() -> None:
    with pytest.raises(PassError, match=f"LowerHeadNorms: {2 * LAYERS} HeadNorm nodes left"):
        LowerHeadNorms("RMSNormalization").ensures(_model())
