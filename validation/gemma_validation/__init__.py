"""Numerical drift between a reference and what was exported."""

from __future__ import annotations

from gemma_validation.drift import Drift, measure_drift
from gemma_validation.widen import widen_bfloat16

__all__ = ["Drift", "measure_drift", "widen_bfloat16"]
