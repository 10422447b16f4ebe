"""Where two greedy texts part."""

from __future__ import annotations

from gemma_validation.metrics import first_divergence

_REFERENCE = [(5, 1.0), (6, 0.25), (7, 3.0)]


def test_first_token_that_differs_with_its_margin() -> None:
    found = first_divergence(_REFERENCE, [5, 9, 7], slice="code", document="one")
    assert (found.slice, found.document) == ("code", "one")
    assert (found.tokens, found.first, found.margin) == (2, 1, 0.25)


def test_equal_as_far_as_both_go() -> None:
    for test, tokens in (([5, 6, 7], 3), ([5, 6], 2), ([5, 6, 7, 8], 3), ([], 0)):
        found = first_divergence(_REFERENCE, test, slice="code", document="one")
        assert (found.tokens, found.first, found.margin) == (tokens, None, None)
