"""Budgets: how much drift each number format may have, and the verdict.

budget   metrics and bounds
reading  the TOML files, those of the package and a user's
judge    gates, verdict and reasons

The package's bounds are calibrated on the built-in model, each with what was measured in its reason.
"""

from __future__ import annotations

from gemma_validation.budgets.budget import METRICS, Bound, Budget
from gemma_validation.budgets.judge import judge
from gemma_validation.budgets.reading import default_budget, read_budget

__all__ = ["METRICS", "Bound", "Budget", "default_budget", "judge", "read_budget"]
