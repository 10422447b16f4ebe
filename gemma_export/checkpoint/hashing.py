"""SHA-256 of the files that weights come from. Torch-free."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

from gemma_export.errors import CheckpointError

__all__ = ["HashedFile", "hash_files"]

_CHUNK_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashedFile:
    """A source file by base name."""

    name: str
    size: int
    sha256: str


def hash_files(files: Sequence[Path], stop: threading.Event | None = None) -> tuple[HashedFile, ...]:
    """Reads every file from end to end; meant for a thread beside the writer, which then finds the pages cached.

    Args:
        files: what to hash.
        stop: when set, gives up early; the result is then incomplete.

    Raises:
        CheckpointError: a file cannot be read.
    """
    hashed: list[HashedFile] = []
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for path in files:
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    if stop is not None and stop.is_set():
                        return tuple(hashed)
                    digest.update(buffer[:count])
                    size += count
        except OSError as error:
            raise CheckpointError(f"{path.name} cannot be read: {error.strerror}", hint="Check the disk.") from error
        hashed.append(HashedFile(name=path.name, size=size, sha256=digest.hexdigest()))
    return tuple(hashed)
