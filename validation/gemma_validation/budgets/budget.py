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
    # upper end of its 95 % interval: what the bound is held against; None for points, see METRICS
    upper: Callable[[Drift], float] | None = None
    # bounds outside cannot be meant: a share above 1 never fails, a ratio below 1 never passes
    least: float = 0.0
    most: float | None = None
    # a quantile of fewer positions is their largest value
    positions: int = 1


# What a budget file may name. kl_max and max_difference are largest values, of which no draw of a bootstrap can show a
# larger one, and decisive_flip_count is of what must not happen once: these three are held as they were measured.
METRICS: Mapping[str, Metric] = {
    "kl_mean": Metric(measured=lambda drift: drift.kl.mean, upper=lambda drift: drift.kl_mean_upper),
    "kl_median": Metric(measured=lambda drift: drift.kl.median, upper=lambda drift: drift.kl_median_upper),
    "kl_p95": Metric(measured=lambda drift: drift.kl.p95, upper=lambda drift: drift.kl_p95_upper, positions=200),
    "kl_p99": Metric(measured=lambda drift: drift.kl.p99, upper=lambda drift: drift.kl_p99_upper, positions=1000),
    "kl_p999": Metric(measured=lambda drift: drift.kl.p999, upper=lambda drift: drift.kl_p999_upper, positions=10000),
    "kl_max": Metric(measured=lambda drift: drift.kl.max),
    "top1_disagreement": Metric(
        measured=lambda drift: 1 - drift.top1_agreement, upper=lambda drift: drift.top1_disagreement_upper, most=1.0
    ),
    # as a share of all positions
    "decisive_flips": Metric(
        measured=lambda drift: drift.decisive_flips / drift.positions,
        upper=lambda drift: drift.decisive_flips_upper,
        most=1.0,
    ),
    # as a number: 0 is a bound that no interval could meet
    "decisive_flip_count": Metric(measured=lambda drift: float(drift.decisive_flips)),
    "top10_misses": Metric(
        measured=lambda drift: 1 - drift.top10_overlap, upper=lambda drift: drift.top10_misses_upper, most=1.0
    ),
    "perplexity_ratio": Metric(
        measured=lambda drift: drift.perplexity_ratio, upper=lambda drift: drift.perplexity_ratio_upper, least=1.0
    ),
    "probability_shift_rms": Metric(
        measured=lambda drift: drift.probability_shift_rms,
        upper=lambda drift: drift.probability_shift_rms_upper,
        most=1.0,
    ),
    "normalised_mse": Metric(
        measured=lambda drift: drift.normalised_mse, upper=lambda drift: drift.normalised_mse_upper
    ),
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
