"""Guesses from the text so far, against a search of all of it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_runtime.speculation import DraftLength, PromptLookup


class Eager(DraftLength):
    """As many guesses as there is room for."""

    def best(self, kind: int, most: int) -> int:
        return most


def agreeing(tokens: Sequence[int], end: int) -> int:
    """How many tokens before `end` are those at the end of all, up to eight."""
    count = 0
    while count < min(8, end) and tokens[end - 1 - count] == tokens[-1 - count]:
        count += 1
    return count


def searched(tokens: Sequence[int], most: int) -> tuple[int, ...]:
    """What followed the longest match among the last sixteen of two tokens or more; of equal ones the latest."""
    ends = [end for end in range(2, len(tokens)) if agreeing(tokens, end) >= 2][-16:]
    if not ends:
        return ()
    best = max(ends, key=lambda end: (agreeing(tokens, end), end))
    return tuple(tokens[best : best + most])


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    tokens=st.integers(1, 4).flatmap(lambda size: st.lists(st.integers(0, size), max_size=120)),
    parts=st.lists(st.integers(1, 5), max_size=120),
    most=st.integers(1, 7),
)
def test_longest_match_then_latest(tokens: list[int], parts: list[int], most: int) -> None:
    lookup, begin = PromptLookup(Eager(0.1)), 0
    for part in [*parts, 200]:
        begin += part
        assert lookup.propose(tokens[:begin], most).tokens == searched(tokens[:begin], most)
        if begin >= len(tokens):
            break


def test_the_kind_is_how_many_agree() -> None:
    found = PromptLookup(Eager(0.1)).propose([1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5], 3)
    assert (found.tokens, found.kind) == ((9, 1, 2), 5)
    assert PromptLookup(Eager(0.1)).propose([1, 2, 3], 3).tokens == ()
    assert PromptLookup(Eager(0.1)).propose([], 3).tokens == ()


class Counted(int):
    """Counts how often tokens are compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_a_guess_costs_the_same_however_long_the_text() -> None:
    same = [Counted(1)] * 8000
    # the pair occurs thousands of times, and what is before it never agrees
    pairs = [Counted(token) for number in range(2700) for token in (number + 3, 1, 2)]
    for text in (same, pairs):
        lookup = PromptLookup(Eager(0.1))
        lookup.propose(text, 7)
        for _ in range(100):
            Counted.compared = 0
            text = [*text, Counted(text[-3])]
            lookup.propose(text, 7)
            # sixteen matches of eight tokens, and the dictionary's own
            assert Counted.compared <= 16 * 8 + 10
