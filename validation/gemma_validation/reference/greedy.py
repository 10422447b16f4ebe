"""Free-running greedy text of reference and export, and where it first differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gemma_validation.artifact import ArtifactRunner
from gemma_validation.documents import Document
from gemma_validation.findings import GreedyDivergence
from gemma_validation.metrics.finite import Side
from gemma_validation.metrics.greedy import next_token
from gemma_validation.reference.source import ReferenceSource

__all__ = ["greedy_divergences", "greedy_steps"]

# Tokens of a document that are the prompt, at most; half of a shorter one.
_PROMPT = 128


def greedy_divergences(
    source: ReferenceSource, runner: ArtifactRunner, documents: Sequence[Document], steps: int
) -> tuple[GreedyDivergence, ...]:
    """Lets both sides write behind the first half of each document.

    Args:
        source: the reference.
        runner: over any graph of the folder that takes single tokens.
        documents: prompts are taken from them.
        steps: tokens to write; fewer where the context ends.

    Returns:
        One entry a document; none if the reference does not write.

    Raises:
        NotFinite: a step of either side computes what is no number.
    """
    found: list[GreedyDivergence] = []
    for document in documents:
        prompt = document.token_ids[: max(1, min(_PROMPT, len(document.token_ids) // 2))]
        count = min(steps, runner.context_length - len(prompt))
        expected = source.greedy(prompt, count)
        if expected is None:
            return ()
        first = margin = None
        # both are lazy: after the first difference the texts are of different stories, and nothing is computed
        written = greedy_steps(runner, prompt, count, side="test")
        for index, (wanted, own) in enumerate(zip(expected, written, strict=False)):
            if wanted[0] != own[0]:
                first, margin = index, wanted[1]
                break
        found.append(
            GreedyDivergence(
                slice=document.slice, document=document.name, tokens=len(expected), first=first, margin=margin
            )
        )
    return tuple(found)


def greedy_steps(
    runner: ArtifactRunner, token_ids: Sequence[int], steps: int, *, side: Side
) -> Iterator[tuple[int, float]]:
    """Greedy text of an exported graph token by token: each token, and its margin over the second best in logits.

    Raises:
        NotFinite: a step computes what is no number; `side` says whose.
    """
    past, fresh, length = None, list(token_ids), len(token_ids)
    for _ in range(steps):
        step = runner.step(np.array([fresh], np.int64), np.ones((1, length), np.int64), past)
        token, margin = next_token(step.logits[0, -1], side=side, position=length - 1)
        yield token, margin
        past, fresh, length = step.present, [token], length + 1
