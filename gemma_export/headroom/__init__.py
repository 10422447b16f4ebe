"""How far a checkpoint's activations and weights stay from float16's limits, measured in float32 on probe prompts."""

from __future__ import annotations

from gemma_export.headroom.constants import largest_constant
from gemma_export.headroom.measure import measure_headroom
from gemma_export.headroom.probes import Probe, probes_for
from gemma_export.headroom.report import Headroom, Peak, WeightRange

__all__ = ["Headroom", "Peak", "Probe", "WeightRange", "largest_constant", "measure_headroom", "probes_for"]
