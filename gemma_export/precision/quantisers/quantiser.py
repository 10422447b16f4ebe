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

# float32 rows [rows, columns], finite, of one matrix -> their codes; called from several threads, on any split of the
# rows, and the result of a row must depend on that row (and what was prepared) alone
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
