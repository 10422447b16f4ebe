"""How many guesses are made, by what they cost and how often they come true."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from gemma_runtime.speculation import DraftLength

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
        length.judge(KIND, count, accepted, cost(count))
        made, seconds = made + accepted + 1, seconds + cost(count)
        counts.append(count)
    return Simulated(seconds=seconds, tokens=made, counts=counts)


def cheap(count: int) -> float:
    return 1.0 + 0.02 * count


def four_bit(count: int) -> float:
    """What FACTS about kernels of quantised weights say: 1.6 for four rows, 2.1 for eight."""
    return 1.0 + (0.2 if count <= 3 else 0.16) * count


def test_guesses_that_come_true_are_made_in_full() -> None:
    found = simulate(DraftLength(), 0.95, cheap, tokens=1000)
    assert np.mean(found.counts) > 6
    assert found.counts.count(7) > len(found.counts) / 2
    assert found.tokens / found.seconds > 4


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cost", [cheap, four_bit])
def test_guesses_that_never_come_true_cost_little(cost: Callable[[int], float], seed: int) -> None:
    found = simulate(DraftLength(), 0.1 if cost is four_bit else 0.0, cost, tokens=1000, seed=seed)
    assert found.seconds / found.tokens < 1.03
    # it is looked at again, ever more rarely
    assert 3 <= np.count_nonzero(found.counts[100:]) <= 100


def test_it_comes_back_when_the_text_repeats_itself() -> None:
    length = DraftLength()
    simulate(length, 0.1, four_bit, tokens=1000)
    found = simulate(length, 0.98, four_bit, tokens=1000)
    # the longest pause is 128 runs
    assert found.tokens / found.seconds > 2
    assert np.mean(found.counts[-30:]) > 5


def test_dear_rows_allow_fewer_guesses() -> None:
    dear = simulate(DraftLength(), 0.6, lambda count: 1 + 0.4 * count, tokens=1000)
    affordable = simulate(DraftLength(), 0.6, cheap, tokens=1000)
    assert np.mean(dear.counts) < 1
    assert np.mean(affordable.counts) > 3
    assert dear.seconds / dear.tokens < 1.05


def test_guesses_that_take_long_to_make_are_not_made() -> None:
    length = DraftLength()
    length.judge(KIND, 0, 0, 1.0)
    for _ in range(50):
        length.spent(2.0)
        length.judge(KIND, 7, 6, cheap(7))
    assert length.best(KIND, 7) == 0


@pytest.mark.parametrize("most", range(8))
def test_never_more_than_there_is_room_for(most: int) -> None:
    length = DraftLength()
    generator = np.random.default_rng(most)
    for _ in range(300):
        count = length.best(KIND, most)
        assert 0 <= count <= most
        length.judge(KIND, count, int(generator.integers(count + 1)), cheap(count))
    assert max(DraftLength(most=3).best(8, 7) for _ in range(5)) == 3


def test_one_slow_run_is_no_reason_to_stop() -> None:
    length = DraftLength()
    simulate(length, 0.95, cheap, tokens=500)
    length.judge(KIND, 7, 7, 100 * cheap(7))
    assert length.best(KIND, 7) > 0


def test_what_was_not_looked_at_says_nothing_but_what_it_cost() -> None:
    unchecked, wrong = DraftLength(), DraftLength()
    for _ in range(10):
        unchecked.judge(KIND, 7, 1, cheap(7), checked=1)
        wrong.judge(KIND, 7, 1, cheap(7))
    assert unchecked.best(KIND, 7) == 7
    assert wrong.best(KIND, 7) < 5
    dear = DraftLength()
    dear.judge(KIND, 0, 0, 1.0)
    for _ in range(10):
        # of a run and three more: seven guesses cost that, not the one that was looked at
        dear.judge(KIND, 7, 1, 4.0, checked=1)
    assert 1 <= dear.best(KIND, 7) <= 7
    assert dear._cost(1) < 1.5
