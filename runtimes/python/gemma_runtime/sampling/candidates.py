"""Temperature, top-k, top-p and min-p without sorting a vocabulary.

Sorting 256,000 numbers takes about as long as a decoding step of a small model. A threshold found from parts leaves
few enough to sort.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemma_runtime.sampling.options import Sampling

__all__ = ["Candidates", "largest", "nucleus"]

_Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_Places = npt.NDArray[np.int64]

# the best of each block bound the k-th best of all from below; a large k takes smaller ones
_BLOCK = 128
_SMALLEST_BLOCK = 8
# up to here everything is done at once in float64
_FEW = 4096
# Numbers at a time where that needs temporary arrays: larger ones get fresh memory from the system at each use, and
# that costs more than what is computed in them.
_PART = 16_384
# of the histogram in which the nucleus' edge is looked for
_BINS = 4096
# ends of float32; a temperature below the smallest divides as that
_SMALLEST = float(np.finfo(np.float32).tiny)


class Candidates:
    """The tokens that stay, and their weights; keeps its memory from step to step.

    Args:
        sampling: temperature above 0, top-k, top-p, min-p.
        size: how many logits there are.
    """

    def __init__(self, sampling: Sampling, size: int) -> None:
        self._temperature = float(sampling.temperature)
        self._top_k = None if sampling.top_k is None else int(sampling.top_k)
        self._top_p = 1.0 if sampling.top_p is None else float(sampling.top_p)
        self._min_p = 0.0 if sampling.min_p is None else float(sampling.min_p)
        # Exponentials of a whole vocabulary are float32: a fifth of the time, and off by 1e-6 of themselves at most.
        # Sums of them are float64: 256,000 float32 additions would be off by more than a nucleus' edge.
        self._buffer: _Floats = np.empty(size, np.float32) if size > _FEW else np.empty(size)

    def weigh(self, logits: npt.NDArray[np.float32], top: float) -> tuple[_Places | None, _Floats]:
        """Ids in ascending order, None for all, and their probabilities up to a common factor.

        Args:
            logits: float32 [size], not modified.
            top: the largest of them, finite; its weight is 1.

        Returns:
            The weights [n] are valid until the next call.
        """
        ids: _Places | None = None
        values: npt.NDArray[np.floating] = logits
        weights = self._buffer
        temperature = self._temperature
        if self._top_k is not None and self._top_k < len(logits):
            ids = largest(logits, self._top_k)
            values, weights = logits[ids], np.empty(len(ids))
        if weights.dtype == np.float32:
            temperature = max(temperature, _SMALLEST)
        # the difference first: at a tiny temperature the quotient itself would overflow
        with np.errstate(over="ignore"):
            np.subtract(values, weights.dtype.type(top), out=weights, dtype=weights.dtype)
            if temperature != 1:
                weights /= weights.dtype.type(temperature)
        np.exp(weights, out=weights)
        if self._top_p < 1:
            ids, weights = _pick(ids, weights, nucleus(weights, self._top_p))
        if self._min_p > 0:
            ids, weights = _pick(ids, weights, np.flatnonzero(weights >= weights.dtype.type(self._min_p)))
        return ids, weights


def _pick(ids: _Places | None, weights: _Floats, kept: _Places) -> tuple[_Places, _Floats]:
    return kept if ids is None else ids[kept], weights[kept]


def largest(values: npt.NDArray[np.floating], k: int) -> _Places:
    """Places of the k largest numbers, ascending, ties by the smaller place.

    Args:
        values: [n].
        k: at least 1; all of them if there are fewer.
    """
    size = len(values)
    if k >= size:
        return np.arange(size)
    candidates, left = None, values
    width = min(_BLOCK, size // (2 * k))
    if width >= _SMALLEST_BLOCK:
        best = values[: size // width * width].reshape(-1, width).max(axis=1)
        # k blocks have one at least as large as the k-th best of the blocks: no smaller one is among the k largest
        candidates = np.flatnonzero(values >= np.partition(best, -k)[-k])
        left = values[candidates]
    threshold = np.partition(left, -k)[-k]
    above = np.flatnonzero(left > threshold)
    ties = np.flatnonzero(left == threshold)[: k - len(above)]
    kept = np.sort(np.concatenate((above, ties)))
    return kept if candidates is None else candidates[kept]


def nucleus(weights: _Floats, p: float) -> _Places:
    """Places of the fewest largest weights that have the share p of all, ascending, ties by the smaller place.

    Args:
        weights: [n], 0 or above, the largest is 1.
        p: above 0, below 1.
    """
    share = p * float(weights.sum(dtype=np.float64))
    if len(weights) <= _FEW:
        return np.sort(_first_to_reach(np.arange(len(weights)), weights, share))
    head = largest(weights, len(weights) // _BLOCK // 2)
    if weights[head].sum(dtype=np.float64) >= share:
        return np.sort(_first_to_reach(head, weights, share))
    # a flat distribution
    bins, sums = _histogram(weights)
    edge = min(int(np.searchsorted(sums, share)), _BINS - 1)
    before = float(sums[edge - 1]) if edge else 0.0
    kept = bins < edge
    kept[_first_to_reach(np.flatnonzero(bins == edge), weights, share - before)] = True
    return np.flatnonzero(kept)


def _histogram(weights: _Floats) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """(each weight's bin, running sum of the bins' weights); all of a bin are larger than all of the next one.

    Quantised logarithms are monotonic. A bin is 0.01 wide; what is 40 below the best has no weight and shares the last.
    """
    bins = np.empty(len(weights), np.int16)
    sums = np.zeros(_BINS)
    for start in range(0, len(weights), _PART):
        part = weights[start : start + _PART]
        with np.errstate(divide="ignore"):
            depth = np.log(part)
        depth *= part.dtype.type(-_BINS / 41)
        np.minimum(depth, part.dtype.type(_BINS - 1), out=depth)
        places = bins[start : start + _PART]
        places[:] = depth
        sums += np.bincount(places, weights=part, minlength=_BINS)
    return bins, sums.cumsum()


def _first_to_reach(places: _Places, weights: _Floats, share: float) -> _Places:
    here = weights[places]
    order = np.argsort(-here, kind="stable")
    # the one that crosses the share stays in
    count = int(np.searchsorted(here[order].cumsum(dtype=np.float64), share)) + 1
    return places[order[:count]]
