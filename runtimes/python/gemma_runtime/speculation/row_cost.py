"""What one more row adds to a run of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_runtime.manifest import Manifest

__all__ = ["row_cost"]

# In steps of one row, by the types of weights and activations, on two cores: a 2B in 4 bits takes 1.15, 1.66 and 2.76
# times as long for 2, 4 and 8 rows, with 8-bit activations 1.05, 1.15 and 1.38 times; the built-in model in float32
# 1.3, 1.5 and 2.4 times. Anything else counts as the dearest of these.
_COSTS = {("int4", "float32"): 0.22, ("int8", "float32"): 0.1, ("float32", "float32"): 0.17}
_OTHER = 0.22


def row_cost(manifest: Manifest) -> float:
    """The share of a step that each further row costs."""
    precision = manifest.precision
    return _COSTS.get((precision.weight_dtype, precision.activation_dtype), _OTHER)
