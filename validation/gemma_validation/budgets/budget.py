"""What drift a number format may have, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from gemma_validation.findings import Drift

__all__ = ["METRICS", "Bound", "Budget", "Metric"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure that can be bounded from above."""

    measured: Callable[[Drift], float]
    # upper end of its 95 % interval, where there is one
    upper: Callable[[Drift], float] | None = None
    # bounds outside cannot be meant: a share above 1 never fails, a ratio below 1 never passes
    least: float = 0.0
    most: float | None = None
    # a quantile of fewer positions is their largest value
    positions: int = 1


# what a budget file may name
METRICS: Mapping[str, Metric] = {
    "kl_mean": Metric(measured=lambda drift: drift.kl.mean, upper=lambda drift: drift.kl_mean_upper),
    "kl_median": Metric(measured=lambda drift: drift.kl.median),
    "kl_p95": Metric(measured=lambda drift: drift.kl.p95, positions=200),
    "kl_p99": Metric(measured=lambda drift: drift.kl.p99, positions=1000),
    "kl_p999": Metric(measured=lambda drift: drift.kl.p999, positions=10000),
    "kl_max": Metric(measured=lambda drift: drift.kl.max),
    "top1_disagreement": Metric(
        measured=lambda drift: 1 - drift.top1_agreement, upper=lambda drift: drift.top1_disagreement_upper, most=1.0
    ),
    # as a share of all positions
    "decisive_flips": Metric(measured=lambda drift: drift.decisive_flips / drift.positions, most=1.0),
    "top10_misses": Metric(measured=lambda drift: 1 - drift.top10_overlap, most=1.0),
    "perplexity_ratio": Metric(measured=lambda drift: drift.perplexity_ratio, least=1.0),
    "probability_shift_rms": Metric(measured=lambda drift: drift.probability_shift_rms, most=1.0),
    "normalised_mse": Metric(measured=lambda drift: drift.normalised_mse),
    "max_difference": Metric(measured=lambda drift: drift.max_difference),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """The most that passes."""

    # a key of METRICS
    metric: str
    # "all", or a slice of the text
    slice: str
    bound: float
    # why it is what it is: what was measured
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds of one number format."""

    # what it is called in messages: the file
    name: str
    # fewer prove nothing: the gate is inconclusive
    min_positions: int
    bounds: tuple[Bound, ...]
