"""Where two greedy texts part."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_validation.findings import GreedyDivergence

__all__ = ["first_divergence"]


def first_divergence(
    reference: Sequence[tuple[int, float]], test: Sequence[int], *, slice: str, document: str
) -> GreedyDivergence:
    """Compares as many tokens as both have.

    Args:
        reference: token and the margin to the second-best one, logits, of each step.
        test: token of each step.
        slice, document: whose prompt it was.
    """
    for index, ((expected, margin), found) in enumerate(zip(reference, test, strict=False)):
        if expected != found:
            return GreedyDivergence(slice=slice, document=document, tokens=index + 1, first=index, margin=margin)
    tokens = min(len(reference), len(test))
    return GreedyDivergence(slice=slice, document=document, tokens=tokens, first=None, margin=None)
