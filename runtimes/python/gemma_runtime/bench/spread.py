"""Several rounds of one figure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

__all__ = ["Spread", "spread_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, lowest and highest of the rounds, and the rounds in the order they were measured."""

    median: float
    minimum: float
    maximum: float
    rounds: tuple[float, ...]


def spread_of(rounds: Sequence[float]) -> Spread:
    """Of at least one round."""
    return Spread(median=statistics.median(rounds), minimum=min(rounds), maximum=max(rounds), rounds=tuple(rounds))
