"""KL divergence of whole vocabularies that arrive in blocks: no logits of all tokens are ever in memory."""

from __future__ import annotations

import torch

__all__ = ["StreamedKL"]


class StreamedKL:
    """KL(reference || model) of several models against one reference, block by block, in float64.

    With p = softmax(l) and q = softmax(k), KL = sum(p (l - k)) - logsumexp(l) + logsumexp(k): three running sums for
    each position, each relative to a running maximum, so nothing overflows.

    Args:
        positions: rows of every block of logits.
        models: how many there are.
    """

    def __init__(self, positions: int, models: int) -> None:
        zeros = torch.zeros(positions, dtype=torch.float64)
        lowest = torch.full_like(zeros, -torch.inf)
        self._reference = torch.empty(0)
        self._weights = torch.empty(0)
        self._top, self._sum = lowest, zeros
        self._differences = [zeros.clone() for _ in range(models)]
        self._model_top, self._model_sum = (
            [lowest.clone() for _ in range(models)],
            [zeros.clone() for _ in range(models)],
        )

    def reference(self, logits: torch.Tensor) -> None:
        """The reference's logits [positions, rows] of the next block of the vocabulary."""
        self._reference = logits.double()
        top = torch.maximum(self._top, self._reference.amax(-1))
        shrink = torch.exp(self._top - top)
        self._weights = torch.exp(self._reference - top[:, None])
        self._top, self._sum = top, self._sum * shrink + self._weights.sum(-1)
        for difference in self._differences:
            difference *= shrink

    def model(self, index: int, logits: torch.Tensor) -> None:
        """A model's logits [positions, rows] of the block that `reference` was last told."""
        wide = logits.double()
        top = torch.maximum(self._model_top[index], wide.amax(-1))
        shrink = torch.exp(self._model_top[index] - top)
        self._model_sum[index] = self._model_sum[index] * shrink + torch.exp(wide - top[:, None]).sum(-1)
        self._model_top[index] = top
        self._differences[index] += (self._weights * (self._reference - wide)).sum(-1)

    def means(self) -> list[float]:
        """Mean over the positions, nats, of each model; rounding may leave a zero a little below zero."""
        reference = self._top + self._sum.log()
        return [
            max(float((difference / self._sum - reference + top + total.log()).mean()), 0.0)
            for difference, top, total in zip(self._differences, self._model_top, self._model_sum, strict=True)
        ]
