"""The text that a validation runs on, as tokens."""

from __future__ import annotations

import dataclasses

__all__ = ["SLICES", "Document"]

SLICES = ("code", "prose", "scripts", "long", "chat")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One sequence. It begins with BOS, where the tokenizer has one; every position after it predicts the next."""

    # one of SLICES; "random" for a folder without a tokenizer
    slice: str
    # unique
    name: str
    token_ids: tuple[int, ...]
