"""What a run asks of a reference, whatever computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.findings import ReferenceAbout

__all__ = ["Cache", "CacheSource", "Exchanged", "ReferenceSource"]

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchanged:
    """Some tokens behind two caches of those before them."""

    # the reference's own
    cache: Cache
    # logits [tokens, vocab_size] behind that, and behind the one from elsewhere: NaN where that is no number
    plain: npt.NDArray[np.float32]
    behind: npt.NDArray[np.float32]


@runtime_checkable
class CacheSource(Protocol):
    """A reference whose keys and values can be looked at and replaced."""

    def exchange(self, token_ids: Sequence[int], past: Cache) -> None:
        """Asks for `exchanged`: before `prepare`, a reference that is read layer by layer is not read again for it.

        Args:
            token_ids: at least one more than `past` has.
            past: keys and values of the first of them, from elsewhere.
        """

    def exchanged(self) -> Exchanged:
        """The tokens that follow `past`, behind it and behind the reference's own keys and values."""
