"""A drift whose every number is another, for tests of what reads it."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemma_validation.findings import Distribution, Drift


def drift(**changes: Any) -> Drift:
    figures = Drift(
        slice="all",
        documents=30,
        positions=20_000,
        kl=Distribution(mean=0.1, median=0.05, p95=0.2, p99=0.3, p999=0.4, max=0.5),
        kl_mean_upper=0.11,
        kl_median_upper=0.055,
        kl_p95_upper=0.22,
        kl_p99_upper=0.33,
        kl_p999_upper=0.44,
        top1_disagreement_upper=0.065,
        decisive_flips_upper=0.0015,
        top10_misses_upper=0.075,
        perplexity_ratio_upper=1.015,
        probability_shift_rms_upper=0.0125,
        normalised_mse_upper=0.0135,
        probability_shift_mean=0.011,
        probability_shift_rms=0.012,
        nll_reference=2.0,
        nll_test=2.01,
        perplexity_ratio=1.01,
        top1_agreement=0.94,
        decisive_flips=20,
        near_ties=1180,
        top10_overlap=0.93,
        normalised_mse=0.013,
        max_difference=0.7,
    )
    return dataclasses.replace(figures, **changes)
