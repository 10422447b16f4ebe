"""Free-running greedy text of an export, and where the reference would have gone on otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gemma_validation.artifact import ArtifactRunner
from gemma_validation.documents import Document
from gemma_validation.findings import GreedyDivergence
from gemma_validation.metrics.finite import require_finite
from gemma_validation.reference.source import ReferenceSource

__all__ = ["first_divergence", "greedy_divergences"]

# what the text is called where something is found wrong with it
_NAME = "greedy text"
# Tokens of a document that are the prompt, at most; half of a shorter one.
_PROMPT = 128


def greedy_divergences(
    source: ReferenceSource, runner: ArtifactRunner, documents: Sequence[Document], steps: int
) -> tuple[GreedyDivergence, ...]:
    """Lets the export write behind the first half of each document, and asks the reference what it would have written.

    Up to the first difference both texts are the same, so one pass of the reference over the export's text gives every
    token of its own and the margin at the difference: what it would write behind that is never needed. A reference
    that is read layer by layer reads its layers once for all documents.

    Args:
        source: the reference; is prepared anew.
        runner: over any graph of the folder that takes single tokens.
        documents: prompts are taken from them.
        steps: tokens to write; fewer where the context ends.

    Returns:
        One entry a document.

    Raises:
        NotFinite: a step of either side computes what is no number.
    """
    if not documents:
        return ()
    prompts = [document.token_ids[: max(1, min(_PROMPT, len(document.token_ids) // 2))] for document in documents]
    texts = [tuple(_tokens(runner, prompt, min(steps, runner.context_length - len(prompt)))) for prompt in prompts]
    # nothing is asked about what follows the last token
    source.prepare(
        [
            dataclasses.replace(document, token_ids=(*prompt, *text[:-1]))
            for document, prompt, text in zip(documents, prompts, texts, strict=True)
        ]
    )
    found: list[GreedyDivergence] = []
    for index, (document, prompt, text) in enumerate(zip(documents, prompts, texts, strict=True)):
        rows = source.logits(index, len(prompt) - 1, len(prompt) - 1 + len(text))
        first, margin = first_divergence(rows, text, position=len(prompt) - 1)
        found.append(
            GreedyDivergence(slice=document.slice, document=document.name, tokens=len(text), first=first, margin=margin)
        )
    return tuple(found)


def first_divergence(
    rows: npt.NDArray[np.float32], text: Sequence[int], *, position: int = 0
) -> tuple[int | None, float | None]:
    """The first token of a text that is not the reference's most likely one, and by how much it is not.

    Args:
        rows: the reference's logits before each token, [tokens, vocab_size].
        text: [tokens].
        position: of the first row in its document.

    Returns:
        Its index, and the reference's margin between its best two there in logits; None of both where none differs.

    Raises:
        NotFinite: the largest of such logits would be any.
    """
    require_finite(rows, np.arange(position, position + len(rows)), side="reference", document=_NAME)
    for index, (row, token) in enumerate(zip(rows, text, strict=True)):
        if int(row.argmax()) != token:
            second, best = np.partition(row, -2)[-2:]
            return index, float(best - second)
    return None, None


def _tokens(runner: ArtifactRunner, token_ids: Sequence[int], steps: int) -> Iterator[int]:
    """Free-running greedy text of an exported graph, token by token."""
    past, fresh, length = None, list(token_ids), len(token_ids)
    for _ in range(steps):
        step = runner.step(np.array([fresh], np.int64), np.ones((1, length), np.int64), past)
        row = step.logits[0, -1:]
        require_finite(row, np.array([length - 1]), side="test", document=_NAME)
        token = int(row.argmax())
        yield token
        past, fresh, length = step.present, [token], length + 1
