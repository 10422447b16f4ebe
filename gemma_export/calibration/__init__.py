"""What a model's activations look like on calibration text, and what quantisation makes of that.

    plan.py, text.py, batches.py   which text, and its tokens
    channels.py                    scales of channels that make rounding lose less
    placement.py                   where the graph stores each matrix
    quantise.py                    its codes, layer by layer
    runs.py                        a layerwise run on the text
    cache_scales.py                ranges of keys and values between steps

Importing the package imports no torch: plans check a calibration file before anything runs.
"""

from __future__ import annotations

from gemma_export.calibration.plan import needs_calibration, plan_calibration
from gemma_export.calibration.text import Sequences

__all__ = ["Sequences", "needs_calibration", "plan_calibration"]
