"""Hidden states of every batch between two layers: in memory up to a limit, beyond it in a nameless file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gemma_export.errors import ResourceExhaustedError

__all__ = ["HiddenStates"]


class HiddenStates:
    """One float32 tensor [batch_size, sequence_length, hidden_size] for each batch, overwritten in place.

    Args:
        shapes: of each batch's hidden states.
        memory_bytes: what may stay in memory; the batches beyond it go to a file.
        directory: where the file lies (it has no name and vanishes with the process, however that ends); None allows
            none.

    Raises:
        ResourceExhaustedError: the batches do not fit and there is no directory, or its disk is full.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], *, memory_bytes: int = 512 << 20, directory: Path | None = None
    ) -> None:
        self._shapes = tuple(shapes)
        self._kept: dict[int, torch.Tensor] = {}
        # batch -> its first byte in the file
        self._spilled: dict[int, int] = {}
        self._file: Any = None
        self._memory_bytes, self._left, self._end = memory_bytes, memory_bytes, 0
        self._directory = directory
        for batch in range(len(self._shapes)):
            self._place(batch)
        self._open()

    def __len__(self) -> int:
        return len(self._shapes)

    def append(self, states: torch.Tensor) -> int:
        """Keeps one batch more; returns its index.

        Raises:
            ResourceExhaustedError: as for the batches that were there from the start.
        """
        batch, sequence, hidden = states.shape
        self._shapes = (*self._shapes, (batch, sequence, hidden))
        index = len(self._shapes) - 1
        self._place(index)
        self._open()
        self[index] = states
        return index

    def _place(self, batch: int) -> None:
        """Decides where a batch is kept."""
        shape = self._shapes[batch]
        size = 4 * shape[0] * shape[1] * shape[2]
        if size <= self._left:
            self._left -= size
        else:
            self._spilled[batch], self._end = self._end, self._end + size

    def _open(self) -> None:
        if not self._spilled or self._file is not None:
            return
        if self._directory is None:
            raise ResourceExhaustedError(
                f"hidden states of {len(self._shapes)} batches need "
                f"{(self._end + self._memory_bytes - self._left) >> 20} MiB, "
                f"{self._memory_bytes >> 20} MiB are allowed",
                hint="Use fewer or shorter calibration texts.",
            )
        # outlives this call; close() and the garbage collector end it
        self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115

    def __getitem__(self, batch: int) -> torch.Tensor:
        """The hidden states of a batch, until they are set again; not to be changed in place."""
        if batch in self._kept:
            return self._kept[batch]
        assert self._file is not None
        states = torch.empty(self._shapes[batch])
        self._file.seek(self._spilled[batch])
        count = self._file.readinto(_bytes(states))
        assert count == states.nbytes
        return states

    def __setitem__(self, batch: int, states: torch.Tensor) -> None:
        """Copies a batch's new hidden states over the old ones."""
        assert tuple(states.shape) == self._shapes[batch], (states.shape, self._shapes[batch])
        if batch not in self._spilled:
            kept = self._kept.get(batch)
            if kept is None or kept.dtype != states.dtype:
                self._kept[batch] = states.clone()
            else:
                # A new tensor for each layer would lie among what the layer allocates meanwhile, and keep the heap from
                # shrinking: gptq of a 2B grew from layer to layer.
                kept.copy_(states)
            return
        assert self._file is not None
        try:
            self._file.seek(self._spilled[batch])
            self._file.write(_bytes(states.contiguous()))
            self._file.flush()
        except OSError as error:
            raise ResourceExhaustedError(
                f"hidden states between two layers cannot be written: {error.strerror}",
                hint="Free some disk space where the output goes, or use fewer calibration texts.",
            ) from error

    def close(self) -> None:
        """Lets go of memory and file."""
        self._kept.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def _bytes(states: torch.Tensor) -> memoryview:
    view: memoryview = states.view(-1).view(torch.uint8).numpy().data
    return view
