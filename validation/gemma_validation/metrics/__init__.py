"""Drift of next-token distributions, in float64 over the whole vocabulary.

accumulate  DriftMeter: adds up documents
rows        the arithmetic of a position
top         the most likely tokens
collected   what is kept; summary makes figures of it, bootstrap their intervals
finite      what stops a comparison
greedy      where two greedy texts part
"""

from __future__ import annotations

from gemma_validation.metrics.accumulate import DriftMeter
from gemma_validation.metrics.finite import NotFinite
from gemma_validation.metrics.greedy import first_divergence

__all__ = ["TAU", "DriftMeter", "NotFinite", "first_divergence"]

TAU = 0.2
