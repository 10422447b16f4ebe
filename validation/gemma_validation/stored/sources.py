"""What each stored matrix should hold: the checkpoint's weights with all that an export folds into them.

query, key and value    below one another in one matrix
a rescaled residual     projections that write to the stream times 2^-k, where no norm stands behind them
calibrated channels     columns times a factor each, and rows of what makes those channels divided by it
activation order        columns in the order of their groups; of down projections, rows of gate and up with them
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_validation.stored.matrices import StoredMatrix

if TYPE_CHECKING:
    from gemma_export.weights import Weight

__all__ = ["SourceMatrix", "Sources"]

# projections whose output is added to the residual stream
_WRITERS = ("o_proj.weight", "down_proj.weight")
# weights at a time: with fewer, threads wait for Python's lock (a 2B on one thread 38 s, on two 24 s with 2^18, 18 s)
_PIECE = 1 << 20
Vector = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceMatrix:
    """One matrix of the checkpoint, as an export should store it before rounding."""

    # the checkpoint's tensors from top to bottom, and their rows
    parts: tuple[tuple[str, int], ...]
    columns: int
    # (first row, float32 [n, columns]) in order
    pieces: Callable[[], Iterator[tuple[int, npt.NDArray[np.float32]]]]

    def row_name(self, row: int) -> tuple[str, int]:
        """The checkpoint's tensor that a row is of, and its index there."""
        for name, rows in self.parts:
            if row < rows:
                return name, row
            row -= rows
        raise IndexError(row)


class Sources:
    """The checkpoint's side of a folder's stored matrices.

    Args:
        weights: name -> lazy weight of the checkpoint.
        stored: the folder's matrices by name.
        shift: k of a residual stream that is stored times 2^-k by the projections that write to it; 0 where norms do.
        calibrated: channels were scaled: their factors are fitted, because the folder does not tell them.
        kv_heads, head_dim: of the attention.
    """

    def __init__(
        self,
        weights: Callable[[str], Weight],
        stored: Mapping[str, StoredMatrix],
        *,
        shift: int,
        calibrated: bool,
        kv_heads: int,
        head_dim: int,
    ) -> None:
        self._weights, self._stored = weights, stored
        self._factor, self._calibrated = 2.0**-shift, calibrated
        self._kv_heads, self._head_dim = kv_heads, head_dim
        self._columns = functools.cache(self._fitted_columns)

    def matrix(self, name: str) -> SourceMatrix:
        """What the stored matrix of that name should hold."""
        plain = self._plain(name)
        rows, columns = self._row_factors(name), self._columns(name)
        if rows is None and columns is None:
            return plain

        def pieces() -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
            for first, piece in plain.pieces():
                scaled = piece if columns is None else piece * columns
                yield first, scaled if rows is None else scaled * rows[first : first + len(piece), None]

        return dataclasses.replace(plain, pieces=pieces)

    def _plain(self, name: str) -> SourceMatrix:
        """Without factors that have to be fitted."""
        from gemma_export.precision.scheme import unpacked_names

        names = unpacked_names(name)
        weights = [self._weights(part) for part in names]
        factor = np.float32(self._factor if name.endswith(_WRITERS) else 1.0)
        columns, rows = self._column_order(name), self._row_order(name)

        def pieces() -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
            first = 0
            for weight in weights:
                for piece in _in_order(weight, rows):
                    ordered = piece if columns is None else piece[:, columns]
                    yield first, ordered * factor if factor != 1 else ordered
                    first += len(piece)

        return SourceMatrix(
            parts=tuple((part, weight.shape[0]) for part, weight in zip(names, weights, strict=True)),
            columns=weights[0].shape[1],
            pieces=pieces,
        )

    def _column_order(self, name: str) -> npt.NDArray[np.int64] | None:
        """Columns as they are stored: as the graph gathers activations, or as a down projection was folded."""
        order = self._stored[name].order
        return order if order is not None or not name.endswith("down_proj.weight") else self._folded_order(name)

    def _row_order(self, name: str) -> npt.NDArray[np.int64] | None:
        if not name.endswith(("gate_proj.weight", "up_proj.weight")):
            return None
        head, _, _ = name.rpartition(".mlp.")
        down = f"{head}.mlp.down_proj.weight"
        return self._folded_order(down) if down in self._stored and self._stored[down].order is None else None

    def _folded_order(self, down: str) -> npt.NDArray[np.int64] | None:
        from gemma_export.stored_codes import StoredCodes
        from gemma_export.weights import Cast

        weight = self._weights(down)
        if isinstance(weight, Cast):
            # float32 of codes is still of codes
            weight = weight.weight
        order = weight.order() if isinstance(weight, StoredCodes) else None
        return None if order is None else order.astype(np.int64)

    def _row_factors(self, name: str) -> Vector | None:
        """Of what makes calibrated channels: up's rows for down's columns, value's for the attention output's."""
        if not self._calibrated:
            return None
        if name.endswith("up_proj.weight"):
            columns = self._fit_of(name.replace("up_proj", "down_proj"))
            return None if columns is None else np.reciprocal(columns)
        if name.endswith((".qkv_proj.weight", ".v_proj.weight")):
            part = name.rpartition(".")[0].rpartition(".")[0]
            columns = self._fit_of(f"{part}.o_proj.weight")
            if columns is None:
                return None
            # the query heads that share a value head share its factors
            by_head = columns.reshape(self._kv_heads, -1, self._head_dim)[:, 0]
            factors: Vector = np.ones(self._stored[name].rows, np.float32)
            factors[len(factors) - by_head.size :] = 1 / by_head.reshape(-1)
            return factors
        return None

    def _fit_of(self, name: str) -> Vector | None:
        return self._columns(name) if name in self._stored else None

    def _fitted_columns(self, name: str) -> Vector | None:
        """Each column's factor by least squares over all rows: one block that is wrong moves it by a row's share."""
        if not self._calibrated or not name.endswith("_proj.weight"):
            return None
        plain, read, rows = self._plain(name), self._stored[name].open(), self._row_factors(name)
        both = np.zeros(self._stored[name].columns)
        own = np.zeros_like(both)
        for first, piece in plain.pieces():
            wide = piece.astype(np.float64)
            if rows is not None:
                wide *= rows[first : first + len(piece), None]
            both += (wide * read(first, first + len(piece))).sum(0)
            own += np.square(wide).sum(0)
        fitted: Vector = np.divide(both, own, out=np.ones_like(both), where=(own > 0) & (both > 0)).astype(np.float32)
        return fitted


def _in_order(weight: Weight, rows: npt.NDArray[np.int64] | None) -> Iterator[npt.NDArray[np.float32]]:
    """A weight's rows some at a time, float32; in another order the whole matrix is in memory."""
    if rows is None:
        from gemma_export.precision.row_pieces import row_pieces

        for chunk in row_pieces(weight, _PIECE):
            yield chunk.float().numpy()
        return
    whole = weight.tensor().float().numpy()
    step = max(1, (1 << 18) // whole.shape[1])
    for start in range(0, len(rows), step):
        yield whole[rows[start : start + step]]
