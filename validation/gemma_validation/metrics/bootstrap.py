"""How far figures over positions could be off by the choice of text: upper ends of their 95 % intervals.

Neighbouring positions share their context, so whole documents are drawn again and not positions. A document that is
much longer than the others would decide alone: it is cut into runs of consecutive positions, as long as the others are
(a block bootstrap, Kuensch 1989, without overlap). A position's two sides are kept together, so that each draw takes
both: the bootstrap is paired. All figures of a text are of the same draws.

What has no upper end is a largest value: no draw holds one that is larger than what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Bootstrap", "blocks_of"]

Values = npt.NDArray[np.float64]
# fewer blocks than this are cut further: the spread between a handful of sums says little. Of unequal lengths, as many
# as equal ones of the same spread: (sum n)^2 / sum n^2
_BLOCKS = 20
# positions that parts are about as long as at least: neighbours' KL correlates over a few tokens, not over dozens
_BLOCK_LENGTH = 32
# a document is much longer than the others above one and a half times what three quarters of them have
_LONGER = 0.75
_DRAWS = 2000
_SEED = 20240229
# two-sided 95 %, and the standard normal's quantile there
_UPPER, _DEVIATIONS = 0.975, 1.959964
# draws whose positions are counted at a time: 40 MB for a full suite
_DRAWS_AT_ONCE = 128


def blocks_of(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Index of the block that each position is in.

    Documents are whole but for those that are much longer than the others. Only where fewer than 20 blocks' worth are
    left, as of a single slice, parts become shorter, down to about 32 positions.

    Args:
        lengths: positions of each document, in order.

    Returns:
        [sum(lengths)], ascending from 0.
    """
    whole = np.array([length for length in lengths if length], np.int64)
    if not len(whole):
        return np.empty(0, np.int64)
    longest = max(_BLOCK_LENGTH, int(np.quantile(whole, _LONGER)))
    counts = np.maximum(1, np.rint(whole / np.arange(longest, _BLOCK_LENGTH - 1, -1)[:, None])).astype(np.int64)
    enough = whole.sum() ** 2 >= _BLOCKS * (whole**2 / counts).sum(axis=1)
    chosen = counts[int(enough.argmax()) if enough.any() else -1]
    parts = [
        length * (i + 1) // count - length * i // count
        for length, count in zip(whole.tolist(), chosen.tolist(), strict=True)
        for i in range(count)
    ]
    return np.repeat(np.arange(len(parts)), parts)


class Bootstrap:
    """Draws of blocks, the same for every figure of a text.

    No upper end is below the figure itself. With one block only nothing spreads, and each is the figure.

    Args:
        blocks: of each position, from `blocks_of`; [positions], at least one.
    """

    def __init__(self, blocks: npt.NDArray[np.int64]) -> None:
        self._blocks, self._count = blocks, int(blocks[-1]) + 1
        # how often each draw has each block, [draws, blocks]
        self._draws = np.random.default_rng(_SEED).multinomial(
            self._count, np.full(self._count, 1 / self._count), size=_DRAWS
        )

    def upper_ratio(self, parts: Values, wholes: Values) -> float:
        """Of sum(parts) / sum(wholes).

        Args:
            parts, wholes: [positions], finite; the wholes' sum is above 0 in every block that has any.
        """
        centre = float(parts.sum() / wholes.sum())
        sums = (self._draws @ np.bincount(self._blocks, weights=side) for side in (parts, wholes))
        above, below = sums
        known = below > 0
        return self._upper(centre, above[known] / below[known])

    def upper_mean(self, values: Values) -> float:
        """Of the mean over positions; NaN marks positions that have no value."""
        known = ~np.isnan(values)
        return self.upper_ratio(np.where(known, values, 0.0), known.astype(np.float64))

    def upper_share(self, happened: npt.NDArray[np.bool_]) -> float:
        """Of the share of positions where something happened.

        Never below what independent positions would leave open, which a few events drawn again do not show: where it
        never did, the largest share that leaves a chance of 2.5 % to see nothing; else Wilson's score interval (1927,
        https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval).
        """
        count, seen = len(happened), int(happened.sum())
        if not seen:
            return float(1 - (1 - _UPPER) ** (1 / count))
        share, square = seen / count, _DEVIATIONS**2
        root = math.sqrt(share * (1 - share) / count + square / (4 * count**2))
        wilson = (share + square / (2 * count) + _DEVIATIONS * root) / (1 + square / count)
        return min(1.0, max(wilson, self.upper_mean(happened.astype(np.float64))))

    def upper_quantiles(self, values: Values, shares: Sequence[float]) -> tuple[float, ...]:
        """Of quantiles, interpolated linearly as numpy's.

        Args:
            values: [positions].
            shares: between 0 and 1.
        """
        order = np.argsort(values)
        ordered, blocks = values[order], self._blocks[order]
        found = np.empty((len(shares), _DRAWS))
        for start in range(0, _DRAWS, _DRAWS_AT_ONCE):
            draws = slice(start, start + _DRAWS_AT_ONCE)
            # the draw's positions up to and with each value
            ranks = np.cumsum(self._draws[draws][:, blocks], axis=1)
            for row, rank in enumerate(ranks, start):
                wanted = np.array(shares) * (rank[-1] - 1)
                floor = np.floor(wanted).astype(np.int64)
                lower, upper = (ordered[np.searchsorted(rank, at, side="right")] for at in (floor, np.ceil(wanted)))
                found[:, row] = lower + (wanted - floor) * (upper - lower)
        centres = np.quantile(values, shares)
        return tuple(self._upper(float(centre), row) for centre, row in zip(centres, found, strict=True))

    def _upper(self, centre: float, draws: Values) -> float:
        # a draw of n blocks spreads by the plug-in variance, (n - 1) / n of the unbiased one
        stretch = math.sqrt(self._count / (self._count - 1)) if self._count > 1 else 1.0
        return max(centre, centre + stretch * (float(np.quantile(draws, _UPPER)) - centre))
