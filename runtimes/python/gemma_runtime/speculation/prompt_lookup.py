"""Guesses from the text so far: code that is edited, quoted or repeated goes on as it did before."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_runtime.speculation.draft_length import DraftLength
from gemma_runtime.speculation.drafter import NO_DRAFT, Draft

__all__ = ["PromptLookup"]

# Tokens that must agree. Two already mean something in code; the longer the match, the more of the guess comes true,
# which is counted for each length apart up to _LONGEST.
_SHORTEST = 2
_LONGEST = 8
# occurrences of a pair that are compared, latest first
_OCCURRENCES = 16


class PromptLookup:
    """Continues with what followed the latest longest match of the last tokens.

    Every pair of neighbouring tokens is indexed once, as it comes; a guess costs microseconds.

    Args:
        length: how many tokens pay.
    """

    def __init__(self, length: DraftLength) -> None:
        self._length = length
        self._tokens: list[int] = []
        # pair of tokens -> ends of its occurrences, in order
        self._ends: dict[tuple[int, int], list[int]] = {}

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        """See Drafter."""
        self._index(tokens)
        end, matched = self._longest_match()
        if matched < _SHORTEST:
            return NO_DRAFT
        kind = min(matched, _LONGEST)
        count = self._length.best(kind, most)
        return Draft(tokens=tuple(self._tokens[end : end + count]), kind=kind) if count else NO_DRAFT

    def judge(self, draft: Draft, accepted: int, *, checked: int) -> None:
        """See Drafter."""
        self._length.judge(draft.kind, checked, accepted)

    def _index(self, tokens: Sequence[int]) -> None:
        for token in tokens[len(self._tokens) :]:
            if self._tokens:
                # the pair before the last is complete: something follows it
                self._ends.setdefault((self._tokens[-1], token), []).append(len(self._tokens) + 1)
            self._tokens.append(token)

    def _longest_match(self) -> tuple[int, int]:
        """Where the best match ends, and how many tokens agree."""
        known = self._tokens
        best_end = best = 0
        if len(known) < _SHORTEST:
            return 0, 0
        for end in reversed(self._ends.get((known[-2], known[-1]), [])[-_OCCURRENCES - 1 :]):
            if end == len(known):
                # the last tokens themselves
                continue
            matched = _SHORTEST
            while matched < min(_LONGEST, end) and known[end - 1 - matched] == known[-1 - matched]:
                matched += 1
            if matched > best:
                best_end, best = end, matched
                if best == _LONGEST:
                    break
        return best_end, best
