"""How many scales of blocks float16 holds with fewer bits than its other numbers."""

from __future__ import annotations

import dataclasses

import torch

__all__ = ["ScaleCounts", "count_scales"]

# The smallest normal float16 number, and sixteen of the smallest subnormal ones. Scales are rounded up there, so that
# codes still reach the block's largest weight: their step grows by less than a sixteenth above the second limit.
_NORMAL, _COARSE = 2.0**-14, 2.0**-20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleCounts:
    """Of one matrix, or of several."""

    total: int = 0
    # below 2^-14: fewer than eleven significant bits
    subnormal: int = 0
    # below 2^-20: at most four significant bits, and a step that is up to twice as wide as it should be
    coarse: int = 0

    def __add__(self, other: ScaleCounts) -> ScaleCounts:
        return ScaleCounts(
            total=self.total + other.total,
            subnormal=self.subnormal + other.subnormal,
            coarse=self.coarse + other.coarse,
        )


def count_scales(scales: torch.Tensor) -> ScaleCounts:
    """Counts scales as they are stored; other types than float16 have no such numbers.

    Zeros are left out: `stored_scales` rounds away from zero, so that only blocks of zeros have them.
    """
    if scales.dtype != torch.float16:
        return ScaleCounts(total=scales.numel())
    # float32 has all of float16's numbers, and faster comparisons
    sizes = scales.float().abs()
    some = sizes > 0
    return ScaleCounts(
        total=scales.numel(),
        subnormal=int((some & (sizes < _NORMAL)).sum()),
        coarse=int((some & (sizes < _COARSE)).sum()),
    )
