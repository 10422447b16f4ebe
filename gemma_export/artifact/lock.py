"""One export per output folder: a lock in the user's cache directory, never near the output."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_export.errors import OutputError

__all__ = ["cache_directory", "lock_output"]

_CACHE_VARIABLE = "GEMMA_EXPORT_CACHE"


def cache_directory() -> Path:
    """Where gemma-export keeps what outlives a run: $GEMMA_EXPORT_CACHE, or the user's cache directory."""
    import platformdirs

    chosen = os.environ.get(_CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("gemma-export", appauthor=False))


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Holds the lock of an output folder; a thread that already holds it may take it again.

    The operating system drops the lock when the process ends, however it ends.

    Args:
        output: the resolved path of the folder, existing or not.

    Raises:
        OutputError: another export holds the lock, or the lock file cannot be made.
    """
    import filelock

    # two spellings of one path on a case-insensitive Windows disk are one folder
    name = hashlib.sha256(os.path.normcase(output).encode("utf-8", "surrogatepass")).hexdigest()
    path = cache_directory() / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=0, is_singleton=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise OutputError(
            f"another export holds {output}", hint="Wait until it has finished, or choose another folder with --output."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise OutputError(
            f"cannot make the lock file {path} for {output}: {error}",
            hint=f"Set {_CACHE_VARIABLE} to a directory you may write to, on a file system with locks.",
        ) from error
    try:
        yield
    finally:
        lock.release()
