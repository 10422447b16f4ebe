"""SelectColumns: the last real token, the last few, or every position, where rows keep the mask's columns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
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
from gemma_export.passes import SelectColumns

_NODE = "decoder.LastTokens"
_SHAPES = {
    0: ["batch_size", "sequence_length", SPEC.vocab_size],
    1: ["batch_size", 1, SPEC.vocab_size],
    4: ["batch_size", "logits_length", SPEC.vocab_size],
}


@pytest.mark.parametrize("keep", sorted(_SHAPES))
def test_one_gather_at_most_and_the_declared_shape(keep: int) -> None:
    model = apply(semantic_model(), SelectColumns(keep))
    assert count(model, "GatherND") == (keep > 0)
    assert count(model, "LastTokens", "gemma") == 0
    (logits,) = [output for output in model.graph.outputs if output.name == "logits"]
    assert [dim if isinstance(dim, int) else dim.value for dim in logits.shape] == _SHAPES[keep]


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_every_position_stays_in_its_column(padding: str) -> None:
    assert_same(apply(semantic_model(), SelectColumns(0)), semantic_model(), padding)


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("keep", [1, 2, 4, 7, 9])
def test_last_positions_are_right_aligned(keep: int, padding: str) -> None:
    """Against the semantic node with the same `keep`, and against all positions cut by hand."""
    semantic = semantic_model()
    find(semantic, _NODE).attributes["keep"] = ir.AttrInt64("keep", keep)
    expected = run_steps(semantic, padding)
    everything = run_steps(semantic_model(), padding)
    found = run_steps(apply(semantic_model(), SelectColumns(keep)), padding)
    assert found.prefill.shape[1] == min(keep, 7)
    for row, columns in enumerate(PADDINGS[padding]):
        real = min(keep, columns.stop - columns.start)
        last = found.prefill[row, -real:]
        assert deviation(last, expected.prefill[row, -real:]) <= tolerances.FP32_LOGITS
        assert deviation(last, everything.prefill[row, columns][-real:]) <= tolerances.FP32_LOGITS
    assert deviation(found.decode, expected.decode) <= tolerances.FP32_LOGITS


def test_slots_before_the_first_real_token_stay_finite() -> None:
    assert np.isfinite(run_steps(apply(semantic_model(), SelectColumns(4)), "mixed").prefill).all()


def test_second_run_changes_nothing() -> None:
    assert_unchanged(apply(semantic_model(), SelectColumns(1)), SelectColumns(0))


def test_refuses_an_unknown_attribute() -> None:
    model = semantic_model()
    find(model, _NODE).attributes["side"] = ir.AttrString("side", "left")
    with pytest.raises(PassError, match=rf"SelectColumns refuses {_NODE} \(LastTokens\): unknown attribute side"):
        SelectColumns(1)(model)


def test_refuses_to_widen_what_the_node_keeps() -> None:
    model = semantic_model()
    find(model, _NODE).attributes["keep"] = ir.AttrInt64("keep", 2)
    with pytest.raises(PassError, match=f"refuses {_NODE} .*keep is 2, expected 0 .all. or 4"):
        SelectColumns(4)(model)


def test_ensures_that_no_choice_is_left() -> None:
    with pytest.raises(PassError, match=f"SelectColumns: 1 LastTokens nodes left, first {_NODE}"):
        SelectColumns(1).ensures(semantic_model())
