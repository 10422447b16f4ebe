"""Greedy text: the next token, and where two texts part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemma_validation.findings import GreedyDivergence
from gemma_validation.metrics.finite import Side, require_finite

__all__ = ["first_divergence", "next_token"]

# what greedy text is called where something is found wrong with it
_NAME = "greedy text"


def next_token(row: npt.NDArray[np.float32], *, side: Side, position: int) -> tuple[int, float]:
    """The most likely token, and its margin over the second best in logits.

    Args:
        row: [vocab_size], of at least two tokens.
        side: whose.
        position: in the text.

    Raises:
        NotFinite: the largest of such logits would be any.
    """
    require_finite(row[None], np.array([position]), side=side, document=_NAME)
    second, best = np.partition(row, -2)[-2:]
    return int(row.argmax()), float(best - second)


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
