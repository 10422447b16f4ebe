"""Number formats, one file each. `PRECISIONS` is the registry: to add one, add a file and a line here.

`SCHEMES` are the quantisations of weights that each of them can be combined with (`quantised`), `CACHE_FORMATS` the
integer types of keys and values.

The descriptions are torch-free (plans read them); `apply` changes a lowered graph.
"""

from __future__ import annotations

from gemma_export.precision.bf16 import BF16
from gemma_export.precision.cache_format import CACHE_FORMATS, CacheFormat
from gemma_export.precision.fp16 import FP16
from gemma_export.precision.fp32 import FP32
from gemma_export.precision.options import WeightOptions, check_packing, check_rules, undivided_blocks, weight_scheme
from gemma_export.precision.precision import Precision, quantised
from gemma_export.precision.q4_0 import grid_warning
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.scheme import WeightScheme
from gemma_export.precision.schemes import SCHEMES
from gemma_export.precision.stored_scheme import stored_scheme, with_stored_tensors

__all__ = [
    "CACHE_FORMATS",
    "PRECISIONS",
    "QUANTISERS",
    "SCHEMES",
    "CacheFormat",
    "Precision",
    "WeightOptions",
    "WeightScheme",
    "check_packing",
    "check_rules",
    "grid_warning",
    "quantised",
    "stored_scheme",
    "undivided_blocks",
    "weight_scheme",
    "with_stored_tensors",
]

PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in (FP32, FP16, BF16)}
