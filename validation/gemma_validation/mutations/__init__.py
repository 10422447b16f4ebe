"""Known bugs, put into sound folders on purpose: what validation is tested with.

defect              what a defect is, and the kinds of folders they go into
mutant              a folder's altered copy
layer_defects       one layer computes something else
row_defects         positions, padding, masks, cache
weight_defects      stored weights
block_defects       weights in blocks of 4 bits
tokenizer_defects   the tokenizer's files
windowed_defects    what Gemma 2 and Gemma 3 have and Gemma 1 has not
vaultgemma_defects  what VaultGemma has in another place
checkpoints         checkpoints that two of them need

A family with parts of its own brings its own module of defects and adds it below.
"""

from gemma_validation.mutations.block_defects import BLOCK_DEFECTS
from gemma_validation.mutations.checkpoints import write_grown, write_odd_width
from gemma_validation.mutations.defect import BASES, Base, Defect, Group
from gemma_validation.mutations.layer_defects import LAYER_DEFECTS
from gemma_validation.mutations.row_defects import ROW_DEFECTS
from gemma_validation.mutations.tokenizer_defects import TOKENIZER_DEFECTS
from gemma_validation.mutations.vaultgemma_defects import VAULTGEMMA_DEFECTS
from gemma_validation.mutations.weight_defects import WEIGHT_DEFECTS
from gemma_validation.mutations.windowed_defects import WINDOWED_DEFECTS

__all__ = ["BASES", "DEFECTS", "Base", "Defect", "Group", "write_grown", "write_odd_width"]

DEFECTS: tuple[Defect, ...] = (
    *LAYER_DEFECTS,
    *ROW_DEFECTS,
    *WEIGHT_DEFECTS,
    *BLOCK_DEFECTS,
    *TOKENIZER_DEFECTS,
    *WINDOWED_DEFECTS,
    *VAULTGEMMA_DEFECTS,
)
