"""Golden packs: a reference's log-probabilities at chosen positions, so that CI needs neither it nor torch.

identity   which model
header     JSON of the file
pack       the file
make       from a reference
reference  a pack that was read
measure    an export's drift from it
"""

from __future__ import annotations

from gemma_validation.golden.identity import GoldenIdentity, identity_of
from gemma_validation.golden.make import make_golden
from gemma_validation.golden.measure import measure_golden
from gemma_validation.golden.reference import GoldenReference

__all__ = ["GoldenIdentity", "GoldenReference", "identity_of", "make_golden", "measure_golden"]
