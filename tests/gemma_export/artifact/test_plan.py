"""The data file's arithmetic: disjoint, aligned, complete, and of one size whatever the order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_export.artifact.plan import INLINE_BYTES, DataPlan, Range, alignment, plan_data, stays_inline

KIB, MIB = 1 << 10, 1 << 20

# sizes around every limit of the plan, and between them
near_limits = st.sampled_from([0, INLINE_BYTES, 64 * KIB, MIB]).flatmap(
    lambda limit: st.integers(max(0, limit - 70), limit + 70)
)
sizes = st.lists(st.one_of(near_limits, st.integers(0, 5 * MIB)), max_size=24)


@given(sizes)
@settings(max_examples=200, database=None, deadline=None)
def test_ranges_are_disjoint_aligned_and_inside(tensors: list[int]) -> None:
    plan = plan_data([(f"t{index}", nbytes)] for index, nbytes in enumerate(tensors))
    end = 0
    for entry in plan.ranges:
        assert entry.offset >= end
        assert entry.offset % (64 * KIB if entry.nbytes >= MIB else 4 * KIB if entry.nbytes >= 64 * KIB else 64) == 0
        end = entry.offset + entry.nbytes
    assert end <= plan.size
    # padding costs at most 1/16 of a tensor
    assert plan.size <= sum(-(-entry.nbytes * 17 // 16) for entry in plan.ranges)


@given(sizes)
@settings(max_examples=100, database=None, deadline=None)
def test_every_tensor_is_stored_once_or_inline(tensors: list[int]) -> None:
    plan = plan_data([(f"t{index}", nbytes)] for index, nbytes in enumerate(tensors))
    stored = {entry.index: (entry.name, entry.nbytes) for entry in plan.ranges}
    assert len(stored) == len(plan.ranges)
    assert stored == {index: (f"t{index}", nbytes) for index, nbytes in enumerate(tensors) if nbytes >= INLINE_BYTES}


@given(sizes, st.randoms(use_true_random=False))
@settings(max_examples=100, database=None, deadline=None)
def test_the_size_does_not_depend_on_the_order(tensors: list[int], shuffler: random.Random) -> None:
    shuffled = list(tensors)
    shuffler.shuffle(shuffled)
    assert plan_data([("a", n)] for n in tensors).size == plan_data([("a", n)] for n in shuffled).size


def test_a_plan_by_hand() -> None:
    plan = plan_data([[("small", 1023)], [("a", 1025)], [("big", MIB + 1)], [("middle", 64 * KIB)], [("b", 1024)]])
    assert plan.ranges == (
        Range(index=2, name="big", offset=0, nbytes=MIB + 1),
        Range(index=3, name="middle", offset=MIB + 64 * KIB, nbytes=64 * KIB),
        Range(index=1, name="a", offset=MIB + 128 * KIB, nbytes=1025),
        Range(index=4, name="b", offset=MIB + 128 * KIB + 1088, nbytes=1024),
    )
    assert plan.size == MIB + 128 * KIB + 1088 + 1024


grouped = st.lists(st.lists(st.one_of(near_limits, st.integers(0, 5 * MIB)), max_size=4), max_size=8)


@given(grouped, st.randoms(use_true_random=False))
@settings(max_examples=200, database=None, deadline=None)
def test_groups_stay_together_and_their_order_costs_nothing(groups: list[list[int]], shuffler: random.Random) -> None:
    def plan(groups: list[list[int]]) -> DataPlan:
        return plan_data([(f"{number}", nbytes) for nbytes in group] for number, group in enumerate(groups))

    found = plan(groups)
    end = 0
    for entry in found.ranges:
        assert entry.offset >= end
        assert entry.offset % alignment(entry.nbytes) == 0
        end = entry.offset + entry.nbytes
    assert end <= found.size
    order = [entry.name for entry in found.ranges]
    assert len([name for name, before in zip(order, [None, *order], strict=False) if name != before]) == len(set(order))
    assert len({entry.index for entry in found.ranges}) == len(found.ranges)
    shuffled = [shuffler.sample(group, len(group)) for group in groups]
    shuffler.shuffle(shuffled)
    assert plan(shuffled).size == found.size


def test_nothing_to_store() -> None:
    plan = plan_data([[("scale", 4)], [("shape", 1023)]])
    assert plan.ranges == ()
    assert plan.size == 0


@pytest.mark.parametrize(
    ("nbytes", "inline", "step"),
    [
        (0, True, 64),
        (1023, True, 64),
        (1024, False, 64),
        (64 * KIB - 1, False, 64),
        (64 * KIB, False, 4 * KIB),
        (MIB - 1, False, 4 * KIB),
        (MIB, False, 64 * KIB),
    ],
)
def test_limits(nbytes: int, inline: bool, step: int) -> None:
    assert stays_inline(nbytes) is inline
    assert alignment(nbytes) == step
