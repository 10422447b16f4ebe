"""Holding a folder's files against its manifest: presence, sizes, hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from gemma_runtime.errors import ManifestError
from gemma_runtime.manifest.entries import FileEntry, Manifest
from gemma_runtime.manifest.json_object import HINT

__all__ = ["verify_hashes", "verify_structure"]

# Bytes that are read at a time; each part waits for Python's lock twice where another thread has it. Small files need
# no such buffer, and a manifest that says too little of a large one makes no small parts.
_CHUNK_BYTES, _LEAST_BYTES = 16 << 20, 1 << 20


def verify_structure(directory: Path, manifest: Manifest) -> None:
    """Checks that every file is there with its size, and the hash of every file that is not weight data.

    Raises:
        ManifestError: names the file, what was expected and what was found.
    """
    for entry in manifest.files:
        _check_file(Path(directory), entry)
        if entry.kind != "data":
            _check_hash(Path(directory), entry, None)


def verify_hashes(directory: Path, manifest: Manifest, advance: Callable[[int], None] | None = None) -> None:
    """Reads all weight data and checks its hashes.

    Args:
        directory: the folder; `verify_structure` covers everything else.
        manifest: its manifest.
        advance: told the bytes as they are hashed.

    Raises:
        ManifestError: names the file whose content changed.
    """
    for entry in manifest.files:
        if entry.kind == "data":
            _check_hash(Path(directory), entry, advance)


def _check_file(directory: Path, entry: FileEntry) -> None:
    path = directory
    try:
        for part in entry.path.split("/"):
            path /= part
            # a link inside the folder could point anywhere, and what it points to can change
            if path.is_symlink():
                raise ManifestError(f"{entry.path} is a symbolic link, expected a regular file", hint=HINT)
        found = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise ManifestError(f"{entry.path} cannot be read: {error.strerror}", hint="Check its rights.") from error
    if found is None:
        raise ManifestError(f"{entry.path} is missing: expected a file of {entry.size} bytes", hint=HINT)
    if found != entry.size:
        raise ManifestError(f"{entry.path}: expected {entry.size} bytes, found {found}", hint=HINT)


def _check_hash(directory: Path, entry: FileEntry, advance: Callable[[int], None] | None) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(_LEAST_BYTES, entry.size))))
    try:
        with (directory / entry.path).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if advance is not None:
                    advance(count)
    except OSError as error:
        raise ManifestError(f"{entry.path} cannot be read: {error.strerror}", hint="Check its rights.") from error
    if digest.hexdigest() != entry.sha256:
        raise ManifestError(
            f"{entry.path} was altered: expected SHA-256 {entry.sha256}, found {digest.hexdigest()}", hint=HINT
        )
