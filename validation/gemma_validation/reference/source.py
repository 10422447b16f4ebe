"""What a run asks of a reference, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.findings import ReferenceAbout

__all__ = ["Cache", "CacheSource", "ReferenceSource"]

# a layer's keys and values, [1, heads, tokens, head_dim] each, keys rotated: key and value of layer 0, of layer 1, ...
Cache = tuple[npt.NDArray[np.float32], ...]


class ReferenceSource(Protocol):
    """Logits to compare with."""

    about: ReferenceAbout
    vocab_size: int

    def prepare(self, documents: Sequence[Document]) -> None:
        """Does what is slow once for all documents, before the first `logits`; takes the place of earlier ones."""

    def logits(self, document: int, first: int, last: int) -> npt.NDArray[np.float32]:
        """Logits after positions first to last - 1 of a prepared document, [last - first, vocab_size].

        Args:
            document: its index among the prepared ones.
            first, last: called in ascending order.
        """

    def noise(self) -> ReferenceSource | None:
        """The same model in bfloat16, not yet prepared; None where there is none."""

    def close(self) -> None:
        """Lets go of memory and files."""


@runtime_checkable
class CacheSource(Protocol):
    """A reference whose keys and values can be looked at and replaced."""

    def cached(self, token_ids: Sequence[int], split: int) -> tuple[Cache, npt.NDArray[np.float32]]:
        """Keys and values of the first `split` tokens, and the logits of those behind them, [tokens, vocab_size]."""

    def logits_after(self, past: Cache, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of tokens that follow a cache from elsewhere, [tokens, vocab_size]."""
