"""A file that takes its SHA-256 while it is written, on threads of its own."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from gemma_export.artifact.disk import explained, write_error
from gemma_export.artifact.flusher import Flusher
from gemma_export.progress import NullProgress, Progress

__all__ = ["HashingFile"]

# Small enough to stay in a core's cache between copy, hash and write; their number bounds the memory.
_BUFFER_BYTES = 1 << 20
_BUFFERS = 8


class HashingFile:
    """A new file for writing, whose digest is known without reading it again.

    The caller's thread copies into a fixed set of buffers; a second thread hashes them and hands them to a third,
    which writes them. hashlib and the operating system's write release Python's lock, so the three run side by side.
    Use it as a context manager: a normal exit flushes it to the disk, an exception drops what is still in flight.
    It has `write` and deliberately no `fileno`: producers must not write behind its back.

    Args:
        path: must not exist.
        needed_bytes: size of the whole folder, for the message when the disk is full.
        progress: told the bytes as they reach the file.

    Raises:
        ResourceExhaustedError, OutputError: from any method, when the operating system refuses.
    """

    def __init__(self, path: Path, *, needed_bytes: int = 0, progress: Progress | None = None) -> None:
        self.path = path
        self.size = 0
        self._needed_bytes = needed_bytes
        self._progress = progress if progress is not None else NullProgress()
        self._digest = hashlib.sha256()
        self._error: BaseException | None = None
        self._empty: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[bytearray, int] | None] = queue.SimpleQueue()
        self._hashed: queue.SimpleQueue[tuple[bytearray, int] | None] = queue.SimpleQueue()
        for _ in range(_BUFFERS - 1):
            self._empty.put(bytearray(_BUFFER_BYTES))
        self._buffer = bytearray(_BUFFER_BYTES)
        self._filled = 0
        with explained(path, needed_bytes):
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115  closed by _stop
        self._flusher = Flusher(self._file.fileno())
        self._stored = 0
        self._threads = [
            threading.Thread(target=self._hash, name="hash", daemon=True),
            threading.Thread(target=self._drain, name="write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def sha256(self) -> str:
        """The digest of everything written, in hexadecimal; complete once the file is closed."""
        return self._digest.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Takes a copy of `data`, any contiguous buffer; returns its size in bytes."""
        view = memoryview(data).cast("B")
        start = 0
        while start < len(view):
            self._raise_error()
            stop = min(len(view), start + _BUFFER_BYTES - self._filled)
            filled = self._filled + stop - start
            self._buffer[self._filled : filled] = view[start:stop]
            self._filled, start = filled, stop
            if filled == _BUFFER_BYTES:
                self._hand_over()
        self.size += len(view)
        return len(view)

    def pad_to(self, offset: int) -> None:
        """Writes zeros up to `offset` bytes from the file's start."""
        while self.size < offset:
            self.write(bytes(min(offset - self.size, _BUFFER_BYTES)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._hand_over()
        finally:
            self._full.put(None)
            for thread in self._threads:
                thread.join()
            # the threads are gone: the file is ours alone
            with self._file, explained(self.path, self._needed_bytes):
                self._error = self._flusher.close() or self._error
                if error is None and self._error is None:
                    os.fsync(self._file.fileno())
        if error is None:
            self._raise_error()

    def _hand_over(self) -> None:
        self._full.put((self._buffer, self._filled))
        self._buffer, self._filled = self._empty.get(), 0

    def _raise_error(self) -> None:
        if isinstance(self._error, OSError):
            raise write_error(self._error, self.path, self._needed_bytes) from self._error
        if self._error is not None:
            raise self._error

    def _hash(self) -> None:
        while (entry := self._full.get()) is not None:
            buffer, filled = entry
            self._digest.update(memoryview(buffer)[:filled])
            self._hashed.put(entry)
        self._hashed.put(None)

    def _drain(self) -> None:
        while (entry := self._hashed.get()) is not None:
            buffer, filled = entry
            # after an error buffers only go round, so that the producer never waits for one
            if self._error is None:
                try:
                    self._store(memoryview(buffer)[:filled])
                except BaseException as error:  # noqa: BLE001  raised again in the producer's thread
                    self._error = error
            self._empty.put(buffer)

    def _store(self, chunk: memoryview) -> None:
        written = 0
        while written < len(chunk):
            written += self._file.write(chunk[written:])
        self._stored += written
        self._flusher.advance(self._stored)
        self._progress.advance(len(chunk))
