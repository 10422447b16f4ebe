"""A model of eight tokens whose next token depends on the last one only: its distributions are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

__all__ = ["SIZE", "TableSequence"]

SIZE = 8


class TableSequence:
    """Stands for a TokenSequence.

    Args:
        table: logits after each token, float32 [SIZE, SIZE].
    """

    def __init__(self, table: np.ndarray) -> None:
        self.tokens: list[int] = []
        self._table = table
        self.opened = SimpleNamespace(chunked=True, positions=8, context_length=64, vocab_size=SIZE)

    def __len__(self) -> int:
        return len(self.tokens)

    def step(self, ids: Sequence[int]) -> np.ndarray:
        self.tokens.extend(ids)
        return self._table[list(ids)]

    def extend(self, ids: Sequence[int], stopped: Callable[[], bool] = lambda: False) -> np.ndarray:
        assert not stopped()
        return self.step(ids)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def reversible(self, length: int, wanted: int) -> int:
        return wanted

    def keep_prefix_of(self, ids: Sequence[int]) -> int:
        kept = next(
            (index for index, (one, other) in enumerate(zip(self.tokens, ids[:-1], strict=False)) if one != other),
            min(len(self.tokens), len(ids) - 1),
        )
        self.truncate(kept)
        return kept
