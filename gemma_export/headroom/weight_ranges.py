"""Ranges of weights, counted while they stream into a layerwise run."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

import torch

from gemma_export.headroom.report import WeightRange
from gemma_export.weights import Weight

__all__ = ["WeightRanges", "without_layer"]

_LAYER = re.compile(r"(^|\.)layers\.\d+\.")
# biased exponents of float32: 2^-14, the smallest normal float16 number, and 2^-25, which still rounds to zero
_NORMAL, _ZERO = 127 - 14, 127 - 25


def without_layer(name: str) -> str:
    """ "model.layers.3.mlp.down_proj.weight" -> "mlp.down_proj.weight"."""
    match = _LAYER.search(name)
    return name[match.end() :] if match else name


class WeightRanges:
    """Looks at every weight of a run once, except those that are stored as integers.

    Args:
        weights: name -> lazy float32 weight.
        is_gain: whether a name is a norm's w, which is stored as the gain 1 + w.
        is_float: whether a name is stored as float16.
    """

    def __init__(
        self, weights: Callable[[str], Weight], is_gain: Callable[[str], bool], is_float: Callable[[str], bool]
    ) -> None:
        self._weights, self._is_gain, self._is_float = weights, is_gain, is_float
        self._seen: set[str] = set()
        # tensor without its layer -> values by the biased exponent of their float32, and the largest |value|
        self._counts: dict[str, torch.Tensor] = {}
        self._largest: dict[str, float] = {}

    def weight(self, name: str) -> Weight:
        """The weight, counted as it streams; a tied table counts once."""
        weight = self._weights(name)
        if not self._is_float(name):
            return weight
        return _Watched(weight, lambda chunk: self._count(name, chunk), lambda: self._seen.add(name))

    def ranges(self, scaled: Collection[str], shift: int) -> dict[str, WeightRange]:
        """Ranges by tensor without its layer, those in `scaled` times 2^-shift."""
        found = {}
        for name, counts in self._counts.items():
            by = shift if name in scaled else 0
            total = int(counts.sum())
            # exponent 0: zeros, and numbers so small that float16 has never had them
            found[name] = WeightRange(
                largest=self._largest[name] * 2.0**-by,
                subnormal=int(counts[1 : _NORMAL + by].sum()) / total,
                zero=int(counts[1 : _ZERO + by].sum()) / total,
            )
        return dict(sorted(found.items()))

    def _count(self, name: str, chunk: torch.Tensor) -> None:
        if name in self._seen:
            return
        values = (chunk + 1.0 if self._is_gain(name) else chunk).reshape(-1)
        exponents = (values.view(torch.int32) >> 23) & 0xFF
        key = without_layer(name)
        counts = torch.bincount(exponents, minlength=256)
        self._counts[key] = self._counts[key] + counts if key in self._counts else counts
        low, high = torch.aminmax(values)
        self._largest[key] = max(self._largest.get(key, 0.0), -float(low), float(high))


class _Watched(Weight):
    """A weight whose chunks are shown to a function on their way."""

    def __init__(self, weight: Weight, look: Callable[[torch.Tensor], None], done: Callable[[], None]) -> None:
        assert weight.dtype == torch.float32
        self._weight, self._look, self._done = weight, look, done
        self.shape, self.dtype = weight.shape, weight.dtype

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        for chunk in self._weight.chunks():
            self._look(chunk)
            yield chunk
        self._done()
