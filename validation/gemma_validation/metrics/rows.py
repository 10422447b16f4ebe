"""The arithmetic of every metric: one position's two rows of logits, in float64 over the whole vocabulary.

With r, t the logits, a = r - max r, b = t - max t and Z their sums of exponentials:

    log p = a - log Z_a        log q = b - log Z_b        KL(p || q) = sum p (a - b) - log Z_a + log Z_b

The maxima leave nothing that overflows, and a - b is as small as the drift itself, so that a shift of all logits of a
row, which changes no probability, cancels before anything is squared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_validation.metrics.top import top_tokens

__all__ = ["POSITION", "TOP", "PairComparer"]

Logits = npt.NDArray[np.floating[Any]]
TOP = 10
# what is kept of a position
POSITION = np.dtype(
    [
        ("position", np.int64),
        # KL(reference || test), nats
        ("kl", np.float64),
        # p_test - p_reference of the token that follows, and both log-likelihoods; NaN where none follows
        ("shift", np.float64),
        ("logprob_reference", np.float64),
        ("logprob_test", np.float64),
        # logits between the reference's best two
        ("margin", np.float64),
        ("same_top1", np.bool_),
        # share of the reference's ten that are among the test's
        ("overlap", np.float64),
        # sums of squares over the vocabulary, each centred by its own mean
        ("squared_difference", np.float64),
        ("squared_reference", np.float64),
        # largest |t - r|; mean of r
        ("largest", np.float64),
        ("mean_reference", np.float64),
        ("vocab_size", np.int64),
    ]
)
# a row of 256,000 tokens is 2 MiB in float64: three of them at a time stay in the processor's caches
_BLOCK_ELEMENTS = 1 << 17


class PairComparer:
    """Compares rows in blocks, in arrays that are made once.

    Args:
        vocab_size: logits of a row.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._rows = max(1, _BLOCK_ELEMENTS // vocab_size)
        self._work = np.empty((3, self._rows, vocab_size), np.float64)

    def compare(
        self,
        reference: Logits,
        test: Logits,
        *,
        positions: npt.NDArray[np.int64],
        next_tokens: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.void]:
        """Everything that is kept of these positions.

        Args:
            reference, test: [n, vocab_size], finite.
            positions: [n].
            next_tokens: [n], the token that follows in the text; -1 where none does.

        Returns:
            [n] of `POSITION`.
        """
        found = np.empty(len(reference), POSITION)
        found["position"] = positions
        for start in range(0, len(reference), self._rows):
            block = slice(start, start + self._rows)
            self._compare(reference[block], test[block], next_tokens[block], found[block])
        return found

    def _compare(self, reference: Logits, test: Logits, following: npt.NDArray[np.int64], found: Any) -> None:
        best, others = top_tokens(reference, TOP), top_tokens(test, TOP)
        tops = _at(reference, best[:, :1]), _at(test, others[:, :1])
        a, b, c = (part[: len(reference)] for part in self._work)
        np.subtract(reference, tops[0][:, None], out=a, dtype=np.float64)
        np.subtract(test, tops[1][:, None], out=b, dtype=np.float64)
        np.subtract(a, b, out=c)
        chosen = np.maximum(following, 0)[:, None]
        likelihoods = _at(a, chosen), _at(b, chosen)
        self._squares(a, c, tops[1] - tops[0], found)
        # the mean is no longer needed: a and b become exponentials in place
        found["mean_reference"] += tops[0]
        sums = np.exp(a, out=a).sum(axis=1), np.exp(b, out=b).sum(axis=1)
        logs = np.log(sums[0]), np.log(sums[1])
        # rounding can leave it a hair below zero
        found["kl"] = (np.einsum("ij,ij->i", a, c) / sums[0] - logs[0] + logs[1]).clip(min=0.0)
        known = following >= 0
        found["logprob_reference"] = np.where(known, likelihoods[0] - logs[0], np.nan)
        found["logprob_test"] = np.where(known, likelihoods[1] - logs[1], np.nan)
        found["shift"] = np.exp(found["logprob_test"]) - np.exp(found["logprob_reference"])
        found["same_top1"] = best[:, 0] == others[:, 0]
        found["overlap"] = (best[:, :, None] == others[:, None, :]).any(axis=2).mean(axis=1)
        found["margin"] = tops[0] - _at(reference, best[:, 1:2]) if self.vocab_size > 1 else np.inf
        found["vocab_size"] = self.vocab_size

    def _squares(self, a: Any, c: Any, shift: npt.NDArray[np.float64], found: Any) -> None:
        """Fills what is squared; `found["mean_reference"]` still lacks the row's maximum."""
        mean, difference = a.mean(axis=1), c.mean(axis=1)
        found["mean_reference"] = mean
        # a variance by its moments: both are of the size of their own deviation here, see the module's text
        found["squared_reference"] = (np.einsum("ij,ij->i", a, a) - self.vocab_size * mean**2).clip(min=0.0)
        found["squared_difference"] = (np.einsum("ij,ij->i", c, c) - self.vocab_size * difference**2).clip(min=0.0)
        # t - r = shift - c
        found["largest"] = np.maximum(np.abs(shift - c.min(axis=1)), np.abs(shift - c.max(axis=1)))


def _at(rows: Logits, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64 [n]: one element of each row, ids [n, 1]."""
    return np.take_along_axis(rows, ids, axis=1)[:, 0].astype(np.float64)
