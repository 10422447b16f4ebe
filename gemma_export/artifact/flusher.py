"""Brings a file to the disk while it is still being written."""

from __future__ import annotations

import os
import threading

__all__ = ["Flusher"]

# a few hundredths of a second of a fast disk's work
_STEP_BYTES = 64 << 20


class Flusher:
    """Syncs a growing file every 64 MiB on a thread, and lets go of the pages that are on the disk.

    Without it gigabytes of unwritten pages pile up: the operating system then slows the writer down, drops everything
    else that it had cached, and the final sync waits for all of it. Measured for 5 GB on a virtual machine: 4.5 to 10 s
    without, 2.2 s with it. Where a call is missing (macOS, Windows) less is done; the final sync is the caller's.

    Args:
        descriptor: of a file open for writing; it must stay open until `close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written = self._asked = 0
        self._ended = False
        self._error: OSError | None = None
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def advance(self, size: int) -> None:
        """The file has `size` bytes by now."""
        self._written = size
        if size - self._asked < _STEP_BYTES or not hasattr(os, "fdatasync"):
            return
        self._asked = size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="flush", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self) -> OSError | None:
        """Waits for the thread; returns why a sync failed, if one did."""
        if self._thread is not None:
            self._ended = True
            self._wake.set()
            self._thread.join()
        return self._error

    def _run(self) -> None:
        flushed = 0
        while not self._ended and self._error is None:
            self._wake.wait()
            self._wake.clear()
            size = self._written
            try:
                os.fdatasync(self._descriptor)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self._descriptor, flushed, size - flushed, os.POSIX_FADV_DONTNEED)
            except OSError as error:
                self._error = error
            flushed = size
