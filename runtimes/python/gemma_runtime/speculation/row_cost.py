"""What one more row adds to a run of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_runtime.manifest import Manifest

__all__ = ["row_cost"]

# In steps of one row, of onnxruntime's CPU kernels on two cores, 2 to 8 rows of products 2048 x 16384: by the type of
# weights, and of activations where that decides. Anything else counts as the dearest that pays at all.
_COSTS = {("int4", "float32"): 0.17, ("int8", "float32"): 0.1, ("float32", "float32"): 0.1}
_OTHER = 0.2


def row_cost(manifest: Manifest) -> float:
    """The share of a step that each further row costs."""
    precision = manifest.precision
    return _COSTS.get((precision.weight_dtype, precision.activation_dtype), _OTHER)
