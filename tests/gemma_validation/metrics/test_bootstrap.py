"""Intervals: as wide as they should be, and wider where positions say the same."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_validation.metrics.bootstrap import blocks_of, upper_mean, upper_share


def test_many_documents_are_blocks_and_few_are_cut() -> None:
    assert np.bincount(blocks_of([10] * 25)).tolist() == [10] * 25
    assert np.bincount(blocks_of([100, 64, 5])).tolist() == [33, 33, 34, 32, 32, 5]
    # one document as long as all others together says what two do
    assert np.bincount(blocks_of([640, *[32] * 20])).tolist() == [32] * 40
    assert np.bincount(blocks_of([0, 3, 0])).tolist() == [3]


def test_interval_of_independent_positions_is_the_textbooks() -> None:
    values = np.random.default_rng(0).exponential(size=3200)
    upper = upper_mean(values, blocks_of([3200]))
    assert upper - values.mean() == pytest.approx(1.96 * values.std() / np.sqrt(3200), rel=0.25)


def test_interval_of_positions_that_repeat_is_wider() -> None:
    """Runs of 32 equal values are 100 draws, not 3,200: sqrt(32) times the width."""
    values = np.repeat(np.random.default_rng(0).exponential(size=100), 32)
    upper = upper_mean(values, blocks_of([3200]))
    assert upper - values.mean() == pytest.approx(1.96 * values.std() / np.sqrt(100), rel=0.25)


def test_the_bound_holds_as_often_as_it_says() -> None:
    """97.5 % of one-sided bounds over 20 blocks lie above the true mean; skewed values cost a few per cent of that."""
    generator = np.random.default_rng(1)
    blocks = blocks_of([32] * 20)
    draws = generator.exponential(size=(300, 20)).repeat(32, axis=1)
    assert np.mean([upper_mean(values, blocks) >= 1 for values in draws]) > 0.9


def test_the_same_values_give_the_same_bound() -> None:
    values = np.random.default_rng(3).random(500)
    assert upper_mean(values, blocks_of([500])) == upper_mean(values, blocks_of([500]))


def test_one_block_has_no_spread() -> None:
    assert upper_mean(np.array([1.0, 3.0]), blocks_of([2])) == 2


def test_what_never_happened_may_still_happen() -> None:
    """The chance to see none of it in n positions is (1 - share)^n."""
    upper = upper_share(np.zeros(500, np.bool_), blocks_of([500]))
    assert (1 - upper) ** 500 == pytest.approx(0.025)
    assert upper_share(np.ones(500, np.bool_), blocks_of([500])) == 1
