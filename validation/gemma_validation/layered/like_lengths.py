"""Texts of like length side by side: short ones alone are matrix products of few rows, at a third of the speed."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["groups_of_like_length"]

# padding of a group, as a share of its tokens
_WASTE = 0.25
# tokens of a group with its padding: products are at their full speed, and activations still small
_ROWS = 512


def groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the texts of each group, longest first; every text is in one.

    Args:
        lengths: tokens of each text.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups:
            longest = lengths[groups[-1][0]]
            real = sum(lengths[other] for other in groups[-1]) + lengths[index]
            rows = longest * (len(groups[-1]) + 1)
            if rows <= _ROWS and rows - real <= _WASTE * real:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups
