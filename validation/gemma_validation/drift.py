"""Drift of arrays that are in memory as a whole: for benchmarks and tests, by the arithmetic of `metrics`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_validation.metrics.rows import PairComparer
from gemma_validation.metrics.summary import deviation

__all__ = ["Drift", "measure_drift"]

Logits = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """How far test logits are from reference logits over all positions."""

    # KL(reference || test) in nats: mean, 99th percentile and maximum over positions
    mean_kl: float
    p99_kl: float
    max_kl: float
    # share of positions whose most likely token is the same
    top1_agreement: float
    # largest |difference| of a logit, in standard deviations of the reference's logits
    max_difference: float
    positions: int


def measure_drift(reference: Logits, test: Logits) -> Drift:
    """Compares logits of the same positions, in float64.

    Args:
        reference, test: [..., vocab_size], finite.

    Raises:
        ValueError: shapes differ, or a value is not finite.
    """
    if reference.shape != test.shape:
        raise ValueError(f"expected logits of shape {reference.shape}, found {test.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(test).all()):
        raise ValueError("logits must be finite")
    first, second = (side.reshape(-1, side.shape[-1]) for side in (reference, test))
    count = len(first)
    nothing = np.full(count, -1, np.int64)
    found = PairComparer(first.shape[1]).compare(first, second, positions=np.arange(count), next_tokens=nothing)
    return Drift(
        mean_kl=float(found["kl"].mean()),
        p99_kl=float(np.quantile(found["kl"], 0.99)),
        max_kl=float(found["kl"].max()),
        top1_agreement=float(found["same_top1"].mean()),
        max_difference=float(found["largest"].max() / deviation(found)),
        positions=count,
    )
