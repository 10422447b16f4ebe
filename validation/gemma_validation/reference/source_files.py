"""A folder's files held against the sizes and hashes that a manifest has of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_export.checkpoint import hash_files
from gemma_export.errors import GemmaExportError
from gemma_runtime.manifest import SourceFile

__all__ = ["first_difference"]


def first_difference(directory: Path, files: Sequence[SourceFile]) -> str | None:
    """The first file that is not what it was, in one line: its name, what was expected and what was found.

    Sizes are compared first and small files are hashed first, so that another checkpoint shows at once and only the
    right one is read from end to end.
    """
    for file in files:
        if Path(file.name).name != file.name:
            return f"{file.name!r} is no file name"
        path = directory / file.name
        if not path.is_file():
            return f"{file.name} is missing"
        size = path.stat().st_size
        if size != file.size:
            return f"{file.name}: expected {file.size} bytes, found {size}"
    for file in sorted(files, key=lambda file: (file.size, file.name)):
        try:
            (found,) = hash_files((directory / file.name,))
        except GemmaExportError as error:
            return error.message
        if found.sha256 != file.sha256:
            return f"{file.name}: expected SHA-256 {file.sha256}, found {found.sha256}"
    return None
