"""Disk space, durability and what an operating system's refusals mean for a user."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_export.errors import GemmaExportError, OutputError, ResourceExhaustedError
from gemma_export.progress import format_bytes

__all__ = ["check_disk", "explained", "nearest_existing", "sync_directory", "write_error"]

# Windows has no quotas of its own in errno: EDQUOT is missing in some builds of Python there
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_disk(output: Path, needed_bytes: int) -> None:
    """Refuses an export that cannot fit, before its first byte is written.

    A folder that `--force` replaces stays until the new one is complete, so its space does not count as free.

    Raises:
        ResourceExhaustedError: the file system of `output` has fewer than `needed_bytes` bytes free.
    """
    place = nearest_existing(output)
    with explained(place, needed_bytes):
        free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise ResourceExhaustedError(
            f"not enough disk space for {output}: {_exact(needed_bytes)} needed, {_exact(free)} free at {place}",
            hint="Free some space, or choose another disk with --output.",
        )


def nearest_existing(path: Path) -> Path:
    """The path itself or the closest of its parents that exists, as far as this user may look."""
    path = Path(os.path.abspath(path))
    # Path.exists raises where a parent may not be searched
    return next((place for place in (path, *path.parents) if os.path.exists(place)), Path(path.anchor))


def write_error(error: OSError, path: Path, needed_bytes: int) -> GemmaExportError:
    """Says in a user's words why the operating system refused to write.

    Args:
        error: the refusal.
        path: what was written.
        needed_bytes: size of the whole folder, in bytes.
    """
    # the name, never a temporary folder's whole path twice: an OSError's own text repeats it
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        place = nearest_existing(path)
        free = shutil.disk_usage(place).free
        return ResourceExhaustedError(
            f"writing {path}: {reason}; the folder needs {_exact(needed_bytes)}, {_exact(free)} are free at {place}",
            hint="Free some space (or raise the quota or file size limit), or choose another disk with --output.",
        )
    if error.errno in _FORBIDDEN:
        return OutputError(
            f"writing {path}: {reason}",
            hint="Choose a directory you may write to with --output, or correct its rights.",
        )
    if error.errno == errno.EIO:
        return OutputError(
            f"writing {path}: the disk failed ({reason})", hint="Check the disk, or choose another with --output."
        )
    return OutputError(f"writing {path}: {reason}", hint="Choose another place with --output.")


@contextmanager
def explained(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turns an OSError of the block into the error that `write_error` gives."""
    try:
        yield
    except OSError as error:
        raise write_error(error, path, needed_bytes) from error


def sync_directory(path: Path) -> None:
    """Makes the directory's entries survive a power loss, where the operating system can do that.

    Windows opens no directories, and some network file systems refuse to sync them: both keep entries in order
    without it, so only a real failure of the disk is an error.
    """
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _exact(count: int) -> str:
    return f"{format_bytes(count)} ({count:,} bytes)" if count >= 1000 else f"{count} bytes"
