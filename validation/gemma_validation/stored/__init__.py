"""Stored weights against the checkpoint's: integers block by block, norm gains to the last bit of their type.

comparison    both, as checks of the folder and for the localiser
blocks        matrices of integers: what no rounding explains
gains         norms
matrices      the integers of a graph as numbers; initializers reads them
sources       what each of these should hold: the checkpoint's weights with all that an export folds into them
"""

from __future__ import annotations

from gemma_validation.stored.comparison import StoredWeights, compare_stored

__all__ = ["StoredWeights", "compare_stored"]
