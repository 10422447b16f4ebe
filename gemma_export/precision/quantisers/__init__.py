"""How codes, scales and zero points are chosen, one file each. `QUANTISERS` is the registry.

Torch-free until a quantiser is prepared: plans and `--help` read the names.
"""

from __future__ import annotations

from gemma_export.precision.quantisers.gptq import GPTQ
from gemma_export.precision.quantisers.quantiser import Quantiser, RowQuantiser
from gemma_export.precision.quantisers.rtn import RTN
from gemma_export.precision.quantisers.search import SEARCH

__all__ = ["QUANTISERS", "Quantiser", "RowQuantiser"]

QUANTISERS: dict[str, Quantiser] = {quantiser.name: quantiser for quantiser in (RTN, SEARCH, GPTQ)}
