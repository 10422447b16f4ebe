"""Number formats, one file each. `PRECISIONS` is the registry: to add one, add a file and a line here.

The descriptions are torch-free (plans read them); `apply` changes a lowered graph.
"""

from __future__ import annotations

from gemma_export.precision.bf16 import BF16
from gemma_export.precision.fp16 import FP16
from gemma_export.precision.fp32 import FP32
from gemma_export.precision.precision import Precision

__all__ = ["PRECISIONS", "Precision"]

PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in (FP32, FP16, BF16)}
