"""LowerNorms: the standard RMSNormalization with the gain 1 + w, and plain additions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    SPEC,
    apply,
    assert_same,
    assert_unchanged,
    count,
    deviation,
    find,
    run_steps,
    semantic_model,
)

from gemma_export.errors import PassError
from gemma_export.passes import LowerNorms


def test_every_norm_and_every_add() -> None:
    model = apply(semantic_model(), LowerNorms())
    assert count(model, "RMSNormalization") == 2 * LAYERS + 1
    assert count(model, "Add") == 2 * LAYERS
    assert not [node for node in model.graph if node.op_type in ("RMSNorm", "ResidualAdd")]


def test_gain_is_one_plus_weight_and_epsilon_is_kept() -> None:
    model = semantic_model()
    weight = model.graph.initializers["model.norm.weight"].const_value.numpy()
    apply(model, LowerNorms())
    gain = model.graph.initializers["model.norm.gain"].const_value.numpy()
    np.testing.assert_array_equal(gain, weight + np.float32(1))
    attributes = {name: found.value for name, found in find(model, "model.norm.RMSNormalization").attributes.items()}
    assert attributes == {"axis": -1, "epsilon": pytest.approx(SPEC.rms_norm_eps), "stash_type": 1}
    assert "model.norm.weight" not in model.graph.initializers


def test_sums_keep_their_names() -> None:
    model = apply(semantic_model(), LowerNorms())
    names = [node.outputs[0].name for node in model.graph if node.op_type == "Add"]
    assert names == [f"layers.{layer}.{part}_residual" for layer in range(LAYERS) for part in ("attn", "mlp")]


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_same_numbers(padding: str) -> None:
    assert_same(apply(semantic_model(), LowerNorms()), semantic_model(), padding)


def test_the_comparison_above_notices_a_gain_without_one() -> None:
    model = apply(semantic_model(), LowerNorms())
    gain = model.graph.initializers["model.norm.gain"]
    gain.const_value = ir.tensor(gain.const_value.numpy() - np.float32(1))
    found, expected = (run_steps(each).real("none") for each in (model, semantic_model()))
    assert deviation(found, expected) > 1000 * tolerances.FP32_LOGITS


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), LowerNorms()), LowerNorms())


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, "model.norm.RMSNorm").attributes["axis"] = ir.AttrInt64("axis", -2)
    with pytest.raises(
        PassError, match=r"LowerNorms refuses model\.norm\.RMSNorm \(RMSNorm\): unknown attribute axis = -2"
    ):
        LowerNorms()(model)


def test_ensures_that_nothing_is_left() -> None:
    with pytest.raises(PassError, match=f"LowerNorms: {2 * LAYERS + 1} RMSNorm nodes left"):
        LowerNorms().ensures(semantic_model())
