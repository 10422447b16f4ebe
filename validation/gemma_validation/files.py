"""A file that is there whole, or as it was before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gemma_export.artifact.disk import sync_directory

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file beside its place, makes it durable, and puts it in place in one step.

    Args:
        path: the file; its rights are kept where it exists.
        content: all of it.

    Raises:
        OSError: the file is as it was before.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        # what an interrupted run left behind
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o7777)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    # the rename survives a power loss
    sync_directory(path.parent)
