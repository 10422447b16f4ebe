"""Guesses from a smaller model with the same tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemma_runtime.speculation.draft_length import DraftLength
from gemma_runtime.speculation.drafter import NO_DRAFT, Draft

if TYPE_CHECKING:
    from gemma_runtime.sampling import TokenChooser
    from gemma_runtime.sequence import TokenSequence

__all__ = ["DraftModel"]

# the guesses of a model are all of one kind, whose first chance is high
_KIND = 5


class DraftModel:
    """A sequence of the smaller model that follows the larger one's.

    Args:
        sequence: of the smaller model's graph.
        chooser: how its guesses are drawn: greedily for greedy decoding, otherwise from its own distribution.
        length: how many guesses pay.
        stopped: asked while a prompt is read: when true there are no guesses.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        chooser: TokenChooser,
        length: DraftLength,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sequence, self._chooser, self._length, self._stopped = sequence, chooser, length, stopped
        # tokens that were looked at, and whether the smaller model has rows for all of them
        self._seen, self._readable = 0, True

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        """See Drafter."""
        room = self._sequence.opened.context_length - len(tokens)
        self._readable &= max(tokens[self._seen :], default=0) < self._sequence.opened.vocab_size
        self._seen = len(tokens)
        # its own guesses may be taken back, all but the last of which run
        room = min(room, self._sequence.reversible(len(tokens), most) + 1)
        count = self._length.best(_KIND, min(most, room)) if self._readable else 0
        if not count:
            return NO_DRAFT
        kept = self._sequence.keep_prefix_of(tokens)
        logits = self._sequence.extend(tokens[kept:], self._stopped)
        guesses, distributions = [], []
        while logits is not None:
            if not np.isfinite(logits[-1]).all():
                # the smaller model's trouble is not the larger one's
                break
            if self._chooser.greedy:
                guesses.append(self._chooser.choose(logits[-1]))
            else:
                distributions.append(self._chooser.distribution(logits[-1]))
                guesses.append(self._chooser.draw(distributions[-1]))
            if len(guesses) == count:
                break
            logits = self._sequence.step(guesses[-1:])
        return Draft(tokens=tuple(guesses), distributions=tuple(distributions) or None, kind=_KIND)

    def judge(self, draft: Draft, accepted: int, *, checked: int) -> None:
        """See Drafter."""
        self._length.judge(_KIND, checked, accepted)
