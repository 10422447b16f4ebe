"""KL divergence of whole vocabularies that arrive in blocks: no logits of all tokens are ever in memory."""

from __future__ import annotations

import torch

from gemma_export.ops import soft_cap

__all__ = ["StreamedKL"]


class StreamedKL:
    """KL(reference || model) of several models against one reference, block by block, in float64.

    With p = softmax(l) and q = softmax(k), KL = sum(p (l - k)) - logsumexp(l) + logsumexp(k): three running sums for
    each position, each relative to a running maximum, so nothing overflows.

    Args:
        positions: rows of every block of logits.
        models: how many there are.
        softcap: bound of the soft-capping that the logits have yet to go through; 0 where there is none.
    """

    def __init__(self, positions: int, models: int, softcap: float = 0.0) -> None:
        self._softcap = softcap
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
        self._reference = self._capped(logits)
        top = torch.maximum(self._top, self._reference.amax(-1))
        shrink = torch.exp(self._top - top)
        self._weights = torch.exp(self._reference - top[:, None])
        self._top, self._sum = top, self._sum * shrink + self._weights.sum(-1)
        for difference in self._differences:
            difference *= shrink

    def model(self, index: int, logits: torch.Tensor) -> None:
        """A model's logits [positions, rows] of the block that `reference` was last told."""
        wide = self._capped(logits)
        top = torch.maximum(self._model_top[index], wide.amax(-1))
        shrink = torch.exp(self._model_top[index] - top)
        self._model_sum[index] = self._model_sum[index] * shrink + torch.exp(wide - top[:, None]).sum(-1)
        self._model_top[index] = top
        self._differences[index] += (self._weights * (self._reference - wide)).sum(-1)

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        wide = logits.double()
        return soft_cap(wide, cap=self._softcap) if self._softcap else wide

    def means(self) -> list[float]:
        """Mean over the positions, nats, of each model; rounding may leave a zero a little below zero."""
        reference = self._top + self._sum.log()
        return [
            max(float((difference / self._sum - reference + top + total.log()).mean()), 0.0)
            for difference, top, total in zip(self._differences, self._model_top, self._model_sum, strict=True)
        ]
