"""Where each tensor lies in the data file: the one arithmetic of the writer and of `--dry-run`.

Torch-free and onnx-free. The data file has three regions, largest alignment first; inside a region tensors keep the
order they are given in and each ends at a multiple of the region's alignment. So the file's size depends on the
tensors' sizes alone, not on their order: a plan made from a config equals what the traced graph later writes.
Tensors of one group stay together, in the region of the largest, each at its own alignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["INLINE_BYTES", "DataPlan", "Range", "alignment", "plan_data", "stays_inline"]

# Scalars and shape constants: kernels and shape inference want them inside the graph.
INLINE_BYTES = 1024

# (smallest tensor, alignment), both in bytes. Offsets should be multiples of what maps a file into memory: pages of
# 4 KiB, on Windows the allocation granularity of 64 KiB (https://github.com/onnx/onnx/blob/main/docs/ExternalData.md).
# A tensor smaller than 16 alignments would pay more than 6 % for it, so the next smaller step serves it;
# 64 bytes is a cache line and the width of an AVX-512 load.
_ALIGNMENTS = ((1 << 20, 1 << 16), (1 << 16, 1 << 12), (0, 64))


@dataclass(frozen=True, kw_only=True)
class Range:
    """One tensor's bytes in the data file."""

    # position among all tensors given to plan_data
    index: int
    name: str
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """The data file: its ranges by ascending offset, and its exact size in bytes, padding included."""

    ranges: tuple[Range, ...]
    size: int


def stays_inline(nbytes: int) -> bool:
    """Whether a tensor of this size is kept inside the .onnx file."""
    return nbytes < INLINE_BYTES


def alignment(nbytes: int) -> int:
    """What the offset of a tensor of this size is a multiple of, in bytes."""
    return next(step for smallest, step in _ALIGNMENTS if nbytes >= smallest)


def plan_data(groups: Iterable[Sequence[tuple[str, int]]]) -> DataPlan:
    """Lays tensors out in one data file.

    Args:
        groups: what must lie side by side (the parts of one quantised matrix, which are made in one go; most groups
            are one tensor): name and size in bytes of each distinct tensor. What stays inline is left out of the plan.
    """
    index = 0
    stored = []
    for group in groups:
        members = [(index + place, name, nbytes) for place, (name, nbytes) in enumerate(group)]
        index += len(members)
        # the widest alignment first, so that a group's size does not depend on its order either
        external = sorted((entry for entry in members if not stays_inline(entry[2])), key=lambda entry: -entry[2])
        if external:
            stored.append(external)
    stored.sort(key=lambda group: -alignment(group[0][2]))  # stable: the given order inside a region
    ranges = []
    offset = 0
    for external in stored:
        for member, name, nbytes in external:
            offset = _aligned(offset, alignment(nbytes))
            ranges.append(Range(index=member, name=name, offset=offset, nbytes=nbytes))
            offset += nbytes
        offset = _aligned(offset, alignment(external[0][2]))
    return DataPlan(ranges=tuple(ranges), size=offset)


def _aligned(offset: int, step: int) -> int:
    return -(-offset // step) * step
