"""What a run asks of a reference, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.findings import ReferenceAbout

__all__ = ["ReferenceSource"]


class ReferenceSource(Protocol):
    """Logits to compare with."""

    about: ReferenceAbout
    vocab_size: int

    def prepare(self, documents: Sequence[Document]) -> None:
        """Does what is slow once for all documents, before the first `logits`."""

    def logits(self, document: int, first: int, last: int) -> npt.NDArray[np.float32]:
        """Logits after positions first to last - 1 of a prepared document, [last - first, vocab_size].

        Args:
            document: its index among the prepared ones.
            first, last: called in ascending order.
        """

    def noise(self) -> ReferenceSource | None:
        """The same model in bfloat16, not yet prepared; None where there is none."""

    def greedy(self, token_ids: Sequence[int], steps: int) -> list[tuple[int, float]] | None:
        """Free-running greedy text: each token, and how many logits it is ahead of the second best.

        Args:
            token_ids: the prompt.
            steps: tokens to make.

        Returns:
            None where that would take too long.

        Raises:
            NotFinite: a step computes what is no number.
        """

    def close(self) -> None:
        """Lets go of memory and files."""
