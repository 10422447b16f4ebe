"""What a quantiser file provides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    from gemma_export.precision.block_codes import BlockCodes
    from gemma_export.precision.block_format import BlockFormat

__all__ = ["Quantiser", "RowQuantiser"]

# rows [rows, columns] of one matrix, float32 or bfloat16 -> their codes; what is not finite gets a scale that is not.
# Called from several threads, on any split of the rows: a row's result must depend on it (and what was prepared) alone.
RowQuantiser: TypeAlias = "Callable[[torch.Tensor], BlockCodes]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantiser:
    """One way to choose codes, scales and zero points."""

    # the word of --quantizer and of the manifest
    name: str
    # (stored tensor's name, layout, element type of the scales) -> what quantises its rows, while they are written
    prepare: Callable[[str, BlockFormat, torch.dtype], RowQuantiser]
    # projections are quantised before, by what calibration text makes of their inputs; `prepare` is for the rest
    calibrated: bool = False
