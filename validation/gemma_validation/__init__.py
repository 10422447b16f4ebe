"""Numerical drift between a reference and what was exported."""

from __future__ import annotations

from gemma_validation.drift import Drift, measure_drift

__all__ = ["Drift", "measure_drift"]
