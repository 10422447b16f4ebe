"""Values that are no number stop a comparison before anything is computed from them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["NotFinite", "Side", "require_finite"]

Side = Literal["reference", "test"]
# a row's flags beside its logits: a quarter of their size, so few rows at a time
_BLOCK_ELEMENTS = 1 << 22


class NotFinite(Exception):  # noqa: N818 - a finding about the model, which decides the verdict, not a failure of ours
    """A logit is NaN or infinite.

    Args:
        side: whose logits.
        document: name.
        position: of the row in the document.
    """

    def __init__(self, *, side: Side, document: str, position: int) -> None:
        super().__init__(f"the {side}'s logits at position {position} of {document} are not finite")
        self.side: Side = side
        self.document = document
        self.position = position


def require_finite(
    rows: npt.NDArray[np.floating[Any]], positions: npt.NDArray[np.int64], *, side: Side, document: str
) -> None:
    """Looks at every logit.

    Args:
        rows: [n, vocab_size].
        positions: [n], where each row is in the document.

    Raises:
        NotFinite: with the first such row.
    """
    step = max(1, _BLOCK_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        finite = np.isfinite(rows[start : start + step]).all(axis=1)
        if not finite.all():
            raise NotFinite(side=side, document=document, position=int(positions[start + int(finite.argmin())]))
