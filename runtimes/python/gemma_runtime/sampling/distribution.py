"""Probabilities of the tokens that may come next."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["Distribution", "certain", "draw", "residual"]

# A running sum over a whole vocabulary costs more than the softmax itself; sums of blocks find the block first.
_BLOCK = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """Tokens with a probability.

    Attributes:
        ids: int64 [n], ascending.
        probabilities: float64 [n], the sum is 1.
    """

    ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]

    def probability(self, token: int) -> float:
        """A token's probability; 0 where it may not come."""
        place = int(np.searchsorted(self.ids, token))
        found = place < len(self.ids) and int(self.ids[place]) == token
        return float(self.probabilities[place]) if found else 0.0


def certain(token: int) -> Distribution:
    """One token, with probability 1."""
    return Distribution(ids=np.array([token], np.int64), probabilities=np.ones(1))


def draw(weights: npt.NDArray[np.float32] | npt.NDArray[np.float64], number: float) -> int:
    """The place whose share of the running sum a number falls into.

    Args:
        weights: [n], 0 or above, not all 0; they need not sum to 1.
        number: from 0 up to but not including 1, uniform.
    """
    starts = np.arange(0, len(weights), _BLOCK)
    blocks = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    target = number * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    begin = block * _BLOCK
    edges = weights[begin : begin + _BLOCK].cumsum(dtype=np.float64)
    if block:
        edges += blocks[block - 1]
    place = int(np.searchsorted(edges, target, side="right"))
    # the two sums of a block may differ in the last digit: then its last place that can be drawn at all
    return begin + (place if place < len(edges) else int(np.flatnonzero(weights[begin : begin + _BLOCK])[-1]))


def residual(target: Distribution, draft: Distribution) -> Distribution:
    """What a rejected draft token is replaced from: the part of `target` above `draft`, normalised.

    A draft token drawn from q and kept with probability min(1, p/q), else redrawn from max(p - q, 0), has exactly the
    distribution p (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, theorem 1;
    Chen et al. 2023, https://arxiv.org/abs/2302.01318).

    Args:
        target: p, of the model.
        draft: q, what the token was drawn from.

    Returns:
        `target` itself where nothing is above `draft`: then the two are equal up to rounding.
    """
    dense = np.zeros(1 + max(int(target.ids[-1]), int(draft.ids[-1])))
    dense[draft.ids] = draft.probabilities
    left = target.probabilities - dense[target.ids]
    kept = np.flatnonzero(left > 0)
    total = left[kept].sum()
    if not total > 0:
        return target
    return Distribution(ids=target.ids[kept], probabilities=left[kept] / total)
