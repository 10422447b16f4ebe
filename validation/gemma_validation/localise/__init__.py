"""Where drift comes from: error by layer and half, and stored blocks that are not the checkpoint's.

points    what artifact and reference both have
graphs    the artifact's graph with its points as outputs, and as inputs
session   running those over the folder's data files
streams   the reference's values
measure   errors
culprit   the half that stands out
blocks    stored integers against the checkpoint's weights: what is stored, what should be, and where they differ
gains     norm gains against the checkpoint's, which nothing rounds but their type
"""

from __future__ import annotations

from gemma_validation.localise.blocks import BadBlock, BlocksFound, blocks_check, compare_blocks, with_blocks
from gemma_validation.localise.gains import compare_gains, with_gains
from gemma_validation.localise.localise import localise, localise_against
from gemma_validation.localise.measure import NOT_FINITE

__all__ = [
    "NOT_FINITE",
    "BadBlock",
    "BlocksFound",
    "blocks_check",
    "compare_blocks",
    "compare_gains",
    "localise",
    "localise_against",
    "with_blocks",
    "with_gains",
]
