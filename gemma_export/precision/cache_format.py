"""How keys and values are stored between steps, where that is another type than the activations'. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gemma_export.config import CacheState

__all__ = ["CACHE_FORMATS", "CacheFormat"]

# attention kernels take scales in float32 whatever the activations are
_SCALE_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """Integers with one scale for every channel of every key-value head, of the keys and of the values."""

    # the command line's word
    name: str
    # ONNX's name of the element type, lower case
    dtype: str
    bits: int
    # what shares a scale: a channel of a head, over all tokens
    granularity: str
    # What scales cover, in units of the largest that calibration text shows: other text goes further, and what is
    # beyond the range is cut off.
    margin: float

    @property
    def largest(self) -> int:
        """The largest code of both signs."""
        return (1 << (self.bits - 1)) - 1

    def scales(self, states: Iterable[CacheState]) -> tuple[tuple[str, int], ...]:
        """Name and size in bytes of every scale tensor, shaped [1, num_heads, 1, head_dim]."""
        return tuple(
            (f"{name}_scale", _SCALE_BYTES * state.num_heads * state.head_dim)
            for state in states
            for name in state.past_names
        )

    def options(self, calibration: Mapping[str, Any]) -> dict[str, Any]:
        """In the manifest's words."""
        return {
            "dtype": self.dtype,
            "granularity": self.granularity,
            "margin": self.margin,
            "calibration": dict(calibration),
        }


CACHE_FORMATS = {"int8": CacheFormat(name="int8", dtype="int8", bits=8, granularity="channel", margin=1.1)}
