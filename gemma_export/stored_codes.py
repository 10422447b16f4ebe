"""Matrices that a checkpoint stores as integer codes: lazy weights that also show their codes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from gemma_export.checkpoint import QuantisedSource, code_rows, input_order, read_levels
from gemma_export.errors import CheckpointError
from gemma_export.tensors import TensorSource
from gemma_export.weights import Cast, Concat, Scale, Stored, Weight

__all__ = [
    "CodeRows",
    "StoredCodes",
    "StoredMatrix",
    "other_order",
    "stored_matrix",
    "stored_weight",
    "with_columns_in_order",
    "with_rows",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeRows:
    """Rows of a quantised matrix, in the checkpoint's order of input features."""

    # uint8 [rows, columns]
    codes: torch.Tensor
    # float32 [rows, groups]
    scales: torch.Tensor
    # uint8 [rows, groups]
    zero_points: torch.Tensor
    # int64 [columns]
    group_of: torch.Tensor

    def __len__(self) -> int:
        return len(self.codes)

    def dequantised(self) -> torch.Tensor:
        """float32 [rows, columns]: exact, since a code less its zero point and a float16 scale have 20 bits."""
        # index_select is five times faster than indexing
        zero_points, scales = (
            levels.index_select(1, self.group_of) for levels in (self.zero_points.float(), self.scales)
        )
        return self.codes.float().sub_(zero_points).mul_(scales)


class StoredCodes(Weight):
    """A quantised matrix of a checkpoint, multiplied out; float32.

    Args:
        source: the checkpoint's tensors.
        name: of the matrix.
        rows: the order in which its rows come, where that is not their own.
        columns_in_order: its columns come in the order of their groups.

    Memory: the packed matrix while it streams (25 MB for the largest of a 7B in 4 bits), and one piece.
    """

    dtype = torch.float32

    def __init__(
        self,
        source: QuantisedSource,
        name: str,
        *,
        rows: npt.NDArray[np.int32] | None = None,
        columns_in_order: bool = False,
    ) -> None:
        self.source, self.name = source, name
        self.stored = source.quantised[name]
        self.shape = self.stored.shape
        self.rows, self.columns_in_order = rows, columns_in_order

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        for rows in self.pieces():
            yield rows.dequantised()

    def order(self) -> npt.NDArray[np.int32] | None:
        """The input features in the order of their groups; None where groups are of neighbours."""
        return None if self.columns_in_order else input_order(self.source, self.name)

    def scales(self) -> torch.Tensor:
        """Float32 [rows, groups]."""
        scales = torch.from_numpy(read_levels(self.source, self.name).scales)
        return scales if self.rows is None else scales[torch.from_numpy(self.rows)]

    def pieces(self) -> Iterator[CodeRows]:
        """The matrix in order, some rows at a time.

        Raises:
            CheckpointError, NonFiniteError: a part cannot be read, or holds what cannot be.
        """
        levels = read_levels(self.source, self.name)
        columns = input_order(self.source, self.name) if self.columns_in_order else None
        group_of = torch.from_numpy(levels.group_of if columns is None else levels.group_of[columns])
        row = 0
        for codes in code_rows(self.source, self.name, self.rows):
            rows = slice(row, row + len(codes)) if self.rows is None else self.rows[row : row + len(codes)]
            yield CodeRows(
                codes=torch.from_numpy(codes if columns is None else np.take(codes, columns, axis=1)),
                scales=torch.from_numpy(levels.scales[rows]),
                zero_points=torch.from_numpy(levels.zero_points[rows]),
                group_of=group_of,
            )
            row += len(codes)

    def __str__(self) -> str:
        return self.name


def stored_weight(source: TensorSource, name: str) -> Weight:
    """A tensor of a checkpoint, whatever it is stored as."""
    if isinstance(source, QuantisedSource) and name in source.quantised:
        return StoredCodes(source, name)
    return Stored(source, name)


class StoredMatrix:
    """The codes of an expression whose parts all have them: matrices below one another, times powers of two.

    Args:
        parts: from top to bottom, each with its factor.
        name: of the matrix in the exported model, for messages.
    """

    def __init__(self, parts: tuple[tuple[StoredCodes, float], ...], name: str) -> None:
        self._parts, self.name = parts, name
        self.group_size = parts[0][0].stored.group_size

    def pieces(self) -> Iterator[CodeRows]:
        """The matrix in order; scales are float32 and have their factors."""
        for part, factor in self._parts:
            for rows in part.pieces():
                yield rows if factor == 1.0 else dataclasses.replace(rows, scales=rows.scales * factor)

    def scales(self) -> Iterator[torch.Tensor]:
        """Each part's scales alone, float32 [rows, groups], with its factor."""
        for part, factor in self._parts:
            yield part.scales() * factor

    def order(self) -> npt.NDArray[np.int32] | None:
        """The input features in the order of their groups; None where groups are of neighbours.

        Raises:
            CheckpointError: the parts' orders differ.
        """
        first, *others = (part for part, _ in self._parts)
        order = first.order()
        for part in others:
            other = part.order()
            if order is not None and (other is None or not np.array_equal(order, other)):
                raise other_order(first.stored.module, part.stored.module)
        return order


def other_order(first: str, second: str) -> CheckpointError:
    """The error for two matrices over the same activations whose groups are ordered differently."""
    return CheckpointError(
        f"tensor {second}.g_idx differs from {first}.g_idx: both multiply the same activations, which are ordered once",
        hint="Export with --fp32, which multiplies the integers out exactly.",
    )


def stored_matrix(weight: Weight, name: str) -> StoredMatrix | None:
    """The codes behind an expression; None where a part is floating point or was computed with."""
    parts = _parts(weight)
    return None if parts is None else StoredMatrix(parts, name)


def with_rows(weight: Weight, order: npt.NDArray[np.int32]) -> Weight:
    """A matrix of the checkpoint, no more than widened, with its rows in another order."""
    codes = _leaf(weight)
    assert codes.rows is None
    return StoredCodes(codes.source, codes.name, rows=order, columns_in_order=codes.columns_in_order)


def with_columns_in_order(weight: Weight) -> Weight:
    """A matrix of the checkpoint, no more than widened, with its columns in the order of their groups."""
    codes = _leaf(weight)
    return StoredCodes(codes.source, codes.name, rows=codes.rows, columns_in_order=True)


def _leaf(weight: Weight) -> StoredCodes:
    while isinstance(weight, Cast) and weight.dtype == torch.float32:
        weight = weight.weight
    assert isinstance(weight, StoredCodes), weight
    return weight


def _parts(weight: Weight) -> tuple[tuple[StoredCodes, float], ...] | None:
    if isinstance(weight, StoredCodes):
        return ((weight, 1.0),)
    if isinstance(weight, Cast) and weight.dtype == torch.float32:
        return _parts(weight.weight)
    if isinstance(weight, Scale) and math.frexp(weight.factor)[0] == 0.5:
        inner = _parts(weight.weight)
        return None if inner is None else tuple((part, factor * weight.factor) for part, factor in inner)
    if isinstance(weight, Concat):
        joined: tuple[tuple[StoredCodes, float], ...] = ()
        for part in weight.weights:
            inner = _parts(part)
            if inner is None:
                return None
            joined += inner
        return joined
    return None
