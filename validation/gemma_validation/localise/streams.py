"""The reference's values at every point, and the text that they are of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.layered import LayeredReference

if TYPE_CHECKING:
    import torch

    from gemma_export.layerwise import Tap

__all__ = ["ReferenceStreams", "excerpts"]

# 128 positions: all points of a 7B are 88 MB, and every one of them is a sample of every half
_EXCERPTS, _TOKENS = 4, 32
# float32 values that all points of an excerpt beyond a window may have, its logits among them: a gigabyte
_MOST_VALUES = 1 << 28


def excerpts(documents: Sequence[Document], *, window: int = 0, values: int = 1) -> tuple[Document, ...]:
    """The beginnings of a few documents, of as many slices as there are.

    Args:
        documents: at least one.
        window: the largest of the layers', 0 where none has one. The longest document comes first then, and goes on
            behind it, because a wrong window shows nowhere else; all stay short where none is longer, or where that
            would take too much memory.
        values: of all points together, for one position.
    """
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.slice, document)
    chosen = [*first.values(), *(document for document in documents if first[document.slice] is not document)]
    longest = max(documents, key=lambda document: len(document.token_ids))
    tokens = window + _TOKENS
    if not window or len(longest.token_ids) <= window or tokens * values > _MOST_VALUES:
        return tuple(_beginning(document, _TOKENS) for document in chosen[:_EXCERPTS])
    others = [document for document in chosen if document is not longest][: _EXCERPTS - 1]
    return (_beginning(longest, tokens), *(_beginning(document, _TOKENS) for document in others))


def _beginning(document: Document, tokens: int) -> Document:
    return dataclasses.replace(document, token_ids=document.token_ids[:tokens])


class ReferenceStreams:
    """What a reference computes at every point but the logits.

    Args:
        reference: not prepared for anything else.
        documents: a few short ones.

    Raises:
        NonFiniteError, CheckpointError: see `LayeredReference.prepare`.
    """

    def __init__(self, reference: LayeredReference, documents: Sequence[Document]) -> None:
        self.documents = tuple(documents)
        # (point, document) -> float32 [S, hidden_size]
        self._values: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
        self._reference = reference
        self._names = {
            "embedding": "embedding",
            reference.architecture.attention_residual: "attn_residual",
            "output": "mlp_residual",
            "norm.output": "norm",
        }
        reference.prepare(self.documents, self._keep)

    def _keep(self, tap: Tap, tensor: torch.Tensor) -> None:
        name = self._names.get(tap.name)
        if name is not None:
            point = name if tap.layer is None else f"layers.{tap.layer}.{name}"
            self._values[point, tap.batch] = tensor[0].numpy().copy()

    def value(self, point: str, document: int) -> npt.NDArray[np.float32]:
        """A point's values, float32 [S, hidden_size or vocab_size]; logits are computed anew, in ascending order."""
        if point == "logits":
            return self._reference.logits(document, 0, len(self.documents[document].token_ids))
        return self._values[point, document]
