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

__all__ = ["GreedyText", "first_divergence", "greedy_divergences", "greedy_texts"]

# what the text is called where something is found wrong with it
_NAME = "greedy text"
# Tokens of a document that are the prompt, at most; half of a shorter one.
_PROMPT = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyText:
    """What an export wrote behind the first part of a document."""

    # without the last token, behind which nothing is asked
    document: Document
    # tokens of it that are the prompt
    prompt: int
    # what was written
    tokens: tuple[int, ...]


def greedy_texts(runner: ArtifactRunner, documents: Sequence[Document], steps: int) -> tuple[GreedyText, ...]:
    """Lets the export write behind the first half of each document.

    Args:
        runner: over any graph of the folder that takes single tokens.
        documents: prompts are taken from them.
        steps: tokens to write; fewer where the context ends.

    Raises:
        NotFinite: a step computes what is no number.
    """
    found = []
    for document in documents:
        prompt = document.token_ids[: max(1, min(_PROMPT, len(document.token_ids) // 2))]
        tokens = tuple(_tokens(runner, prompt, min(steps, runner.context_length - len(prompt))))
        whole = dataclasses.replace(document, token_ids=(*prompt, *tokens[:-1]))
        found.append(GreedyText(document=whole, prompt=len(prompt), tokens=tokens))
    return tuple(found)


def greedy_divergences(
    source: ReferenceSource, texts: Sequence[GreedyText], first: int
) -> tuple[GreedyDivergence, ...]:
    """Asks the reference what it would have written.

    Up to the first difference both texts are the same, so one pass of the reference over the export's text gives every
    token of its own and the margin at the difference: what it would write behind that is never needed.

    Args:
        source: the reference, prepared with the texts' documents.
        texts: what the export wrote.
        first: index of the first of these documents among the prepared ones.

    Returns:
        One entry a text.

    Raises:
        NotFinite: the reference computes what is no number.
    """
    found: list[GreedyDivergence] = []
    for index, text in enumerate(texts, first):
        begin = text.prompt - 1
        rows = source.logits(index, begin, begin + len(text.tokens))
        where, margin = first_divergence(rows, text.tokens, position=begin)
        found.append(
            GreedyDivergence(
                slice=text.document.slice,
                document=text.document.name,
                tokens=len(text.tokens),
                first=where,
                margin=margin,
            )
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
