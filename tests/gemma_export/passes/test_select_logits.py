"""SelectLogits: the last real token, the last few, or every position in its column."""

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
from gemma_export.passes import AlignRows, FuseGroupQueryAttention, SelectLogits

_NODE = "decoder.LastTokens"
_SHAPES = {
    0: ["batch_size", "sequence_length", SPEC.vocab_size],
    1: ["batch_size", 1, SPEC.vocab_size],
    4: ["batch_size", "logits_length", SPEC.vocab_size],
}


def _aligned() -> ir.Model:
    return apply(semantic_model(), AlignRows(), FuseGroupQueryAttention())


@pytest.mark.parametrize("keep", sorted(_SHAPES))
def test_one_gather_and_the_declared_shape(keep: int) -> None:
    model = apply(_aligned(), SelectLogits(keep))
    assert count(model, "GatherND") == 1
    assert count(model, "LastTokens", "gemma") == 0
    (logits,) = [output for output in model.graph.outputs if output.name == "logits"]
    assert [dim if isinstance(dim, int) else dim.value for dim in logits.shape] == _SHAPES[keep]


@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_every_position_is_back_in_its_column(padding: str) -> None:
    assert_same(apply(_aligned(), SelectLogits(0)), semantic_model(), padding)


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize("keep", [1, 2, 4, 7, 9])
def test_last_positions_are_right_aligned(keep: int, padding: str) -> None:
    """Against the semantic node with the same `keep`, and against all positions cut by hand."""
    semantic = semantic_model()
    find(semantic, _NODE).attributes["keep"] = ir.AttrInt64("keep", keep)
    expected = run_steps(semantic, padding)
    everything = run_steps(semantic_model(), padding)
    found = run_steps(apply(_aligned(), SelectLogits(keep)), padding)
    assert found.prefill.shape[1] == min(keep, 7)
    for row, columns in enumerate(PADDINGS[padding]):
        real = min(keep, columns.stop - columns.start)
        last = found.prefill[row, -real:]
        assert deviation(last, expected.prefill[row, -real:]) <= tolerances.FP32_LOGITS
        assert deviation(last, everything.prefill[row, columns][-real:]) <= tolerances.FP32_LOGITS
    assert deviation(found.decode, expected.decode) <= tolerances.FP32_LOGITS


def test_slots_before_the_first_real_token_stay_finite() -> None:
    assert np.isfinite(run_steps(apply(_aligned(), SelectLogits(4)), "mixed").prefill).all()


def test_twins_do_not_touch_what_they_come_from() -> None:
    model = _aligned()
    for keep in (0, 1):
        apply(model.clone(), SelectLogits(keep))
    assert count(model, "LastTokens", "gemma") == 1


def test_second_run_changes_nothing() -> None:
    model = apply(_aligned(), SelectLogits(1))
    model.graph.register_initializer(ir.Value(name="unused", const_value=ir.tensor([1])))
    assert_unchanged(model, SelectLogits(0))


def test_needs_aligned_rows() -> None:
    with pytest.raises(PassError, match=r"no value called 'rows\.sequence_length'"):
        SelectLogits(1)(semantic_model())


def test_refuses_an_unknown_attribute() -> None:
    model = _aligned()
    find(model, _NODE).attributes["side"] = ir.AttrString("side", "left")
    with pytest.raises(PassError, match=rf"SelectLogits refuses {_NODE} \(LastTokens\): unknown attribute side"):
        SelectLogits(1)(model)


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_refuses_to_widen_what_the_node_keeps(keep: int) -> None:
    model = _aligned()
    find(model, _NODE).attributes["keep"] = ir.AttrInt64("keep", 2)
    with pytest.raises(PassError, match=f"refuses {_NODE} .*keep is 2, expected 0 .all. or {keep}"):
        SelectLogits(keep)(model)


def test_accepts_a_node_that_keeps_the_same() -> None:
    model = _aligned()
    find(model, _NODE).attributes["keep"] = ir.AttrInt64("keep", 4)
    assert count(apply(model, SelectLogits(4)), "GatherND") == 1


def test_ensures_that_no_choice_is_left() -> None:
    with pytest.raises(PassError, match=f"SelectLogits: 1 LastTokens nodes left, first {_NODE}"):
        SelectLogits(1).ensures(semantic_model())
