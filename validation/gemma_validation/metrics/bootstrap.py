"""How far a mean over positions could be off by the choice of text: the upper end of its 95 % interval.

Neighbouring positions share their context, so whole documents are drawn again and not positions; where there are few
documents, runs of consecutive positions in them (a moving-block bootstrap, Kuensch 1989, without overlap). A position's
two sides are one value by then, so each draw takes both: the bootstrap is paired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["blocks_of", "upper_mean", "upper_share"]

# fewer documents than this are cut: the spread between a handful of sums says little. Of unequal lengths, as many as
# equal ones of the same spread: (sum n)^2 / sum n^2
_DOCUMENTS = 20
# consecutive positions of a block: neighbours' KL correlates over a few tokens, not over dozens
_BLOCK_LENGTH = 32
_DRAWS = 2000
_SEED = 20240229
# two-sided 95 %
_UPPER = 0.975


def blocks_of(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Index of the block that each position is in.

    Args:
        lengths: positions of each document, in order.

    Returns:
        [sum(lengths)], ascending from 0.
    """
    if sum(lengths) ** 2 >= _DOCUMENTS * sum(length**2 for length in lengths):
        parts = [length for length in lengths if length]
    else:
        parts = [part for length in lengths for part in _parts(length)]
    return np.repeat(np.arange(len(parts)), parts)


def _parts(length: int) -> list[int]:
    count = max(1, round(length / _BLOCK_LENGTH)) if length else 0
    return [length * (i + 1) // count - length * i // count for i in range(count)]


def upper_mean(values: npt.NDArray[np.float64], blocks: npt.NDArray[np.int64]) -> float:
    """Upper end of the 95 % interval of the mean; the mean itself where there is one block only.

    Args:
        values, blocks: [positions], at least one.
    """
    sums = np.bincount(blocks, weights=values)
    sizes = np.bincount(blocks).astype(np.float64)
    count = len(sums)
    draws = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    means = (draws @ sums) / (draws @ sizes)
    # a draw of n blocks spreads by the plug-in variance, (n - 1) / n of the unbiased one
    centre = float(values.mean())
    stretch = float(np.sqrt(count / (count - 1))) if count > 1 else 1.0
    return max(centre, centre + stretch * (float(np.quantile(means, _UPPER)) - centre))


def upper_share(happened: npt.NDArray[np.bool_], blocks: npt.NDArray[np.int64]) -> float:
    """The same for the share of positions where something happened.

    Where it never did no draw spreads: then it is the largest share that leaves a chance of 2.5 % to see nothing.
    """
    if not happened.any():
        return float(1 - (1 - _UPPER) ** (1 / len(happened)))
    return min(1.0, upper_mean(happened.astype(np.float64), blocks))
