"""Drift metrics over next-token distributions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

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
    rows = reference.reshape(-1, reference.shape[-1]), test.reshape(-1, test.shape[-1])
    divergences = np.concatenate(
        [_kl(first, second) for first, second in zip(_blocks(rows[0]), _blocks(rows[1]), strict=True)]
    )
    return Drift(
        mean_kl=float(divergences.mean()),
        p99_kl=float(np.quantile(divergences, 0.99)),
        max_kl=float(divergences.max()),
        top1_agreement=float((rows[0].argmax(-1) == rows[1].argmax(-1)).mean()),
        max_difference=float(np.abs(reference.astype(np.float64) - test).max() / reference.astype(np.float64).std()),
        positions=len(divergences),
    )


def _blocks(rows: Logits) -> list[Logits]:
    # 256 rows of a 256,000-token vocabulary in float64 are half a gigabyte
    return [rows[start : start + 256] for start in range(0, len(rows), 256)]


def _kl(reference: Logits, test: Logits) -> npt.NDArray[np.float64]:
    first, second = _log_softmax(reference), _log_softmax(test)
    # rounding can leave the sum a hair below zero
    divergences: npt.NDArray[np.float64] = (np.exp(first) * (first - second)).sum(-1)
    return divergences.clip(min=0.0)


def _log_softmax(rows: Logits) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    shifted: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return shifted
