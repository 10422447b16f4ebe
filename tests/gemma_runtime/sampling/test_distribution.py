"""Draws, and the rejection scheme of speculative sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gemma_runtime.sampling import Distribution, Sampling, TokenChooser
from gemma_runtime.sampling.distribution import draw, residual


def some(ids: list[int], *probabilities: float) -> Distribution:
    return Distribution(ids=np.array(ids), probabilities=np.array(probabilities))


def one(seed: int = 0) -> TokenChooser:
    return TokenChooser(Sampling(temperature=1.0, seed=seed), vocab_size=10, prompt_ids=[])


@pytest.mark.parametrize("size", [1, 3, 511, 512, 513, 3000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_draw_is_the_place_in_the_running_sum(size: int, dtype: type) -> None:
    random = np.random.default_rng(size)
    weights = random.random(size).astype(dtype)
    weights[random.random(size) < 0.3] = 0
    weights[size // 2] = 1
    edges = weights.cumsum(dtype=np.float64)
    for number in (0.0, 0.25, 0.5, *random.random(200), math.nextafter(1.0, 0.0)):
        place = draw(weights, number)
        assert weights[place] > 0
        assert edges[place] > number * edges[-1] * (1 - 1e-12)
        assert edges[place] - weights[place] <= number * edges[-1] * (1 + 1e-12)


def test_the_probability_of_a_token() -> None:
    distribution = some([1, 4, 9], 0.2, 0.5, 0.3)
    assert [distribution.probability(token) for token in (0, 1, 3, 4, 9, 10)] == [0, 0.2, 0, 0.5, 0.3, 0]


def test_the_residual_is_what_is_above_the_draft() -> None:
    found = residual(some([1, 4, 9], 0.2, 0.5, 0.3), some([0, 1, 4], 0.3, 0.4, 0.3))
    assert found.ids.tolist() == [4, 9]
    assert found.probabilities.tolist() == pytest.approx([0.4, 0.6])
    # nothing above: equal
    same = some([2, 3], 0.5, 0.5)
    assert residual(same, some([2, 3], 0.5, 0.5)) is same
    # nothing in common, on either side
    assert residual(some([2], 1.0), some([8], 1.0)).ids.tolist() == [2]
    assert residual(some([8], 1.0), some([2], 1.0)).probabilities.tolist() == [1]


def test_rejection_keeps_the_targets_distribution() -> None:
    """Tokens of a draft, kept with probability min(1, p/q) and else redrawn, are distributed as the target's."""
    target, draft = some([0, 1, 2, 3, 7], 0.4, 0.05, 0.3, 0.05, 0.2), some([0, 1, 3, 5], 0.2, 0.5, 0.1, 0.2)
    chooser = one(seed=11)
    left = residual(target, draft)
    draws = 20_000
    counts = np.zeros(10)
    for _ in range(draws):
        token = chooser.draw(draft)
        if chooser.generator.random() * draft.probability(token) >= target.probability(token):
            token = chooser.draw(left)
        counts[token] += 1
    assert set(np.flatnonzero(counts)) == set(target.ids)
    expected = draws * target.probabilities
    # chi-squared of 4 degrees of freedom exceeds this once in a million
    assert (((counts[target.ids] - expected) ** 2) / expected).sum() < 33.4
