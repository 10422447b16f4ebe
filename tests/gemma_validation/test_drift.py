"""Drift metrics against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_validation import measure_drift


def test_equal_logits_have_no_drift() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    drift = measure_drift(logits, logits + 10)
    assert drift.mean_kl < 1e-12
    assert drift.top1_agreement == 1
    assert drift.positions == 15


def test_kl_of_two_coins() -> None:
    """KL(p || q) = p log(p/q) + (1-p) log((1-p)/(1-q)), and it is not symmetric."""
    p, q = 0.9, 0.4
    first = np.log(np.array([[p, 1 - p], [0.5, 0.5]]))
    second = np.log(np.array([[q, 1 - q], [0.5, 0.5]]))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    drift = measure_drift(first, second)
    assert drift.mean_kl == pytest.approx(expected / 2)
    assert drift.max_kl == pytest.approx(expected)
    assert drift.top1_agreement == 0.5
    assert measure_drift(second, first).max_kl != pytest.approx(expected)


def test_difference_is_in_standard_deviations() -> None:
    reference = np.array([[0.0, 2.0], [0.0, 2.0]])
    test = reference + np.array([[0.0, 0.5], [0.0, 0.0]])
    assert measure_drift(reference, test).max_difference == pytest.approx(0.5)


def test_blocks_join() -> None:
    generator = np.random.default_rng(1)
    reference = generator.standard_normal((600, 11))
    test = reference + generator.standard_normal((600, 11)) * 0.1
    parts = [
        measure_drift(reference[start : start + 100], test[start : start + 100]).mean_kl for start in range(0, 600, 100)
    ]
    assert measure_drift(reference, test).mean_kl == pytest.approx(np.mean(parts))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="shape"):
        measure_drift(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        measure_drift(np.zeros((2, 3)), np.full((2, 3), np.nan))
