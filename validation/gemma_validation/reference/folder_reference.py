"""Another exported folder as the reference: no torch, no checkpoint."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma_runtime.manifest import Manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.documents import Document
from gemma_validation.findings import ReferenceAbout
from gemma_validation.reference.greedy import greedy_steps

__all__ = ["FolderReference"]

# positions whose logits are in memory at a time: 262 MB for a vocabulary of 256,000
_ROWS = 256


class FolderReference:
    """A ReferenceSource over a folder's graphs.

    Args:
        directory: the folder.
        manifest: its manifest.
        provider: "cpu", "cuda" or "directml"; two folders on two providers may be compared.

    Raises:
        FolderUnreadableError, ProviderUnavailableError: as ArtifactRunner.
    """

    def __init__(self, directory: Path, manifest: Manifest, *, provider: str = "cpu") -> None:
        self._runner = ArtifactRunner(directory, manifest, provider=provider)
        self.vocab_size = manifest.vocab_size
        self.about = ReferenceAbout(
            kind="folder",
            name=directory.resolve().name,
            dtype=manifest.precision.name,
            versions={"onnxruntime": _onnxruntime_version(), "gemma-export": manifest.generator.version},
        )
        self._documents: tuple[Document, ...] = ()
        # the document that is being read, its blocks yet to come, and the block at hand with its first position
        self._reading: tuple[int, Iterator[tuple[int, npt.NDArray[np.float32]]]] | None = None
        self._block: tuple[int, npt.NDArray[np.float32]] | None = None

    def prepare(self, documents: Sequence[Document]) -> None:
        """See ReferenceSource; nothing is slow here."""
        self._documents = tuple(documents)
        self._reading = self._block = None

    def logits(self, document: int, first: int, last: int) -> npt.NDArray[np.float32]:
        """See ReferenceSource; holds a block and what is asked for."""
        at = self._block[0] if self._block is not None else 0
        if self._reading is None or self._reading[0] != document or first < at:
            blocks = iter(self._runner.logits(self._documents[document].token_ids, rows=_ROWS))
            self._reading, self._block = (document, blocks), None
        parts = []
        while first < last:
            start, block = self._block_with(first)
            part = block[first - start : last - start]
            parts.append(part)
            first += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def noise(self) -> None:
        """See ReferenceSource: the other folder's rounding is not known."""

    def greedy(self, token_ids: Sequence[int], steps: int) -> list[tuple[int, float]]:
        """See ReferenceSource."""
        return list(greedy_steps(self._runner, token_ids, steps, side="reference"))

    def close(self) -> None:
        """See ReferenceSource."""
        self._reading = self._block = None
        self._runner.close()

    def _block_with(self, position: int) -> tuple[int, npt.NDArray[np.float32]]:
        assert self._reading is not None
        while self._block is None or position >= self._block[0] + len(self._block[1]):
            self._block = next(self._reading[1])
        # else the caller would wait for ever for a part that is behind it
        assert position >= self._block[0]
        return self._block


def _onnxruntime_version() -> str:
    """Whichever of its distributions is installed."""
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
