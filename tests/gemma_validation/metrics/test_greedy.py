"""The next token, and where two greedy texts part."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_validation.metrics import NotFinite, first_divergence
from gemma_validation.metrics.greedy import next_token

_REFERENCE = [(5, 1.0), (6, 0.25), (7, 3.0)]


def test_first_token_that_differs_with_its_margin() -> None:
    found = first_divergence(_REFERENCE, [5, 9, 7], slice="code", document="one")
    assert (found.slice, found.document) == ("code", "one")
    assert (found.tokens, found.first, found.margin) == (2, 1, 0.25)


def test_equal_as_far_as_both_go() -> None:
    for test, tokens in (([5, 6, 7], 3), ([5, 6], 2), ([5, 6, 7, 8], 3), ([], 0)):
        found = first_divergence(_REFERENCE, test, slice="code", document="one")
        assert (found.tokens, found.first, found.margin) == (tokens, None, None)


def test_the_next_token_and_its_margin() -> None:
    assert next_token(np.array([1.0, 4.0, 3.5], np.float32), side="test", position=3) == (1, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_token_is_chosen_among_what_is_no_number(value: float) -> None:
    with pytest.raises(NotFinite, match="the test's logits at position 3 of greedy text are not finite"):
        next_token(np.array([1.0, value, 3.5], np.float32), side="test", position=3)
