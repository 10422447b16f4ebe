"""A reference made of arrays, and identities, for tests of golden packs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.findings import ReferenceAbout
from gemma_validation.golden import GoldenIdentity


class ArraySource:
    """Logits [length, vocab_size] of each document, by the document's name's number or alone."""

    about = ReferenceAbout(kind="transformers", name="arrays", dtype="float32", versions={"numpy": "2"})

    def __init__(self, logits: Sequence[npt.NDArray[np.float32]]) -> None:
        self._logits = logits
        self.prepared: list[Document] = []

    def prepare(self, documents: Sequence[Document]) -> None:
        self.prepared = list(documents)

    def logits(self, document: int, first: int, last: int) -> npt.NDArray[np.float32]:
        name = self.prepared[document].name.split()[-1]
        return self._logits[int(name) if name.isdigit() else 0][first:last]


def identity(vocab_size: int) -> GoldenIdentity:
    return GoldenIdentity(
        name="arrays",
        family="gemma",
        vocab_size=vocab_size,
        weights_sha256="0" * 64,
        tokenizer_sha256=None,
        tokens_sha256=None,
    )
