"""Quantised matrices between calibration and writing, in a nameless file that vanishes with the process."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gemma_export.errors import ResourceExhaustedError
from gemma_export.precision.block_codes import BlockCodes
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockParts
from gemma_export.weights import Writable

__all__ = ["CodeStore", "StoredBlockWeight"]

_CHUNK_BYTES = 1 << 20


class CodeStore:
    """Bytes of calibrated matrices, by the name of a tensor of the checkpoint.

    Args:
        directory: where the file lies: the output's parent, which has the space; it has no name there.
    """

    def __init__(self, directory: Path) -> None:
        # outlives this call; the finaliser ends it
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self.close = weakref.finalize(self, self._file.close)
        # (tensor, part) -> ranges of the file, rows in order
        self._ranges: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._end = 0

    def __contains__(self, name: str) -> bool:
        return (name, "data") in self._ranges

    def append(self, name: str, codes: BlockCodes) -> None:
        """Keeps the next rows of a tensor.

        Raises:
            ResourceExhaustedError: the disk is full.
        """
        parts = {"data": codes.data, "scales": codes.scales, "zero_points": codes.zero_points}
        for part, tensor in parts.items():
            if tensor is None:
                continue
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            try:
                self._file.seek(self._end)
                self._file.write(content)
                self._file.flush()
            except OSError as error:
                raise ResourceExhaustedError(
                    f"calibrated weights of {name} cannot be kept until they are written: {error.strerror}",
                    hint="Free disk space where the output goes: a calibrated export needs its size twice.",
                ) from error
            self._ranges.setdefault((name, part), []).append((self._end, len(content)))
            self._end += len(content)

    def read(self, name: str, part: str) -> Iterator[bytes]:
        """The bytes of one part of a tensor, in pieces."""
        for start, size in self._ranges[name, part]:
            for offset in range(start, start + size, _CHUNK_BYTES):
                self._file.seek(offset)
                yield self._file.read(min(_CHUNK_BYTES, start + size - offset))


class StoredBlockWeight(BlockParts):
    """A calibrated matrix as lazy tensors.

    Args:
        store: has the bytes.
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

    def write(self, part: str, file: Writable) -> None:
        """Writes the bytes of one part."""
        for tensor in self._tensors:
            for piece in self._store.read(tensor, part):
                file.write(memoryview(piece))
