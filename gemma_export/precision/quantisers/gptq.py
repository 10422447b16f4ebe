"""Second order: rounding errors are made up for by later columns, by the inputs of calibration text.

The matrices that calibration sees are quantised there (`gemma_export.calibration`, `precision.gptq`). What nothing
multiplies with, an embedding table without a tied head, has no second moments: its search is the same rule with all
columns alike.
"""

from __future__ import annotations

from gemma_export.precision.quantisers.quantiser import Quantiser
from gemma_export.precision.quantisers.search import SEARCH

__all__ = ["GPTQ"]

GPTQ = Quantiser(name="gptq", prepare=SEARCH.prepare, calibrated=True)
