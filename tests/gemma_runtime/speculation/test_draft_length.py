"""How many guesses are made, by what they cost and how often they come true."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemma_export.precision.schemes import SCHEMES
from gemma_runtime.manifest import read_manifest
from gemma_runtime.speculation import DraftLength, row_cost

KIND = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulated:
    # in plain steps
    seconds: float
    tokens: int
    counts: list[int]


def simulate(
    length: DraftLength, chance: float, cost: Callable[[int], float], *, tokens: int, seed: int = 0
) -> Simulated:
    """A text where each guess comes true with a chance, and a run with n guesses takes cost(n)."""
    generator = np.random.default_rng(seed)
    made, seconds, counts = 0, 0.0, []
    while made < tokens:
        count = length.best(KIND, 7)
        accepted = next((index for index in range(count) if generator.random() >= chance), count)
        length.judge(KIND, count, accepted)
        made, seconds = made + accepted + 1, seconds + cost(count)
        counts.append(count)
    return Simulated(seconds=seconds, tokens=made, counts=counts)


# of a guess, in plain steps; 0.17 is that of 4-bit kernels
COSTS = (0.02, 0.17)


def run(cost: float, chance: float, *, length: DraftLength | None = None, seed: int = 0) -> Simulated:
    return simulate(length or DraftLength(cost), chance, lambda count: 1 + cost * count, tokens=1000, seed=seed)


@pytest.mark.parametrize("cost", COSTS)
def test_guesses_that_come_true_are_made_in_full(cost: float) -> None:
    found = run(cost, 0.97)
    assert found.counts.count(7) > len(found.counts) / 2
    assert found.tokens / found.seconds > 2.2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cost", COSTS)
def test_guesses_that_seldom_come_true_cost_little(cost: float, seed: int) -> None:
    found = run(cost, 0.1 if cost > 0.1 else 0.0, seed=seed)
    assert found.seconds / found.tokens < 1.03
    # it is looked at again, ever more rarely
    assert 3 <= np.count_nonzero(found.counts[100:]) <= 100


def test_it_comes_back_when_the_text_repeats_itself() -> None:
    length = DraftLength(0.17)
    run(0.17, 0.1, length=length)
    found = run(0.17, 0.98, length=length)
    # the longest pause is 128 runs
    assert found.tokens / found.seconds > 2
    assert np.mean(found.counts[-30:]) > 5


def test_dear_guesses_are_fewer() -> None:
    dear, affordable = run(0.4, 0.6), run(0.02, 0.6)
    assert np.mean(dear.counts) < np.mean(affordable.counts) / 2
    assert np.mean(affordable.counts) > 3
    assert dear.seconds / dear.tokens < 1.05
    assert max(run(2.0, 0.9).counts) <= 1


@pytest.mark.parametrize("most", range(8))
def test_never_more_than_there_is_room_for(most: int) -> None:
    length = DraftLength(0.1)
    generator = np.random.default_rng(most)
    for _ in range(300):
        count = length.best(KIND, most)
        assert 0 <= count <= most
        length.judge(KIND, count, int(generator.integers(count + 1)))
    assert max(DraftLength(0.1, most=3).best(8, 7) for _ in range(5)) == 3


def test_what_was_not_looked_at_says_nothing() -> None:
    unchecked, wrong = DraftLength(0.02), DraftLength(0.02)
    for _ in range(10):
        unchecked.judge(KIND, 1, 1)
        wrong.judge(KIND, 7, 1)
    assert unchecked.best(KIND, 7) == 7
    assert wrong.best(KIND, 7) < 5


def test_the_same_text_gets_the_same_guesses() -> None:
    assert run(0.17, 0.6, seed=3).counts == run(0.17, 0.6, seed=3).counts


def test_rows_cost_what_the_types_of_weights_make_them_cost(tiny_fp32: Path) -> None:
    manifest = read_manifest(tiny_fp32)
    found = {}
    for name in ("float32", *SCHEMES):
        precision = dataclasses.replace(manifest.precision, weight_dtype=name)
        found[name] = row_cost(dataclasses.replace(manifest, precision=precision))
    assert sorted(found, key=found.__getitem__) == ["int8-dynamic", "float32", "int4", "int8"]
    wide = dataclasses.replace(manifest.precision, activation_dtype="float16")
    assert row_cost(dataclasses.replace(manifest, precision=wide)) > found["float32"]
