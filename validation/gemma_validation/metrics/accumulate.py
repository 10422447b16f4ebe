"""The drift of test logits from reference logits, over as much text as is added; memory does not grow with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.findings import Drift, Flip, PositionDrift
from gemma_validation.metrics.collected import ALTERNATIVES, Collected, Decode, FlipCandidate, Ranked
from gemma_validation.metrics.finite import require_finite
from gemma_validation.metrics.rows import PairComparer
from gemma_validation.metrics.top import top_tokens

__all__ = ["DriftMeter", "following_tokens", "ranked"]


class DriftMeter:
    """Adds up documents, a few rows at a time.

    Args:
        tau: margin above which a changed token is a decisive flip, logits (`TAU` says why).
    """

    def __init__(self, *, tau: float) -> None:
        self._collected = Collected(tau=tau)
        self._comparer: PairComparer | None = None

    def add(
        self, document: Document, first: int, reference: npt.NDArray[np.float32], test: npt.NDArray[np.float32]
    ) -> None:
        """Compares consecutive positions of a document; later calls continue where earlier ones ended.

        Args:
            document: what the logits are of; its own tokens are what follows.
            first: the position of the first row.
            reference, test: [n, vocab_size].

        Raises:
            NotFinite: before anything is computed from these rows.
            ValueError: shapes differ, or the rows are not the document's.
        """
        if reference.shape != test.shape or reference.ndim != 2:
            raise ValueError(f"expected two arrays [n, vocab_size], found {reference.shape} and {test.shape}")
        positions = np.arange(first, first + len(reference), dtype=np.int64)
        following = following_tokens(document, positions, vocab_size=reference.shape[1])
        require_finite(reference, positions, side="reference", document=document.name)
        require_finite(test, positions, side="test", document=document.name)
        if self._comparer is None or self._comparer.vocab_size != reference.shape[1]:
            self._comparer = PairComparer(reference.shape[1])
        found = self._comparer.compare(reference, test, positions=positions, next_tokens=following)
        self._collected.extend(document, found)
        for row in np.flatnonzero(~found["same_top1"]).tolist():
            margin = float(found["margin"][row])
            if self._collected.wants(margin):
                self._collected.offer(
                    FlipCandidate(
                        document=document,
                        position=int(positions[row]),
                        margin=margin,
                        reference=ranked(reference[row]),
                        test=ranked(test[row]),
                    )
                )

    def drifts(self) -> tuple[Drift, ...]:
        """Over everything ("all") first, then each slice.

        Raises:
            ValueError: nothing was added, or a slice has no position with a token after it.
        """
        return self._collected.drifts()

    def positions(self) -> tuple[PositionDrift, ...]:
        """The longest document of each slice, its first 1,024 positions."""
        return self._collected.positions()

    def flips(self, decode: Decode) -> tuple[Flip, ...]:
        """The 20 decisive flips of the largest margin, worst first; `decode` makes text of token ids."""
        return self._collected.flips(decode)


def following_tokens(document: Document, positions: npt.NDArray[np.int64], *, vocab_size: int) -> npt.NDArray[np.int64]:
    """The token after each position, -1 behind the last one.

    Raises:
        ValueError: a position is outside the document, or a token outside the vocabulary.
    """
    length = len(document.token_ids)
    if len(positions) and not 0 <= positions.min() <= positions.max() < length:
        raise ValueError(
            f"rows for positions {positions.min()} to {positions.max()} of {document.name}, which has {length} tokens"
        )
    tokens = np.array([*document.token_ids[1:], -1], np.int64)[positions]
    if len(tokens) and (tokens.max() >= vocab_size or tokens.min() < -1):
        raise ValueError(f"{document.name} has tokens outside the vocabulary of {vocab_size}")
    return tokens


def ranked(row: npt.NDArray[np.float32], count: int = ALTERNATIVES) -> Ranked:
    """The most likely tokens of one row ([vocab_size]) with their log-probabilities."""
    wide = row.astype(np.float64)
    wide -= wide.max()
    logprobs = wide - np.log(np.exp(wide).sum())
    best: list[int] = top_tokens(row[None], count)[0].tolist()
    return tuple((token, float(logprobs[token])) for token in best)
