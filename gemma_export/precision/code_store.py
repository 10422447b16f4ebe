"""Quantised matrices between calibration and writing, in a nameless file that vanishes with the process."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gemma_export.errors import ResourceExhaustedError
from gemma_export.precision.block_codes import BlockCodes
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight, write_bytes

__all__ = ["CalibratedWeight", "CodeStore"]


class CodeStore:
    """Codes of calibrated matrices, by the name of a tensor of the checkpoint.

    Args:
        directory: where the file lies: the output's parent, which has the space; it has no name there.
    """

    def __init__(self, directory: Path) -> None:
        # outlives this call; the finaliser ends it
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self.close = weakref.finalize(self, self._file.close)
        # tensor -> its rows in order: where each tensor of their codes lies
        self._pieces: dict[str, list[dict[str, _Piece]]] = {}
        self._end = 0

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def append(self, name: str, codes: BlockCodes) -> None:
        """Keeps the next rows of a tensor.

        Raises:
            ResourceExhaustedError: the disk is full.
        """
        pieces = {}
        for part in dataclasses.fields(codes):
            tensor = getattr(codes, part.name)
            if tensor is None:
                continue
            try:
                self._file.seek(self._end)
                write_bytes(tensor, self._file)
                self._file.flush()
            except OSError as error:
                raise ResourceExhaustedError(
                    f"calibrated weights of {name} cannot be kept until they are written: {error.strerror}",
                    hint="Free disk space where the output goes: a calibrated export needs its size twice.",
                ) from error
            pieces[part.name] = _Piece(start=self._end, shape=tuple(tensor.shape), dtype=tensor.dtype)
            self._end += tensor.nbytes
        self._pieces.setdefault(name, []).append(pieces)

    def read(self, name: str) -> Iterator[BlockCodes]:
        """A tensor's rows in order, as they were appended."""
        for pieces in self._pieces[name]:
            zero_points = pieces.get("zero_points")
            yield BlockCodes(
                data=self._tensor(pieces["data"]),
                scales=self._tensor(pieces["scales"]),
                zero_points=None if zero_points is None else self._tensor(zero_points),
            )

    def _tensor(self, piece: _Piece) -> torch.Tensor:
        self._file.seek(piece.start)
        content = bytearray(math.prod(piece.shape) * piece.dtype.itemsize)
        self._file.readinto(content)
        return torch.frombuffer(content, dtype=piece.dtype).view(piece.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """One tensor in the file."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class CalibratedWeight(BlockWeight):
    """A calibrated matrix.

    Args:
        store: has the codes.
        tensors: of the checkpoint, whose rows join to the matrix, in order.
        name, shape, layout, scale_dtype: of the stored matrix.
    """

    def __init__(
        self,
        store: CodeStore,
        tensors: Sequence[str],
        name: str,
        shape: tuple[int, ...],
        layout: BlockFormat,
        scale_dtype: torch.dtype,
    ) -> None:
        super().__init__(name, shape, layout, scale_dtype)
        self._store, self._tensors = store, tuple(tensors)

    def _codes(self) -> Iterator[BlockCodes]:
        """See BlockWeight."""
        for tensor in self._tensors:
            yield from self._store.read(tensor)
