"""What a source of guesses provides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gemma_runtime.sampling import Distribution

__all__ = ["NO_DRAFT", "Draft", "Drafter"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """Guessed tokens, in order."""

    tokens: tuple[int, ...]
    # what each was drawn from; None where a guess is all that there was
    distributions: tuple[Distribution, ...] | None = None
    # guesses of one kind come true about equally often
    kind: int = 0


NO_DRAFT = Draft(tokens=())


class Drafter(Protocol):
    """Guesses how a sequence goes on."""

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        """Up to `most` tokens that may follow `tokens`: prompt and answer so far, only ever extended."""

    def judge(self, draft: Draft, accepted: int, *, checked: int) -> None:
        """Tells how many of a draft's tokens came true.

        Args:
            draft: all that ran.
            accepted: its first ones, which came true.
            checked: its first ones, about which something is known; the others may be right or wrong.
        """
